"""Retention: deltas go a day after their turn was completed, whole tasks some weeks after they have ended.

The records in the bucket `tasks` lie in the order of their last change, so two cursors walk through them from
the oldest: each stops at the first record that is too young, and never goes back, since a task that changes
moves to the end. A round so costs what has become due, however many tasks there are. The cursors are kept in
memory alone: doing any of this twice is the same as once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from contracts import events, subjects
from contracts.codec import decode
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.events import decode_event
from contracts.status import TaskRecord
from mesh.clock import now
from mesh.reading import Stored, last_from_leader, read_page
from mesh.requests import Requests
from mesh.settings import Settings

log = structlog.get_logger("steward.retention")

ROUND_SECONDS = 1.0
RECORDS_PER_ROUND_MAX = 50
"""Each costs a few requests: a round must not crowd out what people wait for."""
QUEUE_MARGIN = timedelta(hours=1)
"""The queues' clock is the broker's, the journals' that of many machines."""
_QUEUES = ("TASKS", "TURNS", "TOOLS")


@dataclass(frozen=True, slots=True)
class Look:
    """A record, and its sequence in the bucket's stream."""

    sequence: int
    record: TaskRecord


def task_may_go(last: Stored | None, cutoff: datetime) -> bool:
    """Whether a task's record and journal may go, by the journal's last milestone as the leader has it.

    Without a journal it was purged before, and a record that is there all the same came late.
    """
    if last is None:
        return True
    event = decode_event(last.payload)
    return isinstance(event, events.TerminalEvent) and event.time <= cutoff


def deltas_end(log_part: list[Stored], cutoff: datetime) -> int:
    """Sequence below which a journal's deltas may go: its last `turn.completed` that is old enough. 0: none may."""
    end = 0
    for stored in log_part:
        event = decode_event(stored.payload)
        if isinstance(event, events.TurnCompleted) and event.time <= cutoff:
            end = stored.sequence
    return end


class Retention:
    """Purges what is due, a little at a time."""

    def __init__(self, requests: Requests, settings: Settings) -> None:
        self._requests = requests
        self._task_age = timedelta(days=settings.retention_days)
        self._delta_age = timedelta(hours=settings.delta_retention_hours)
        self._task_cursor = 0
        self._delta_cursor = 0

    async def run(self) -> None:
        """Keep purging until cancelled."""
        complained = False
        while True:
            try:
                await self.round()
                complained = False
            except TaskmeshError as error:
                if not complained:
                    log.warning("retention.unavailable", error=str(error))
                complained = True
            await asyncio.sleep(ROUND_SECONDS)

    async def round(self) -> None:
        """Purge at most `RECORDS_PER_ROUND_MAX` tasks, and the deltas of as many. Raises `TaskmeshError`."""
        time = now()
        cutoff = await self._task_cutoff(time)

        async def purge_task(look: Look) -> None:
            await self._purge_task(look, cutoff)
            self._task_cursor = look.sequence

        async def purge_deltas(look: Look) -> None:
            await self._purge_deltas(look.record, time - self._delta_age)
            self._delta_cursor = look.sequence

        await self._walk(self._task_cursor, cutoff, purge_task)
        await self._walk(self._delta_cursor, time - self._delta_age, purge_deltas)

    async def _walk(self, cursor: int, cutoff: datetime, act: Callable[[Look], Awaitable[None]]) -> None:
        page = await read_page(self._requests, "KV_tasks", "$KV.tasks.>", cursor, RECORDS_PER_ROUND_MAX)
        for message in page.messages:
            if not message.payload:
                continue
            try:
                record = decode(message.payload, TaskRecord)
                if record.updated_at > cutoff:
                    return
                await act(Look(message.sequence, record))
            except InvalidPayload as error:
                # It is for people to look at, and must not keep the others.
                log.error("retention.unreadable", subject=message.subject, error=str(error))

    async def _task_cutoff(self, time: datetime) -> datetime:
        """Ended by then, a task may go. Never while a queue holds a message as old: it could begin the task anew."""
        cutoff = time - self._task_age
        for queue in _QUEUES:
            state = (await self._requests.api(f"STREAM.INFO.{queue}"))["state"]
            if state["messages"]:
                cutoff = min(cutoff, decode(f'"{state["first_ts"]}"'.encode(), datetime) - QUEUE_MARGIN)
        return cutoff

    async def _purge_task(self, look: Look, cutoff: datetime) -> None:
        tenant, task = look.record.tenant, look.record.id
        last = await last_from_leader(self._requests, "EVENTS", subjects.journal_log(tenant, task))
        if not task_may_go(last, cutoff):
            return
        if last is not None:
            await self._purge("EVENTS", subjects.journal(tenant, task), last.sequence + 1)
        await self._purge("DEAD_LETTERS", subjects.dead_letter(tenant, task))
        # The record goes last: while it is there, what a steward that died in between left is made up for.
        await self._purge("KV_tasks", f"$KV.tasks.{subjects.task_key(tenant, task)}", look.sequence + 1)
        log.info("task.purged", task=task, tenant=tenant)

    async def _purge_deltas(self, record: TaskRecord, cutoff: datetime) -> None:
        messages: list[Stored] = []
        more = True
        while more:
            after = messages[-1].sequence if messages else 0
            log_subject = subjects.journal_log(record.tenant, record.id)
            page, more = await read_page(self._requests, "EVENTS", log_subject, after)
            messages += page
        end = deltas_end(messages, cutoff)
        if end:
            await self._purge("EVENTS", subjects.journal_delta(record.tenant, record.id), end)

    async def _purge(self, stream: str, subject_filter: str, below: int | None = None) -> None:
        """Purge a subject; `below`: only what has a lower sequence. Nothing to purge is as good."""
        body: dict[str, Any] = {"filter": subject_filter}
        if below is not None:
            body["seq"] = below
        await self._requests.api(f"STREAM.PURGE.{stream}", body)
