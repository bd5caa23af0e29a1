"""What a task that goes on waits for: the messages and timers that must exist now, by its journal. Pure.

`mesh.journal.reconciliation` looks for them, and puts back what is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from contracts import subjects
from contracts.identifiers import turn_step
from contracts.journal.parts import StepGen
from contracts.records.tools import ASK_USER
from mesh.task.decisions import FIRST_STEP
from mesh.task.limits import is_last_turn
from mesh.task.outbox import (
    OutboxMessage,
    deadline_timer,
    messages_of_replayed,
    messages_to_go_on,
    unasked,
)
from mesh.task.state import TaskState


@dataclass(frozen=True, slots=True)
class AwaitedStep:
    """A step that goes on by a work message.

    `bound_to`: the message's sequence, once it was claimed. Else it lies on `subject`, behind older ones at most; of a
    step that waits for its next try not before `due_at`: until then there is its `timer`.
    """

    step: StepGen
    subject: str
    bound_to: int | None
    due_at: datetime | None = None
    timer: OutboxMessage | None = None


@dataclass(frozen=True, slots=True)
class AwaitedTimer:
    """A timer that is due later, or was: it may be set again whatever has become of it."""

    message: OutboxMessage


@dataclass(frozen=True, slots=True)
class AwaitedChild:
    """A sub-task of which the parent has not heard that it is over. `message` is its first turn's."""

    call: str
    child: str
    message: OutboxMessage


Awaited = AwaitedStep | AwaitedTimer | AwaitedChild


def awaited(state: TaskState) -> list[Awaited]:
    """What a task that has not ended waits for. A step that gave up waits for nobody but people."""
    if state.queued is None or state.terminal is not None:
        return []
    found: list[Awaited] = [AwaitedTimer(timer) for timer in deadline_timer(state)]
    for step in _steps_due(state):
        found += _of_step(state, step)
    return found


def _steps_due(state: TaskState) -> list[str]:
    """The steps that the task goes on by: a turn, or the calls of one that have no result yet."""
    completed = state.last_completed
    if completed is None:
        return [FIRST_STEP]
    if is_last_turn(state, completed) or unasked(state, completed) is not None:
        return [turn_step(completed.turn)]  # Whoever completed it has still to record what it leads to.
    open_calls = [asked.call for asked in completed.calls if asked.call not in state.call_results]
    return open_calls or [turn_step(completed.turn + 1)]


def _of_step(state: TaskState, step: str) -> list[Awaited]:
    step_gen = (step, state.gen(step))
    if step_gen in state.dead_letters:
        return []
    due = messages_to_go_on(state, step)
    if step_gen in state.retry_at:
        [timer] = messages_of_replayed(state, step)
        at = state.retry_at[step_gen]
        return [AwaitedStep(StepGen(*step_gen), message.subject, None, at, timer) for message in due]
    started = state.children.get(step)
    if started is not None:
        return [AwaitedChild(step, started.child, message) for message in due]
    if _waits_for_a_person(state, step):
        return [AwaitedTimer(timer) for timer in due]
    return [
        AwaitedStep(StepGen(*step_gen), _lies_on(state, step, message), state.bindings.get(step_gen)) for message in due
    ]


def _waits_for_a_person(state: TaskState, step: str) -> bool:
    asked = state.asked_for(step) if "-" in step else None
    return asked is not None and (asked.tool == ASK_USER or (asked.approval and step not in state.resolutions))


def _lies_on(state: TaskState, step: str, message: OutboxMessage) -> str:
    """Where the message of a step lies that was not claimed: that of a task that was only accepted is in TASKS."""
    queued = state.queued
    if queued is not None and step == FIRST_STEP and state.gen(step) == 0 and state.message_epoch(step) == (0, 0):
        return subjects.tasks(queued.pool, queued.priority, state.tenant)
    return message.subject
