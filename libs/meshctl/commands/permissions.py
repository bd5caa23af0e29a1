"""`meshctl permissions`: the least rights of a process at the broker, to be given to its user there."""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

from contracts import guests
from contracts.errors import InvalidName
from contracts.generation import accounts
from contracts.guests import Guest
from contracts.permissions import ROLES
from mesh.configuration.settings import load_settings
from mesh.errors import SettingsError
from meshctl.display import output
from meshctl.flags import add_setting_flags, environment_with

RUNNER: Final = "runner"
SIGNALS: Final = "signals"
FORMATS: Final = ("conf", "nsc", "json")
_DESCRIPTION = """\
Print what a user of the broker needs to be allowed, and no more: of a role, of a program in another language that
serves tools (runner --tool), of one that sends a tenant's signals (signals --tenant). These two are each in an account
of their own. Without a role: all accounts, with a user for each role, and an account for each --tool and --tenant.

conf is for a server's configuration, nsc prints commands for a NATS in operator mode, json is one line for each
user. Asks no broker.
"""


def add_commands(commands: Any) -> None:
    """Register `permissions`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "permissions",
        help="print the least rights of a process at the broker",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "role", nargs="?", choices=[*ROLES, RUNNER, SIGNALS], metavar="ROLE", help=", ".join([*ROLES, RUNNER, SIGNALS])
    )
    parser.add_argument("--tool", action="append", default=[], help="a tool that a program of yours serves")
    parser.add_argument("--tenant", action="append", default=[], help="a tenant whose signals are sent from outside")
    parser.add_argument("--format", choices=FORMATS, default="conf", help="how it is written [conf]")
    parser.add_argument(
        "--narrow",
        action="store_true",
        help="let workers and the steward pull the pools and webhooks of this configuration alone: print it again, and"
        " reload the broker, when there are others",
    )
    add_setting_flags(parser, ("nats_domain", "config"))
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    settings = load_settings(environment_with(arguments, os.environ))
    role: str | None = arguments.role
    _check(role, arguments.tool, arguments.tenant)
    configuration = settings.configuration
    pools, webhooks = (settings.pools, configuration.webhooks) if arguments.narrow else (None, None)
    try:
        every_role = accounts.role_users(domain=settings.nats_domain, pools=pools, webhooks=webhooks)
        visitors = _guests(role, arguments.tool, arguments.tenant, settings.nats_domain)
    except InvalidName as error:
        raise SettingsError(str(error)) from None
    users = [user for user in every_role if role in (None, user.name)]
    if arguments.format == "json":
        for each in accounts.as_json(users, visitors):
            output.json_line(each)
    elif arguments.format == "nsc":
        print(accounts.nsc_commands(users, visitors, account=role is None), end="")
    elif role is None:
        print(accounts.accounts_conf(users, visitors), end="")
    else:
        print(accounts.guests_conf(visitors) if visitors else accounts.users_conf(users), end="")
    return 0


def _guests(role: str | None, tools: list[str], tenants: list[str], domain: str | None) -> list[Guest]:
    """Who is let in beside the mesh's own processes: a runner of all of the tools, or without a role one of each."""
    runners = [tools] if role == RUNNER else [[tool] for tool in tools]
    return [
        *(guests.runner(each, domain=domain) for each in runners if each),
        *(guests.signals(tenant) for tenant in tenants),
    ]


def _check(role: str | None, tools: list[str], tenants: list[str]) -> None:
    """Raises `SettingsError` for a role without what it is of, or with what it is not of."""
    if role == RUNNER and not tools:
        raise SettingsError("permissions runner: name the tool that it serves with --tool")
    if role == SIGNALS and not tenants:
        raise SettingsError("permissions signals: name the tenant whose signals it sends with --tenant")
    if tools and role not in (None, RUNNER):
        raise SettingsError(f"permissions {role}: --tool is for runner")
    if tenants and role not in (None, SIGNALS):
        raise SettingsError(f"permissions {role}: --tenant is for signals")
