"""The end of a task whose last turn is completed."""

from __future__ import annotations

from collections.abc import Callable

from contracts.journal import events
from contracts.journal.events import JournalEvent, Stamp
from contracts.journal.parts import Timings
from mesh.steps.claimed_step import ClaimedStep
from mesh.task.budget import accounts, usage_so_far
from mesh.task.limits import incomplete_after
from mesh.task.state import TaskState


def end_of_task(step: ClaimedStep, turn: int) -> Callable[[Stamp], JournalEvent]:
    """Builds the event that ends the task of a step."""

    def build(stamp: Stamp) -> JournalEvent:
        return task_completed(stamp, step.state, turn)

    return build


def task_completed(stamp: Stamp, state: TaskState, turn: int) -> events.TaskCompleted:
    """The end of a task whose last turn is completed: that turn's text, and the usage of all of them."""
    completed = state.turn(turn).completed
    if completed is None:
        raise ValueError("the turn is not completed")
    incomplete = incomplete_after(state, completed)
    output = completed.text or (state.output_so_far or "" if incomplete else "")
    return events.TaskCompleted(
        *stamp,
        output=output,
        incomplete=incomplete,
        usage=usage_so_far(state),
        timings=_timings_of_all(stamp, state, completed.timings),
        **accounts(state),
    )


def _timings_of_all(stamp: Stamp, state: TaskState, last: Timings) -> Timings:
    """Of one turn its own; of several the first one's wait and first token, and all the time since its claim."""
    first, claim = state.turn(1).completed, state.claims.get(("1", state.gen("1")))
    if len(state.turns) == 1 or first is None or claim is None:
        return last
    return Timings(
        queued_seconds=first.timings.queued_seconds,
        first_token_seconds=first.timings.first_token_seconds,
        total_seconds=max(0.0, (stamp.time - claim.time).total_seconds()),
    )
