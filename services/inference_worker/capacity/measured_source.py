"""A source whose streams are counted and timed, for what its server bears."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from inference_worker.capacity.server import ServerCapacity
from inference_worker.models.candidates import Source
from inference_worker.models.chunks import Chunk, Finished, TurnInput
from mesh.task.failures import StepFailed

REFUSALS = frozenset({"provider-overloaded", "rate-limited"})
"""Failures by which a server says that it has no room. TGI answers 429 to what its queue does not take."""


class MeasuredSource:
    """A source, and what its server bears."""

    def __init__(self, source: Source, server: ServerCapacity) -> None:
        self.name = source.name
        self._source = source
        self._server = server

    def continues(self, text: str) -> bool:
        """Whether its source does."""
        return self._source.continues(text)

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """Generate a turn. Raises `StepFailed`. A turn is never kept here: its place was given to it before."""
        measured = self._server.began()
        try:
            async with aclosing(self._source.stream(turn)) as chunks:
                async for chunk in chunks:
                    if isinstance(chunk, Finished):
                        measured.finished(chunk.usage.output_tokens)
                    yield chunk
        except StepFailed as error:
            if error.code in REFUSALS:
                measured.refused()
            raise
        finally:
            measured.over()
