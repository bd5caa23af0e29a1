"""A source whose calls are watched: by its breaker, its pace, its server's limit, a clock.

Each of these would be a stream around the stream, which each token has to pass. Here is one for all of them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from inference_worker.models.candidates import Source
from inference_worker.models.chunks import Chunk, Finished, TurnInput
from mesh.task.failures import StepFailed


class WatchedCall:
    """A call, for one who watches it. What is of no interest stays as it is here."""

    hears_all = False
    """Whether it is told each chunk; else the first one and the last."""

    def heard(self, chunk: Chunk) -> None:
        """A chunk came."""

    def failed(self, error: StepFailed) -> None:
        """It has failed, or broken off."""

    def over(self, characters: int) -> None:
        """The stream is closed, perhaps by its reader; so much text had come."""


class Watcher(Protocol):
    """Watches the calls of a source."""

    def begin(self, turn: TurnInput) -> tuple[TurnInput, WatchedCall]:
        """A call begins: with what the source is asked, and who is told of it. Raises `StepFailed`: there is none."""
        ...


class WatchedSource:
    """A source and its watchers. The first of them is asked first, and told last of a failure, and of the end."""

    def __init__(self, source: Source, *watchers: Watcher) -> None:
        """One that is watched already is watched by those, too: behind these."""
        self.name = source.name
        self._source, self._watchers = source, watchers
        if isinstance(source, WatchedSource):
            self._source, self._watchers = source._source, (*watchers, *source._watchers)

    def continues(self, text: str) -> bool:
        """Whether its source does."""
        return self._source.continues(text)

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """Generate a turn. Raises `StepFailed`."""
        calls: list[WatchedCall] = []
        characters, has_ended = 0, False
        try:
            for watcher in self._watchers:
                turn, call = watcher.begin(turn)
                calls.append(call)
            told, hearing_all = calls, [call for call in calls if call.hears_all]
            async with aclosing(self._source.stream(turn)) as chunks:
                async for chunk in chunks:
                    # For each token: no call that is not needed.
                    if isinstance(chunk, Finished):
                        has_ended, told = True, calls
                    else:
                        characters += len(chunk.text)
                    if told:
                        for call in told:
                            call.heard(chunk)
                        told = hearing_all
                    yield chunk
            if not has_ended:
                raise StepFailed("provider-disconnected", "the stream broke off", retryable=True)
        except StepFailed as error:
            for call in reversed(calls):
                call.failed(error)
            raise
        finally:
            for call in reversed(calls):
                call.over(characters)
