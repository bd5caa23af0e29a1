"""What turns that began again have thrown away: tokens that were paid for, and that nobody has. Pure."""

from __future__ import annotations

from mesh.task.state import TaskState, TurnState

BYTES_PER_TOKEN = 4
"""An estimate, of UTF-8: a provider that was cut off has told no usage."""


def tokens_of(turn: TurnState) -> int:
    """About how many tokens there are of a turn that is not completed: what it loses if it begins again."""
    told = sum(len(text.encode()) for _, text in turn.parts + turn.reasoning)
    return -(-told // BYTES_PER_TOKEN)


def discarded_tokens(state: TaskState, after_turn: int | None = None) -> int:
    """What was thrown away in all turns, or in those up to a turn, as its restarts have told."""
    turns = [turn for turn in state.turns.values() if after_turn is None or turn.turn <= after_turn]
    return sum(turn.discarded_tokens for turn in turns)
