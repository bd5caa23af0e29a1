"""Retention: a turn's deltas go a day after it was completed, whole tasks some weeks after they have ended.

Two walks, each with a cursor, each from the oldest to the first that is too young. Records lie in the bucket
`tasks` in the order of their last change, and milestones in EVENTS in the order in which they happened. A task
that changes again moves to the end, so neither walk goes back: a round costs what has become due, however many
tasks there are. The cursors are kept in memory alone: doing any of this twice is the same as once.

How old a message is the broker says, who stamps each one as it stores it: so the order of a stream is that of its ages,
whatever time its writers go by.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog

from contracts import subjects
from contracts.codec import decode
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.journal import events
from contracts.journal.events import decode_event
from contracts.records.status import TaskRecord
from mesh.broker.direct_get import Stored, last_from_leader, read_page
from mesh.broker.requests import Requests
from mesh.clock import MESH_CLOCK, now
from mesh.configuration.settings import Settings
from mesh.loop_health import LoopHealth

log = structlog.get_logger("steward.retention")

ROUND_SECONDS = 1.0
"""At least this long between rounds when nothing more is due."""
SHARE_MAX = 0.1
"""How much of the time rounds may take while more is due: what they do not use is for those who wait."""
REST_SECONDS_MAX = 30.0
"""A round that stalled with its broker says nothing of how long the next one takes."""
RECORDS_PER_ROUND_MAX = 50
"""Each costs a few requests: a round must not crowd out what people wait for."""
MILESTONES_PER_ROUND_MAX = 256
"""Each is read once, and one in four, or fewer, completes a turn, which costs a request."""
QUEUE_MARGIN = timedelta(hours=1)
"""In a cluster each stream is stamped by a leader of its own."""
_QUEUES = ("TASKS", "TURNS", "TOOLS")


@dataclass(slots=True)
class DeltasDue:
    """What a piece of the walk along the milestones came to."""

    cursor: int
    """Sequence of the last milestone that was looked at, and is done with."""
    below: dict[str, int] = field(default_factory=dict)
    """For each `.delta` subject the sequence below which it may be purged."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Subject and error of what was passed over."""
    met_young: bool = False
    """Whether it ended at a milestone that is too young."""


def task_may_go(last: Stored | None, cutoff: datetime) -> bool:
    """Whether a task's record and journal may go, by the journal's last milestone as the leader has it.

    Without a journal it was purged before, and a record that is there all the same came late.
    """
    if last is None:
        return True
    event = decode_event(last.payload)
    return isinstance(event, events.TerminalEvent) and last.stored_at <= cutoff


def deltas_due(milestones: list[Stored], cursor: int, cutoff: datetime) -> DeltasDue:
    """Which deltas may go by the next milestones of all journals: those of turns whose end was stored by `cutoff`.

    What can't be read is for people to look at, and must not keep the others.
    """
    due = DeltasDue(cursor)
    for stored in milestones:
        if stored.stored_at > cutoff:
            due.met_young = True
            break
        try:
            journal = subjects.parse_journal(stored.subject)
            event = decode_event(stored.payload)
        except TaskmeshError as error:
            due.unreadable.append((stored.subject, str(error)))
        else:
            if isinstance(event, events.TurnCompleted):
                due.below[subjects.journal_delta(journal.tenant, journal.task)] = stored.sequence
        due.cursor = stored.sequence
    return due


def time_of_the_broker() -> datetime | None:
    """The time, once the broker has told it: a purge can't be taken back, and this machine's clock may be wrong."""
    return now() if MESH_CLOCK.is_learnt else None


def pause_seconds(round_seconds: float, *, more: bool) -> float:
    """How long to rest after a round that took this long: the slower the broker answers, the longer."""
    rest = min(REST_SECONDS_MAX, round_seconds * (1 / SHARE_MAX - 1))
    return rest if more else max(ROUND_SECONDS, rest)


