"""A source whose streams are counted and timed, for what its server bears."""

from __future__ import annotations

from inference_worker.capacity.server import ServerCapacity, Turn
from inference_worker.models.chunks import Chunk, Finished, TurnInput
from inference_worker.models.watched_source import WatchedCall
from mesh.task.failures import StepFailed

REFUSALS = frozenset({"provider-overloaded", "rate-limited"})
"""Failures by which a server says that it has no room. TGI answers 429 to what its queue does not take."""


class Measured:
    """Watches a source for what its server bears. A turn is never kept here: its place was given to it before."""

    def __init__(self, server: ServerCapacity) -> None:
        self._server = server

    def begin(self, turn: TurnInput) -> tuple[TurnInput, WatchedCall]:
        """A call, which is counted."""
        return turn, _Call(self._server.began())


class _Call(WatchedCall):
    def __init__(self, measured: Turn) -> None:
        self._measured = measured

    def heard(self, chunk: Chunk) -> None:
        """At its end it is known how much came."""
        if isinstance(chunk, Finished):
            self._measured.finished(chunk.usage.output_tokens)

    def failed(self, error: StepFailed) -> None:
        """The server may have had no room."""
        if error.code in REFUSALS:
            self._measured.refused()

    def over(self, characters: int) -> None:
        """Its place is free."""
        self._measured.over()
