"""Least rights as people give them to a NATS: a server's configuration, `nsc` commands of operator mode, and JSON.

What each user may do is `contracts.permissions`; here it is only written down. deploy/nats/accounts.conf and
accounts.nsc.sh are what this gives for the roles alone, and `meshctl permissions` prints the same for more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from contracts import subjects
from contracts.permissions import (
    ROLES,
    Permissions,
    permissions_of,
    runner_permissions,
    signals_account,
    signals_permissions,
)

ACCOUNT: Final = "TASKMESH"
"""The account of a mesh: its streams, and the users of its services."""
_INDENT: Final = "  "


class User(NamedTuple):
    """A user of the broker. `name` is its role, `runner_<tool>`, or `signals_<tenant>`."""

    name: str
    permissions: Permissions

    @property
    def password_variable(self) -> str:
        """The variable of the server's environment that has its password, or the bcrypt hash of it."""
        return f"{self.name.upper().replace('-', '_')}_PASSWORD"


class Signals(NamedTuple):
    """A tenant's senders of signals, in an account of their own: they see nothing of the mesh, nor of each other."""

    tenant: str

    @property
    def account(self) -> str:
        """Name of the account."""
        return signals_account(self.tenant)

    @property
    def subject(self) -> str:
        """What the mesh lets in from there."""
        return f"signals.{self.tenant}.>"

    @property
    def user(self) -> User:
        """Who sends."""
        return User(f"signals_{self.tenant}", signals_permissions(self.tenant))


def role_users(
    *,
    domain: str | None = None,
    pools: Iterable[str] | None = None,
    tools: Iterable[str] | None = None,
    webhooks: Iterable[str] | None = None,
) -> list[User]:
    """One user for each role; the arguments as of `permissions_of`. Raises `InvalidName`."""
    pools, tools, webhooks = (tuple(each) if each is not None else None for each in (pools, tools, webhooks))
    return [
        User(role, permissions_of(role, domain=domain, pools=pools, tools=tools, webhooks=webhooks)) for role in ROLES
    ]


def runner_user(tool: str, domain: str | None = None) -> User:
    """The user of a program that serves one tool. Raises `InvalidName`."""
    return User(f"runner_{tool}", runner_permissions(tool, domain=domain))


def signals_of(tenant: str) -> Signals:
    """A tenant's signals. Raises `InvalidName`."""
    return Signals(subjects.check_tenant(tenant))


# A server's configuration


def accounts_conf(users: Sequence[User], signals: Sequence[Signals] = ()) -> str:
    """The accounts of a server: the mesh's with these users, and one for each tenant that sends signals."""
    exports = (
        [
            f"    exports: [\n{''.join(_export(each, 6) for each in signals)}    ]\n",
        ]
        if signals
        else []
    )
    return "".join(
        [
            "accounts {\n",
            f"  {ACCOUNT}: {{\n",
            "    jetstream: enabled\n",
            "    users: [\n",
            *(user_conf(user, 6) for user in users),
            "    ]\n",
            *exports,
            "  }\n",
            *(account_conf(each, 2) for each in signals),
            "}\n",
        ]
    )


def _export(signals: Signals, indent: int) -> str:
    return f'{" " * indent}{{ service: "{signals.subject}", accounts: [ {signals.account} ] }}\n'


def user_conf(user: User, indent: int = 0) -> str:
    """One user. Its password comes from a variable of the server's environment."""
    lines = [
        "{",
        f'  user: "{user.name}", password: ${user.password_variable}',
        *(f"  {line}" for line in permissions_conf(user.permissions)),
        "}",
    ]
    return "".join(f"{' ' * indent}{line}\n" for line in lines)


def permissions_conf(permissions: Permissions) -> list[str]:
    """The lines of a user's `permissions`."""
    responses = permissions.allow_responses
    return [
        "permissions: {",
        *_allow("publish", permissions.publish),
        *_allow("subscribe", permissions.subscribe),
        *([f'  allow_responses: {{ max: {responses.max}, expires: "{responses.seconds}s" }}'] if responses else []),
        "}",
    ]


def _allow(verb: str, names: Sequence[str]) -> list[str]:
    # An empty list would allow everything.
    allowed = [f"    {json.dumps(name)}" for name in names]
    rule = "allow" if allowed else "deny"
    return [f"  {verb}: {{ {rule}: [", *(allowed or ['    ">"']), "  ] }"]