class Retention:
    """Purges what is due, a little at a time."""

    def __init__(
        self, requests: Requests, settings: Settings, clock: Callable[[], datetime | None] = time_of_the_broker
    ) -> None:
        self._requests = requests
        self._clock = clock
        self._task_age = timedelta(days=settings.retention_days)
        self._delta_age = timedelta(hours=settings.delta_retention_hours)
        self._task_cursor = 0
        self._delta_cursor = 0

    async def run(self) -> None:
        """Keep purging until cancelled."""
        health = LoopHealth(log, "retention.unavailable")
        while True:
            began_at = time.monotonic()
            more = False
            try:
                more = await self.round()
                health.succeeded()
            except TaskmeshError as error:
                health.failed(error)
            await asyncio.sleep(pause_seconds(time.monotonic() - began_at, more=more))

    async def round(self) -> bool:
        """Look at the next records and milestones, and purge what is due of them. Raises `TaskmeshError`.

        Whether more may be due: one of the walks ended at its bound.
        """
        at = self._clock()
        if at is None:
            return False
        more_tasks = await self._purge_tasks(await self._task_cutoff(at))
        more_deltas = await self._purge_deltas(at - self._delta_age)
        return more_tasks or more_deltas

    async def _purge_tasks(self, cutoff: datetime) -> bool:
        page = await read_page(self._requests, "KV_tasks", "$KV.tasks.>", self._task_cursor, RECORDS_PER_ROUND_MAX)
        for message in page.messages:
            if message.stored_at > cutoff:
                return False
            try:
                if message.payload:
                    await self._purge_task(decode(message.payload, TaskRecord), message.sequence, cutoff)
            except InvalidPayload as error:
                # It is for people to look at, and must not keep the others.
                log.error("retention.unreadable", subject=message.subject, error=str(error))
            self._task_cursor = message.sequence
        return page.more

    async def _purge_deltas(self, cutoff: datetime) -> bool:
        page = await read_page(
            self._requests, "EVENTS", subjects.EVENTS_LOG, self._delta_cursor, MILESTONES_PER_ROUND_MAX
        )
        due = deltas_due(page.messages, self._delta_cursor, cutoff)
        for subject, below in due.below.items():
            await self._purge("EVENTS", subject, below)
        for subject, error in due.unreadable:
            log.error("retention.unreadable", subject=subject, error=error)
        self._delta_cursor = due.cursor
        return page.more and not due.met_young

    async def _task_cutoff(self, at: datetime) -> datetime:
        """Ended by then, a task may go. Never while a queue holds a message as old: it could begin the task anew."""
        cutoff = at - self._task_age
        for queue in _QUEUES:
            state = (await self._requests.api(f"STREAM.INFO.{queue}"))["state"]
            if state["messages"]:
                cutoff = min(cutoff, decode(f'"{state["first_ts"]}"'.encode(), datetime) - QUEUE_MARGIN)
        return cutoff

    async def _purge_task(self, record: TaskRecord, sequence: int, cutoff: datetime) -> None:
        """Purge a task if it may go. `sequence`: of its record in the bucket's stream."""
        tenant, task = record.tenant, record.id
        last = await last_from_leader(self._requests, "EVENTS", subjects.journal_log(tenant, task))
        if not task_may_go(last, cutoff):
            return
        if last is not None:
            await self._purge("EVENTS", subjects.journal(tenant, task), last.sequence + 1)
        await self._purge("DEAD_LETTERS", subjects.dead_letter(tenant, task))
        # The record goes last: while it is there, what a steward that died in between left is made up for.
        await self._purge("KV_tasks", f"$KV.tasks.{subjects.task_key(tenant, task)}", sequence + 1)
        log.info("task.purged", task=task, tenant=tenant)

    async def _purge(self, stream: str, subject_filter: str, below: int | None = None) -> None:
        """Purge a subject; `below`: only what has a lower sequence. Nothing to purge is as good."""
        body: dict[str, Any] = {"filter": subject_filter}
        if below is not None:
            body["seq"] = below
        await self._requests.api(f"STREAM.PURGE.{stream}", body)
