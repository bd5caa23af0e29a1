"""Tasks of the past: journals written straight into the streams, and so fast, whose events bear any time.

How old they are the broker says, who has just stored them: who judges them looks from a later day.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from contracts import subjects
from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.identifiers import new_id
from contracts.journal import events
from contracts.journal.events import JournalEvent, Stamp
from contracts.journal.parts import Timings, Usage
from contracts.messages.work import DeadLetter
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.task.decisions import queued_event
from mesh.task.fold import fold
from mesh.task.records import record
from mesh.task.state import TaskState
from tests.support.tasks import turn_work

WRITERS = 128
"""Tasks that are written at once."""
LOG_EVENTS = 4
"""Milestones of each task that `store` writes, beside one delta."""
_WORK = turn_work()


async def time_of_the_broker(requests: Requests) -> datetime:
    """What lies between all that is stored by now and all that will be."""
    return datetime.fromisoformat((await requests.api("STREAM.INFO.EVENTS"))["ts"])


class PastJournal:
    """A journal of which nobody else knows: no fence, and each event at a time of one's own."""

    def __init__(self, requests: Requests, task: str | None = None) -> None:
        self.state = TaskState("default", task or new_id())
        self._requests = requests

    async def add(self, kind: Callable[..., Any], time: datetime, **fields: Any) -> JournalEvent:
        """Append and fold an event that happened at this time."""
        event: JournalEvent = kind(*self._stamp(time), **fields)
        await self._write(event)
        return event

    async def begin(self, time: datetime) -> None:
        """The first event."""
        await self._write(queued_event(self._stamp(time), _WORK))

    async def turn(self, time: datetime, number: int = 1, deltas: int = 1) -> None:
        """A turn from its claim to its completion, all at this time."""
        claim = {"step": str(number), "gen": 0, "message": 1, "worker": "past", "delivery": 1, "turn": number}
        await self.add(events.StepClaimed, time, **claim)
        for _ in range(deltas):
            await self.add(events.OutputDelta, time, turn=number, text="token ")
        text = self.state.turn(number).text
        fields = {"finish_reason": "stop", "usage": Usage(), "timings": Timings()}
        await self.add(events.TurnCompleted, time, turn=number, text=text, **fields)

    async def end(self, time: datetime) -> None:
        """The terminal event."""
        await self.add(events.TaskCompleted, time, output="token ", usage=Usage(), timings=Timings())

    async def project(self) -> None:
        """Write the record, as the newest of all."""
        key = subjects.task_key(self.state.tenant, self.state.task)
        await key_value.put(self._requests, "tasks", key, encode(record(self.state)))

    def _stamp(self, time: datetime) -> Stamp:
        return Stamp(new_id(), self.state.task, self.state.tenant, self.state.next_n, time)

    async def _write(self, event: JournalEvent) -> None:
        state = self.state
        part = subjects.journal_delta if events.is_delta(event) else subjects.journal_log
        ack = await self._requests.publish(part(state.tenant, state.task), encode(event))
        fold(state, ack.seq, event)


@dataclass(frozen=True)
class PastTask:
    """A task of one turn. `dead_letter`: it has one in DEAD_LETTERS as well.

    Its writers' clocks were behind by `behind`.
    """

    ended: bool
    dead_letter: bool = False
    behind: timedelta = timedelta()


async def store(requests: Requests, tasks: Sequence[PastTask]) -> list[str]:
    """Write tasks with journal, record and dead letter, many at once and about in this order; their ids, in order."""
    ids = [new_id() for _ in tasks]
    waiting = iter(zip(ids, tasks, strict=True))

    async def write() -> None:
        for task, past in waiting:
            await _store_one(requests, task, past)

    async with asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            group.create_task(write())
    return ids


async def _store_one(requests: Requests, task: str, past: PastTask) -> None:
    time = now() - past.behind
    journal = PastJournal(requests, task)
    await journal.begin(time)
    await journal.turn(time)
    if past.dead_letter:
        error = ErrorInfo(code="internal", message="made up")
        await journal.add(events.TaskDeadLettered, time, step="1", gen=0, error=error, deliveries=5)
    if past.ended:
        await journal.end(time)
    else:
        await journal.add(events.InputRequested, time, question="Go on?")
    if past.dead_letter:
        letter = DeadLetter(
            id=new_id(),
            time=time,
            stream="TASKS",
            subject=subjects.tasks("default", "normal", "default"),
            sequence=1,
            deliveries=5,
            message="{}",
            errors=[ErrorInfo(code="internal", message="made up")],
            tenant="default",
            task=task,
        )
        await requests.publish(subjects.dead_letter("default", task), encode(letter))
    await journal.project()


async def stored_messages(requests: Requests, stream: str) -> dict[str, int]:
    """How many messages lie on each subject of a stream."""
    counts: dict[str, int] = {}
    total = 1
    while len(counts) < total:
        # The server answers with so many subjects at most, and says how many there are.
        info = await requests.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">", "offset": len(counts)})
        page = info["state"].get("subjects") or {}
        if not page:
            break
        counts |= page
        total = int(info.get("total") or len(counts))
    return counts


def stored_subjects(task: str, past: PastTask, *, deltas: bool) -> dict[str, int]:
    """What is to be found of a task that `store` has written, and how many messages; with its deltas or without."""
    found = {
        subjects.journal_log("default", task): LOG_EVENTS + past.dead_letter,
        f"$KV.tasks.{subjects.task_key('default', task)}": 1,
    }
    if deltas:
        found[subjects.journal_delta("default", task)] = 1
    if past.dead_letter:
        found[subjects.dead_letter("default", task)] = 1
    return found
