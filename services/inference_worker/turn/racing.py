"""Models that are asked for one turn, maybe several at once: the first that gives a token goes on with it.

Each is asked in a task of its own, so that it can be closed at any moment; what it says waits in a queue until somebody
goes on with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType

from contracts.journal.parts import Timings
from inference_worker.models.candidates import Candidate
from inference_worker.models.chunks import Chunk, Finished, TurnInput
from inference_worker.turn.observing import observed_call
from mesh.task.failures import StepFailed

CHUNKS_MAX = 64
"""How much a model may say ahead of its reader."""


class Asked:
    """A model that is being asked. Closing it closes the connection to its provider."""

    def __init__(self, candidate: Candidate, turn_input: TurnInput) -> None:
        self.candidate = candidate
        self.failure: Exception | None = None
        """Why it has not said all."""
        self.answered = asyncio.Event()
        """It has given a token, or failed."""
        self._said: asyncio.Queue[Chunk | None] = asyncio.Queue(CHUNKS_MAX)
        self._closing = False
        self._first_token_seconds: float | None = None
        self._task = asyncio.create_task(self._ask(turn_input))

    @property
    def has_spoken(self) -> bool:
        """Whether it has given a token."""
        return self._first_token_seconds is not None

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """What it says. Raises its failure. Closing the generator closes it."""
        try:
            while (chunk := await self._said.get()) is not None:
                yield chunk
            if self.failure is not None:
                raise self.failure
        finally:
            await self.close()

    async def close(self) -> None:
        """Hear no more of it."""
        self._closing = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self, turn_input: TurnInput) -> None:
        try:
            await self._listen(turn_input)
        except Exception as error:  # whoever reads is told
            self.failure = error
        if self._closing:
            return
        if not self.answered.is_set() and self.failure is None:
            self.failure = StepFailed("provider-disconnected", "the stream broke off", retryable=True)
        self.answered.set()
        await self._said.put(None)

    async def _listen(self, turn_input: TurnInput) -> None:
        began_at = time.perf_counter()
        with observed_call(self.candidate.provider, turn_input) as call:
            try:
                async with aclosing(call.chunks(self.candidate.source.stream(turn_input))) as chunks:
                    async for chunk in chunks:
                        if self._first_token_seconds is None:
                            self._first_token_seconds = time.perf_counter() - began_at
                        if isinstance(chunk, Finished):
                            timings = Timings(first_token_seconds=self._first_token_seconds)
                            call.ended(chunk.finish_reason, chunk.usage, timings)
                        await self._said.put(chunk)
                        self.answered.set()
            except asyncio.CancelledError:
                if not self._closing:
                    raise


class Race:
    """The models that are asked for a turn. Use as a context: in the end all are closed."""

    def __init__(self) -> None:
        self._asked: list[Asked] = []

    async def __aenter__(self) -> Race:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close_all()

    def ask(self, candidate: Candidate, turn_input: TurnInput) -> None:
        """Ask one more."""
        self._asked.append(Asked(candidate, turn_input))

    async def first_to_speak(self) -> Asked:
        """The one whose token is there first. Raises the first one's failure, once all have failed."""
        while True:
            spoken = next((each for each in self._asked if each.has_spoken), None)
            if spoken is not None:
                return spoken
            open_ones = [each for each in self._asked if not each.answered.is_set()]
            failure = self._asked[0].failure
            if not open_ones and failure is not None:
                raise failure
            await _any(open_ones)

    async def close_all(self, but: Asked | None = None) -> None:
        """Close them, maybe but the one that goes on."""
        for each in self._asked:
            if each is not but:
                await each.close()


async def _any(asked: list[Asked]) -> None:
    """Until one of them has answered."""
    waiting = [asyncio.create_task(each.answered.wait()) for each in asked]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
