"""Why a turn begins again, and how often it was tried. Pure."""

from __future__ import annotations

from contracts.messages.work import TurnWork
from inference_worker.models.candidates import Candidate
from inference_worker.turn.attempts import is_redirected
from mesh.task.state import TaskState


def restart_reason(state: TaskState, work: TurnWork, candidate: Candidate) -> str | None:
    """Why the turn has to begin again; None if it goes on with what there is."""
    turn = state.turn(work.turn)
    if is_redirected(state, work.turn):
        return "redirect"
    if not turn.parts and not turn.reasoning:
        return None
    if turn.outdated:
        return "edit"
    made_by = turn.model_of_text
    if made_by is not None and made_by[0] is not None and not candidate.is_at(made_by):
        return "switch"
    # A text can be continued; reasoning without text can't.
    return None if turn.parts and candidate.source.continues(turn.text) else _why_again(state, work)


def _why_again(state: TaskState, work: TurnWork) -> str:
    return "retry" if state.tries.get((work.step, work.gen)) else "takeover"


def failed_tries(state: TaskState, step: str) -> int:
    """Failed tries of a step, over all its replays; the one that ended in a dead letter is told by its replay."""
    retried = sum(tries for (tried, _), tries in state.tries.items() if tried == step)
    return retried + state.gen(step)
