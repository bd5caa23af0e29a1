"""The limits of a task: turns, tokens, and whether a turn is the last one; for its budget see `budget`. Pure."""

from __future__ import annotations

from contracts.journal import events, parts
from mesh.task.budget import budget_left, was_budget_left
from mesh.task.state import TaskState

MAX_TURNS = 32
"""Turns of a task whose request names no other limit."""


JOURNAL_BYTES_MAX = 64 * 1024 * 1024
"""Of a task's milestones. A turn that ends beyond it is the last: a journal has to be read, and to fit into memory."""


def max_turns(state: TaskState) -> int:
    """How many turns the task may have."""
    return (state.request.max_turns if state.request else None) or MAX_TURNS


def tokens_left(state: TaskState, after_turn: int | None = None) -> int | None:
    """How many tokens the turns to come may put out, now or as it was after a turn; None without a limit."""
    limit = state.request.max_output_tokens if state.request else None
    if limit is None:
        return None
    # Of answers alone: by them all who read the journal agree on which turn was the last.
    answers = (turn.completed for turn in state.turns.values() if after_turn is None or turn.turn <= after_turn)
    return max(0, limit - sum(answer.usage.output_tokens for answer in answers if answer is not None))


def output_tokens_max(state: TaskState) -> int | None:
    """The most that the next turn may put out: what is left of the limit of output, and of the budget."""
    return min((left for left in (tokens_left(state), budget_left(state)) if left is not None), default=None)


def is_last_turn(state: TaskState, completed: events.TurnCompleted) -> bool:
    """Whether nothing follows a completed turn but the task's end: the model has stopped, or a limit is reached."""
    if completed.turn >= max_turns(state) or completed.finish_reason == "length":
        return True
    if is_journal_full(state, completed):
        return True
    # By what was left then: a turn that led on stays one that did, whatever later ones have used up.
    if tokens_left(state, completed.turn) == 0 or was_budget_left(state, completed) == 0:
        return True
    return not completed.calls and not state.unseen_inputs(completed.turn)


def is_journal_full(state: TaskState, completed: events.TurnCompleted) -> bool:
    """Whether the journal was as long as it may be when a turn was completed."""
    return state.turn(completed.turn).milestone_bytes >= JOURNAL_BYTES_MAX


def incomplete_after(state: TaskState, completed: events.TurnCompleted) -> parts.Incomplete | None:
    """Why a task whose last turn this is has not more of an output; None if the model has stopped by itself.

    A filter, or a refusal of the model's, is told: its output is not what was asked for.
    """
    if completed.finish_reason == "length":
        deadline = state.queued.deadline if state.queued else None
        if deadline is not None and completed.time >= deadline:
            return "deadline"
        return "budget" if was_budget_left(state, completed) == 0 else "max_output_tokens"
    if completed.finish_reason == "content_filter":
        return "content_filter"
    if not completed.calls and not state.unseen_inputs(completed.turn):
        return None
    if completed.turn >= max_turns(state):
        return "max_turns"
    if is_journal_full(state, completed):
        return "journal_bytes"
    return "max_output_tokens" if tokens_left(state, completed.turn) == 0 else "budget"
