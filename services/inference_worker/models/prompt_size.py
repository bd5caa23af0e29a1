"""How large the prompt of a turn is, about, and how much of it its provider has read before. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from contracts.codec import encode
from mesh.task.state import ModelName, TaskState

BYTES_PER_TOKEN = 4
"""A rough measure, of UTF-8."""
CACHED_SECONDS_MAX = 300.0
"""How long providers keep what they have read. Anthropic's cache, and OpenAI's, last five minutes without use."""


class PromptSize(NamedTuple):
    """In tokens. `cached_tokens` of `input_tokens` are thought to be in the provider's cache."""

    input_tokens: int
    cached_tokens: int = 0

    @property
    def uncached_tokens(self) -> int:
        """What the provider has to read."""
        return max(0, self.input_tokens - self.cached_tokens)


NO_SIZE: Final = PromptSize(0)
"""Of a prompt that nobody has measured."""


def prompt_tokens(state: TaskState, turn: int) -> int:
    """About how large the prompt of a turn is.

    It begins with that of the turn before, and its answer, as its provider has counted them. Before a first turn there
    is what its request says.
    """
    completed = state.turn(turn - 1).completed
    if completed is None:
        return _first(state)
    results = (state.call_results.get(asked.call) for asked in completed.calls)
    added = sum(len(encode(result)) for result in results if result is not None)
    return completed.usage.input_tokens + completed.usage.output_tokens + added // BYTES_PER_TOKEN


def cached_tokens(state: TaskState, turn: int, place: ModelName, at: datetime) -> int:
    """How much of it a model of that provider and name has in its cache: the prompt before, if it was there lately."""
    before = state.turn(turn - 1)
    if before.completed is None or before.model != place:
        return 0
    is_fresh = (at - before.completed.time).total_seconds() <= CACHED_SECONDS_MAX
    return before.completed.usage.input_tokens if is_fresh else 0


def _first(state: TaskState) -> int:
    queued, request = state.queued, state.request
    if queued is not None and queued.estimate is not None:
        return queued.estimate.input_tokens
    if request is None:
        return 0
    texts = [request.input] if isinstance(request.input, str) else [message.content for message in request.input]
    return sum(len(text) for text in [*texts, request.instructions or ""]) // BYTES_PER_TOKEN
