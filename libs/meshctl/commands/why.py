"""`meshctl why`: what a task waits for."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from contracts.api.pools import LaneState, PoolState, TenantShare
from contracts.records.status import TaskRecord
from meshctl.client import Client
from meshctl.commands.tasks import client_of
from meshctl.display import output
from meshctl.display.pool_tables import basis_text, seconds_text
from meshctl.errors import ApiError

_DESCRIPTION = """\
Say in one sentence what a task waits for: a place in its queue and how many stand before it, somebody who is
not there, a person and until when, a timer, a provider that is down, what people have paused, or a sub-task; or
that it is being carried out, by whom and since when. Of one that has not begun also: its place in line, about
when it begins and what that is worked out from, its tenant's share of the tokens used of late in its pool, and
how fast its lane goes.

Into a pipe: a JSON object with task, status, and waiting and queue as the task's record has them, and share and
lane as GET /v1/pools does; null where there is none.
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register `why`."""
    why = commands.add_parser(
        "why",
        parents=[common],
        help="say what a task waits for",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    why.add_argument("task", help="id of the task")
    why.set_defaults(run=_run_why)


def _run_why(arguments: argparse.Namespace) -> int:
    return asyncio.run(_why(arguments))


async def _why(arguments: argparse.Namespace) -> int:
    async with client_of(arguments) as client:
        record = (await client.get(arguments.task)).value
        pool = await _pool_of(client, record) if record.queue is not None else None
    share, lane = _parts(record, pool)
    if output.for_people():
        for line in [sentence(record), *place_lines(record, pool)]:
            print(output.printable(line))
    else:
        told = {"task": record.id, "status": record.status, "waiting": record.waiting, "queue": record.queue}
        output.json_line({**told, "share": share, "lane": lane})
    return 0


async def _pool_of(client: Client, record: TaskRecord) -> PoolState | None:
    """The pool of a task; None of an ingress that tells of none."""
    try:
        pools = (await client.pools()).value.pools
    except ApiError:
        return None
    return next((pool for pool in pools if pool.pool == record.pool), None)


def sentence(record: TaskRecord) -> str:
    """What a task waits for, for people."""
    if record.waiting is not None:
        return record.waiting.detail
    return f"Nothing: it is {record.status} since {record.updated_at:%Y-%m-%d %H:%M:%S} UTC."


def place_lines(record: TaskRecord, pool: PoolState | None) -> list[str]:
    """Where a task stands that has not begun, when it begins, its tenant's share, and how fast its lane goes."""
    queue = record.queue
    if queue is None or queue.basis == "begun":
        return []
    place = f"Its place in line: {queue.position:,}." if queue.position is not None else "Its place is not known."
    when = f"no time can be told ({basis_text(queue.basis)})"
    if queue.eta_seconds is not None:
        when = "it begins at once" if queue.basis == "free" else f"it begins in about {seconds_text(queue.eta_seconds)}"
        when += f" ({basis_text(queue.basis)})"
    lines = [f"{place} By what is known now {when}."]
    share, lane = _parts(record, pool)
    if share is not None:
        used = f"Of the tokens used of late in pool {record.pool}, {share.share:.0%}"
        lines.append(f"{used} were tenant {share.tenant}'s.")
    if lane is not None and lane.tasks_per_second:
        lines.append(f"Lane {record.pool}, {record.priority} begins {lane.tasks_per_second:.2f} tasks a second.")
    if pool is not None:
        paced = [(each.provider, each.room) for each in pool.providers if each.room is not None]
        lines += [f"Provider {provider} has {room:.0%} of its pace left." for provider, room in paced]
    return lines


def _parts(record: TaskRecord, pool: PoolState | None) -> tuple[TenantShare | None, LaneState | None]:
    """A task's tenant and lane among what is told of its pool."""
    if pool is None:
        return None, None
    share = next((each for each in pool.tenants if each.tenant == record.tenant), None)
    return share, next((each for each in pool.lanes if each.priority == record.priority), None)