def account_conf(signals: Signals, indent: int = 0) -> str:
    """The account of a tenant's signals. The mesh's has to export them to it (`exports_conf`)."""
    lines = [
        f"{signals.account}: {{",
        "  users: [",
        *(f"    {line}" for line in user_conf(signals.user).splitlines()),
        "  ]",
        f'  imports: [ {{ service: {{ account: {ACCOUNT}, subject: "{signals.subject}" }} }} ]',
        "}",
    ]
    return "".join(f"{' ' * indent}{line}\n" for line in lines)


def exports_conf(signals: Sequence[Signals]) -> str:
    """What the mesh's account has to export for these."""
    return f"exports: [\n{''.join(_export(each, 2) for each in signals)}]\n"


# Operator mode


def nsc_commands(users: Sequence[User], signals: Sequence[Signals] = (), *, account: bool = True) -> str:
    """`nsc` commands that make the same, for a shell. `account`: make the mesh's account, too."""
    lines: list[str] = []
    if account:
        lines += [
            f"nsc add account --name {ACCOUNT}",
            _command(
                f"nsc edit account --name {ACCOUNT}",
                ["--js-disk-storage -1", "--js-mem-storage 64M", "--js-streams -1", "--js-consumer -1"],
            ),
        ]
    lines += [_add_user(ACCOUNT, user) for user in users]
    for each in signals:
        activation = f"{each.account}.jwt"
        lines += [
            f"nsc add account --name {each.account}",
            _add_user(each.account, each.user),
            _command(
                f"nsc add export --account {ACCOUNT} --name signals-{each.tenant}",
                [f"--subject '{each.subject}'", "--service", "--private"],
            ),
            _command(
                f"nsc generate activation --account {ACCOUNT} --subject '{each.subject}'",
                [
                    f'--target-account "$(nsc describe account --name {each.account} --field sub | tr -d \'"\')"',
                    f"--output-file {activation}",
                ],
            ),
            _command(
                f"nsc add import --account {each.account} --name signals-{each.tenant}",
                [f"--token {activation}", "--service"],
            ),
        ]
    return "".join(f"{line}\n" for line in lines)


def _add_user(account: str, user: User) -> str:
    permissions = user.permissions
    flags = [f"--allow-pub '{name}'" for name in permissions.publish] or ["--deny-pub '>'"]
    flags += [f"--allow-sub '{name}'" for name in permissions.subscribe] or ["--deny-sub '>'"]
    responses = permissions.allow_responses
    if responses is not None:
        flags += [f"--allow-pub-response={responses.max}", f"--response-ttl {responses.seconds}s"]
    return _command(f"nsc add user --account {account} --name {user.name}", flags)


def _command(command: str, flags: Sequence[str]) -> str:
    return " \\\n".join([command, *(_INDENT + flag for flag in flags)])


# JSON


def as_json(users: Sequence[User], signals: Sequence[Signals] = ()) -> list[dict[str, Any]]:
    """The users as data: `user`, `account`, and `permissions` as the server and NATS's JWTs have them."""
    told = [(ACCOUNT, user) for user in users] + [(each.account, each.user) for each in signals]
    return [{"user": user.name, "account": account, **_json(user.permissions)} for account, user in told]


def _json(permissions: Permissions) -> dict[str, Any]:
    responses = permissions.allow_responses
    answers = {"max": responses.max, "seconds": responses.seconds} if responses is not None else None
    return {
        "publish": list(permissions.publish),
        "subscribe": list(permissions.subscribe),
        **({"allow_responses": answers} if answers else {}),
    }


# The files of deploy/nats

_HEAD: Final = """\
# Rendered from contracts.permissions by `make schemas`: change nothing here. {what}
"""
_CONF: Final = """\
# A server takes it by `include "accounts.conf"`. Each user's password, or a bcrypt hash of it (`nats server passwd`),
# is in a variable of the server's environment, such as INGRESS_PASSWORD; it begins with a letter, or is a hash.
# `meshctl permissions --tool <tool> --tenant <tenant>` prints these accounts with users for runners of other languages,
# and accounts for who sends a tenant's signals.
"""
_NSC: Final = """\
# Then `nsc generate creds --account TASKMESH --name ingress > ingress.creds`, and so on, for MESH_NATS_CREDS.
"""


def files() -> dict[str, str]:
    """The files of deploy/nats that are rendered from here, by name."""
    users = role_users()
    return {
        "accounts.conf": _HEAD.format(what="One user for each process of a mesh, with its least rights.")
        + _CONF
        + accounts_conf(users),
        "accounts.nsc.sh": _HEAD.format(what="The same users for a NATS in operator mode, by nsc.")
        + _NSC
        + nsc_commands(users),
    }
