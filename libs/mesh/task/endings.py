"""How a task ends that nobody lets end by itself. Pure."""

from __future__ import annotations

from contracts.journal import events
from contracts.journal.events import Stamp
from contracts.journal.parts import Timings
from mesh.task.budget import accounts_cut_short, lost_calls, usage_so_far, with_lost
from mesh.task.state import TaskState


def ended_by_deadline(stamp: Stamp, state: TaskState) -> events.TaskCompleted | events.TaskExpired:
    """The end of a task whose deadline has passed: with what there is as its output, expired if there is nothing."""
    output = state.output_so_far
    if not output:
        return events.TaskExpired(*stamp, **accounts_cut_short(state))
    claims = [claim.time for claim in state.claims.values()]
    seconds = max(0.0, (stamp.time - min(claims)).total_seconds()) if claims else None
    return events.TaskCompleted(
        *stamp,
        output=output,
        incomplete="deadline",
        usage=with_lost(usage_so_far(state), lost_calls(state)),
        timings=Timings(total_seconds=seconds),
        **accounts_cut_short(state),
    )
