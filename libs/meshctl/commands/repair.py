"""`meshctl repair`: tasks that wait for a message which is gone, found and put back, all at once."""

from __future__ import annotations

import argparse
import asyncio
import os
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from contracts.errors import TaskmeshError
from mesh.configuration.settings import Settings, load_variables
from mesh.errors import BrokerUnavailable
from mesh.journal.reconciliation import Found, OpenTask, Reconciliation
from mesh.telemetry import traces
from meshctl.display import output
from meshctl.flags import add_setting_flags, environment_with
from meshctl.supervision import discovery
from meshctl.supervision.acts import tell_act
from meshctl.supervision.broker_setup import connected

RECORDS_AT_ONCE_MAX: Final = 200
_SETTINGS = ("home", "nats_url", "nats_domain", "nats_port", "ack_wait_seconds", "reconcile_after_seconds")


def add_commands(commands: Any) -> None:
    """Register `repair`."""
    text = (
        "Find tasks that wait for a message or a timer which is gone from the broker, such as after a stream was purged"
        " by hand, and publish it again; and journals without a record, as after a restore, which get one. The steward"
        " does the first by itself, a little at a time. A task that changed within the last minute is left alone. Twice"
        " is the same as once."
    )
    parser = commands.add_parser("repair", help="put back what is gone from the broker", description=text)
    add_setting_flags(parser, _SETTINGS)
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    settings = discovery.at_broker(load_variables(environment_with(arguments, os.environ)))
    # What the connection has to say is said by the error, in one line.
    traces.configure(replace(settings, log_level="error"), "meshctl")
    return asyncio.run(_repair(settings, dry_run=arguments.dry_run))


@dataclass
class _Counts:
    looked_at: int = 0
    found: int = 0
    unreadable: int = 0


async def _repair(settings: Settings, *, dry_run: bool) -> int:
    counts = _Counts()
    async with connected(settings) as connection:
        reconciliation = Reconciliation(connection.requests, settings.reconcile_after_seconds)
        at = await reconciliation.broker_time()
        cursor, more = 0, True
        while more:
            walk = await reconciliation.walk(cursor, at, RECORDS_AT_ONCE_MAX, RECORDS_AT_ONCE_MAX)
            cursor, more = walk.cursor, walk.more
            counts.looked_at += walk.looked_at
            await _repair_each(reconciliation, walk.open, at, counts, dry_run=dry_run)
        await _repair_each(reconciliation, await reconciliation.unrecorded(), at, counts, dry_run=dry_run)
        if counts.found and not dry_run:
            await tell_act(connection, "repair")
    _tell_end(counts.looked_at, counts.found, counts.unreadable, dry_run=dry_run)
    return 1 if counts.unreadable else 0


async def _repair_each(
    reconciliation: Reconciliation, tasks: list[OpenTask], at: datetime, counts: _Counts, *, dry_run: bool
) -> None:
    for task in tasks:
        try:
            found = await reconciliation.examine(task, at)
            done = found is not None and not dry_run and await reconciliation.put_back(found)
        except BrokerUnavailable:
            raise
        except TaskmeshError as error:
            counts.unreadable += 1
            _tell_unreadable(task.task, error)
            continue
        if found is not None:
            counts.found += 1
            _tell(found, done=done, dry_run=dry_run)


def _tell(found: Found, *, done: bool, dry_run: bool) -> None:
    lost = [{"kind": each.kind, "name": each.name} for each in found.lost]
    if output.for_people():
        verb = "would put back" if dry_run else "put back" if done else "goes on by itself:"
        names = ", ".join(f"{each.kind} {each.name}" for each in found.lost)
        print(output.printable(f"{found.task}  {verb} {names}"), flush=True)
    else:
        event = "task.found" if dry_run else "task.put_back" if done else "task.went_on"
        output.json_line({"event": event, "task": found.task, "tenant": found.tenant, "lost": lost})


def _tell_unreadable(task: str, error: TaskmeshError) -> None:
    if output.for_people():
        print(output.printable(f"{task}  can't be read by this version: {error}"), flush=True)
    else:
        output.json_line({"event": "task.unreadable", "task": task, "error": str(error)})


def _tell_end(looked_at: int, found: int, unreadable: int, *, dry_run: bool) -> None:
    if output.for_people():
        verb = "would be put back" if dry_run else "found and put back"
        print(f"{looked_at} records looked at, {found} tasks {verb}" + (f", {unreadable} unread" if unreadable else ""))
    else:
        counts = {"looked_at": looked_at, "found": found, "unreadable": unreadable}
        output.json_line({"event": "repair.done", "dry_run": dry_run, **counts})
