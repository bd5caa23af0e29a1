"""`meshctl cancel --all`: stop many tasks, once it was shown which they are."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from datetime import datetime
from typing import Any, Final

from contracts.api.valves import CancelAnswer
from contracts.records.status import ENDED, STATUSES, TaskRecord
from contracts.subjects import PRIORITIES
from meshctl import times
from meshctl.client import Client
from meshctl.display import output
from meshctl.display.tables import tasks_table
from meshctl.errors import ApiError, MeshctlError, Unreachable

PASSES_MAX: Final = 20
"""How often all tasks are met: those that change meanwhile may be passed over."""
OUTAGE_SECONDS_MAX: Final = 120.0
"""How long nothing may get through before it is given up. It goes on where it was if it is asked for again."""
AGAIN_SECONDS: Final = 1.0
_AGAIN_CODES: Final = frozenset({"queue-full", "broker-unavailable", "list-unavailable", "rate-limited"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `--all` takes."""
    many = parser.add_argument_group("many at once")
    many.add_argument(
        "--all", action="store_true", help="all tasks of the tenant that fit: show how many, and some of them"
    )
    many.add_argument("--yes", action="store_true", help="and stop them")
    open_now = [status for status in STATUSES if status not in ENDED]
    many.add_argument("--status", choices=open_now, metavar="STATUS", help=f"only: {', '.join(open_now)}")
    many.add_argument("--pool", help="only those of a pool")
    many.add_argument("--priority", choices=PRIORITIES, help="only those of a lane")
    many.add_argument(
        "--older-than", metavar="SPAN", type=times.span, help="only those that were accepted so long ago, such as 1h"
    )
    many.add_argument(
        "--before",
        metavar="TIME",
        type=times.time,
        help="only those that were accepted before then (RFC 3339): what is shown names a time",
    )
    many.add_argument(
        "--metadata", metavar="K=V", type=_pair, action="append", default=[], help="only those with this value"
    )
    many.add_argument("--reason", metavar="TEXT", help="why: it is in each task's last event")


async def cancel_many(client: Client, arguments: argparse.Namespace) -> int:
    """Show which tasks fit; with `--yes`, stop them."""
    wanted: dict[str, Any] = {
        "status": arguments.status,
        "pool": arguments.pool,
        "priority": arguments.priority,
        "older_than_seconds": arguments.older_than.total_seconds() if arguments.older_than is not None else None,
        "created_before": arguments.before,
        "metadata": dict(arguments.metadata) or None,
        "reason": arguments.reason,
    }
    wanted = {key: value for key, value in wanted.items() if value is not None}
    if not arguments.yes:
        return await _show(client, wanted)
    met, asked, already = 0, 0, 0
    for _ in range(PASSES_MAX):
        counts: Counter[str] = Counter()
        try:
            await _pass(client, wanted, counts)
        except BaseException:
            # Also of a Ctrl-C: what was asked is done, whoever asked it.
            asked += counts["asked"]
            print(f"meshctl: broken off: {asked:,} tasks are being stopped; the same again goes on", file=sys.stderr)
            raise
        met, asked, already = counts["matched"], asked + counts["asked"], counts["already"]
        if not counts["asked"]:
            break
    if output.for_people():
        print(f"{asked:,} tasks will be stopped" + (f"; {already:,} are being stopped already" if already else ""))
    else:
        output.json_line({"event": "tasks.cancelled", "asked": asked, "already": already, "left": met - already})
    return 0


async def _show(client: Client, wanted: dict[str, Any]) -> int:
    counts: Counter[str] = Counter()
    sample: list[TaskRecord] = []
    cursor: str | None = None
    before: datetime | None = None
    while True:
        answer = await _again(client, {**wanted, "dry_run": True, **({"cursor": cursor} if cursor else {})})
        counts.update(answer.by_status)
        sample = sample or answer.sample
        before = before or answer.created_before
        cursor = answer.cursor
        if cursor is None:
            break
    if not output.for_people():
        told = {"matched": counts.total(), "by_status": counts, "sample": sample}
        output.json_line({**told, **({"created_before": before} if before is not None else {})})
    elif not counts:
        print("no task fits that has not ended")
    else:
        by_status = ", ".join(f"{count:,} {status}" for status, count in counts.items() if count)
        output.show(tasks_table(sample))
        print(f"\n{counts.total():,} tasks fit ({by_status}). The same with --yes stops them, and what came since.")
        if before is not None:
            print(f"With --before {before.isoformat()} it stops none that came later.")
    return 0


async def _pass(client: Client, wanted: dict[str, Any], counts: Counter[str]) -> None:
    """Meet all tasks that fit once, and count them."""
    cursor: str | None = None
    with output.progress("cancelling") as tell:
        while True:
            answer = await _again(client, {**wanted, **({"cursor": cursor} if cursor else {})})
            counts.update(matched=answer.matched, asked=answer.asked, already=answer.already)
            tell(f"cancelling: {counts['asked']:,} asked")
            cursor = answer.cursor
            if cursor is None:
                return


async def _again(client: Client, body: dict[str, Any]) -> CancelAnswer:
    """One piece, asked for as often as it takes while the mesh says that it is busy, or says nothing."""
    give_up_at = time.monotonic() + OUTAGE_SECONDS_MAX
    while True:
        try:
            return (await client.cancel_many(body)).value
        except (ApiError, Unreachable) as error:
            may_come = isinstance(error, Unreachable) or error.code in _AGAIN_CODES
            if not may_come or time.monotonic() >= give_up_at:
                raise
            print(f"meshctl: {error.code}: {error}; going on", file=sys.stderr, flush=True)
        await asyncio.sleep(AGAIN_SECONDS)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Either one task or all that fit. Raises `MeshctlError`."""
    if arguments.all == (arguments.task is not None):
        raise MeshctlError("cancel: name one task, or say --all", code="invalid-request")
    options = ("yes", "status", "pool", "priority", "older_than", "before", "reason")
    named = [name for name in options if getattr(arguments, name)]
    if not arguments.all and (named or arguments.metadata):
        told = (named or ["metadata"])[0].replace("_", "-")
        raise MeshctlError(f"cancel: --{told} goes with --all", code="invalid-request")


def _pair(raw: str) -> tuple[str, str]:
    key, equals, value = raw.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError("must be <key>=<value>")
    return key, value
