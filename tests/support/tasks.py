"""Making tasks and journals in tests."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from contracts import subjects
from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.journal.events import OutputDelta, StepClaimed, TaskCompleted, TurnCompleted
from contracts.journal.parts import Incomplete, Timings, Usage
from contracts.messages.work import TurnWork
from contracts.tasks import TaskRequest
from mesh.broker.requests import PubAck, Requests
from mesh.journal.journal import Journal
from mesh.task.decisions import base_of_claim, queued_event


def turn_work(
    task: str | None = None, text: str = "hello", tenant: str = "default", *, deadline_seconds: float | None = None
) -> TurnWork:
    """A first turn, as the ingress would publish it."""
    accepted_at = datetime.now(UTC)
    return TurnWork(
        task=task or new_id(),
        tenant=tenant,
        turn=1,
        pool="default",
        priority="normal",
        request=TaskRequest(input=text),
        accepted_at=accepted_at,
        deadline=accepted_at + timedelta(seconds=deadline_seconds) if deadline_seconds is not None else None,
    )


async def publish_work(requests: Requests, work: TurnWork) -> PubAck:
    """Put a first turn into TASKS, without a journal."""
    return await requests.publish(subjects.tasks(work.pool, work.priority, work.tenant), encode(work))


async def begin_journal(requests: Requests, work: TurnWork) -> Journal:
    """A journal whose first turn has been claimed."""
    journal = Journal(requests, work.tenant, work.task)
    await journal.append(lambda stamp: queued_event(stamp, work), lambda state: not state.exists)
    await claim_first_turn(journal, "test")
    return journal


async def claim_first_turn(journal: Journal, worker: str) -> None:
    """Claim a task's first turn, as a worker would that has its work message."""
    message = journal.state.bindings.get(("1", 0), 1)
    await journal.append(
        lambda stamp: StepClaimed(
            *stamp,
            step="1",
            gen=0,
            message=message,
            worker=worker,
            delivery=2,
            turn=1,
            base=base_of_claim(journal.state, 1, stamp.n),
        ),
        lambda _: True,
    )


async def append_text(journal: Journal, text: str, turn: int = 1) -> None:
    """One more delta."""
    await journal.append(lambda stamp: OutputDelta(*stamp, turn=turn, text=text), lambda _: True)


async def complete_turn(journal: Journal, turn: int = 1) -> None:
    """End a turn with the text that it has."""
    await complete_with(journal, journal.state.turn(turn).text, turn)


async def complete_with(journal: Journal, text: str, turn: int = 1) -> None:
    """End a turn with any text."""
    await journal.append(
        lambda stamp: TurnCompleted(
            *stamp, turn=turn, text=text, finish_reason="stop", usage=Usage(), timings=Timings()
        ),
        lambda _: True,
    )


async def until_written(journal: Journal, n: int) -> None:
    """Wait until somebody has written event `n` through this journal. Gives way, but never sleeps past it."""
    while journal.state.next_n < n:  # noqa: ASYNC110 - the writer has no event to wait for, and must not be slowed
        await asyncio.sleep(0)


async def end_task(journal: Journal, incomplete: Incomplete | None = None) -> None:
    """The terminal event."""
    await journal.append(
        lambda stamp: TaskCompleted(*stamp, output="", incomplete=incomplete, usage=Usage(), timings=Timings()),
        lambda _: True,
    )
