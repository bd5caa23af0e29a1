"""`meshctl usage`: what tenants have used, and what it cost; and whether the counters agree with the journals."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import date
from typing import Any, Final, get_args

import msgspec

from contracts.errors import TaskmeshError
from contracts.subjects import check_tenant
from mesh.clock import now
from mesh.configuration.settings import Settings, load_variables
from mesh.errors import BrokerUnavailable, SettingsError
from mesh.ledger import counters
from mesh.ledger.audit import Audit, audit, corrections
from mesh.ledger.counting import Counting
from mesh.ledger.reports import Grouping, first_of_month, periods, rows, total
from mesh.telemetry import traces
from meshctl.display import output
from meshctl.display.usage_table import differences_table, usage_table
from meshctl.flags import add_setting_flags, environment_with
from meshctl.operators import operator_name
from meshctl.supervision import discovery
from meshctl.supervision.broker_setup import connected

STATUS_DIFFERENT: Final = 1
DIFFERENCES_SHOWN_MAX: Final = 100
TRIES_MAX: Final = 20
"""Stewards that write their record at the same time."""
_SETTINGS: Final = ("home", "nats_url", "nats_domain", "nats_port", "retention_days")
_GROUPINGS: Final = (*get_args(get_args(Grouping)[0]), "tenant")
_DESCRIPTION = """\
Print what tenants have used and what it cost, by the prices of mesh.toml: of this month, by day. Counters are some
seconds behind. "no price" are tokens of models without a price, "not told" calls of which no provider has told the
usage; neither is in the cost.

--verify holds the counters of all tenants against all journals that are kept, packed ones included, to the token: of
days against journals, of months against days. Stewards count nothing meanwhile, and catch up. What is older than
MESH_RETENTION_DAYS stays as it was counted. With --rebuild the counters are set to what they should be: after an
import, a restore, or an upgrade of a mesh with packed tasks.
"""


def add_commands(commands: Any) -> None:
    """Register `usage`."""
    parser = commands.add_parser(
        "usage",
        help="show what was used and what it cost",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tenant", metavar="NAME", help="of one tenant; all of them if this is not given")
    parser.add_argument("--by", choices=_GROUPINGS, default="day", help="what each line is of (default: day)")
    parser.add_argument("--since", metavar="DAY", help="the first day, such as 2026-11-01 (default: of the month)")
    parser.add_argument("--until", metavar="DAY", help="the last day, included (default: today)")
    parser.add_argument("--verify", action="store_true", help="compare the counters with the journals; status 1 if not")
    parser.add_argument("--rebuild", action="store_true", help="set the counters to what the journals say")
    parser.add_argument("--json", action="store_true", help="JSON lines on a terminal, too")
    add_setting_flags(parser, _SETTINGS)
    parser.set_defaults(run=_run_usage)


def _run_usage(arguments: argparse.Namespace) -> int:
    until = _day("--until", arguments.until) or now().date()
    since = _day("--since", arguments.since) or first_of_month(until)
    tenant = check_tenant(arguments.tenant) if arguments.tenant is not None else None
    try:
        of = periods(arguments.by, since, until)
    except ValueError as error:
        raise SettingsError(f"--{error}") from None
    settings = discovery.at_broker(load_variables(environment_with(arguments, os.environ)))
    traces.configure(replace(settings, log_level="error"), "meshctl")
    as_json = arguments.json or not output.for_people()
    if arguments.verify or arguments.rebuild:
        return asyncio.run(_verify(settings, rebuild=arguments.rebuild, as_json=as_json))
    return asyncio.run(_usage(settings, tenant, arguments.by, of, as_json=as_json))


async def _usage(settings: Settings, tenant: str | None, by: Grouping, of: list[str], *, as_json: bool) -> int:
    async with connected(settings) as connection:
        values = await counters.read(connection.requests, tenant, of)
    if as_json:
        for row in rows(values, by):
            output.json_line({"event": "usage", "by": by, **msgspec.to_builtins(row)})
        output.json_line(
            {"event": "usage.total", "since": of[0], "until": of[-1], **msgspec.to_builtins(total(values))}
        )
    else:
        output.show(usage_table(by, rows(values, by), total(values)))
    return 0


async def _verify(settings: Settings, *, rebuild: bool, as_json: bool) -> int:
    async with connected(settings) as connection:
        requests = connection.requests
        counting = Counting(requests, f"meshctl:{operator_name()}:{os.getpid()}")
        await _take(counting)
        try:
            found = await audit(requests, counting, settings.retention_age)
            if rebuild and found.differences:
                await counting.correct(corrections(found.differences))
        finally:
            with suppress(TaskmeshError):
                await counting.leave()
    _show(found, rebuilt=rebuild, as_json=as_json)
    return 0 if rebuild or not found.differences else STATUS_DIFFERENT


async def _take(counting: Counting) -> None:
    for _ in range(TRIES_MAX):
        if await counting.take(steal=True):
            return
    raise BrokerUnavailable("others write the record of the ledger at the same time; run it again")


def _show(found: Audit, *, rebuilt: bool, as_json: bool) -> None:
    shown = found.differences[:DIFFERENCES_SHOWN_MAX]
    if as_json:
        for each in shown:
            difference = {"counter": each.counter.subject, "should_be": each.should_be, "is": each.is_}
            output.json_line({"event": "usage.difference", **difference})
        output.json_line(
            {
                "event": "usage.verified",
                "since": found.since.isoformat(),
                "until": found.until.isoformat(),
                "turns": found.turns,
                "differences": len(found.differences),
                "unreadable": found.unreadable,
                "rebuilt": rebuilt and bool(found.differences),
            }
        )
        return
    if shown:
        output.show(differences_table(shown))
    behind = len(found.differences) - len(shown)
    if behind:
        output.show(f"and {behind:,} more")
    output.show(verdict(found, rebuilt=rebuilt))
    if found.unreadable:
        print(f"meshctl: {found.unreadable} events or packed tasks can't be read: they are in no sum", file=sys.stderr)


def verdict(found: Audit, *, rebuilt: bool) -> str:
    """What a comparison came to, in a sentence or two."""
    if found.since > found.until:
        return "No day can be held against its journals: they are kept for less than a day (MESH_RETENTION_DAYS)."
    what = f"{found.turns:,} turns since {found.since}"
    unseen = "Of days before that no journals are kept."
    if not found.differences:
        return f"The counters agree with the journals: {what}. {unseen}"
    differ = f"{len(found.differences):,} counters"
    if rebuilt:
        return f"{differ} were set to what the journals say: {what}. {unseen}"
    return f"{differ} differ from the journals: {what}. `meshctl usage --rebuild` sets them right. {unseen}"


def _day(flag: str, value: str | None) -> date | None:
    if value is None:
        return None
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise SettingsError(f"{flag}={value!r:.40}: must be a day, such as 2026-11-27") from None
