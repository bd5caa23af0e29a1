"""One attempt at a turn: what a model says goes into the journal, until it ends, or is interrupted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeVar

from contracts.codec import encode
from contracts.journal import events
from contracts.journal.events import JournalEvent
from contracts.journal.parts import FinishReason, Timings, Usage
from contracts.tasks import OUTPUT_BYTES_MAX, output_bytes
from inference_worker.models.chunks import Chunk, Finished, RequestedCall, TextDelta
from inference_worker.turn.budgets import Measured
from inference_worker.turn.coalescing import DeltaKind, DeltaWriter
from mesh.clock import now
from mesh.steps.claimed_step import ClaimedStep
from mesh.task.failures import StepFailed
from mesh.task.state import TaskState

REASONING_BYTES_MAX = 192 * 1024
"""Most of a turn's reasoning that is kept, as encoded JSON: with the text it must fit into `turn.completed`."""
ARGUMENTS_BYTES_MAX = 192 * 1024
BLOCKS_BYTES_MAX = 160 * 1024
"""Most of the arguments of its calls, and of what a provider wants back: what dialects keep to. A broker with smaller
messages than 1 MiB has room for less of each."""

CLOCKS_APART_SECONDS_MAX = 0.1
CLOCK_TICK_SECONDS = 0.001

Interruption = Literal["slow", "deadline", "told_to"]
"""Why a wait was given up."""
T = TypeVar("T")


class Ending(NamedTuple):
    """How a stream ended that did not fail. A provider that was stopped has reported no usage."""

    finish_reason: FinishReason
    usage: Usage = Usage()
    calls: tuple[RequestedCall, ...] = ()
    blocks: list[Any] | None = None


class Attempt:
    """One attempt at a turn: its clock, and how much it may still write."""

    def __init__(
        self, step: ClaimedStep, turn: int, queued: events.TaskQueued, measured: Measured | None = None
    ) -> None:
        self._step = step
        self._measured = measured or Measured()
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        # Not the loop's clock for what is told: uvloop's counts whole milliseconds.
        self._started_at = time.perf_counter()
        self._first_token_at: float | None = None
        self._queued_seconds = max(0.0, (step.claim.time - became_due(step.state, turn, queued)).total_seconds())
        self._deadline = queued.deadline
        self._end_at: float | None = None
        if queued.deadline is not None:
            self._end_at = self._loop.time() + (queued.deadline - now()).total_seconds()
        self._bytes_left: dict[DeltaKind, int] = {}
        self._interruption: asyncio.Timeout | None = None
        self._cut_at: datetime | None = None

    def timings(self) -> Timings:
        """The attempt's timings up to now."""
        first = self._first_token_at
        return Timings(
            queued_seconds=self._queued_seconds,
            first_token_seconds=None if first is None else round(first - self._started_at, 6),
            total_seconds=round(time.perf_counter() - self._started_at, 6),
        )

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self._end_at is not None and self._loop.time() >= self._end_at

    async def wait(self, awaited: Awaitable[T], seconds: float | None = None) -> T | Interruption:
        """Wait for something that is not in the journal: so long, up to the deadline, or until it is interrupted."""
        slow_at = None if seconds is None else self._loop.time() + seconds
        until = min((at for at in (slow_at, self._end_at) if at is not None), default=None)
        came: T | Interruption = "told_to"
        self._step.on_news = self._look_for_interruption
        try:
            async with self._interruptible():
                try:
                    async with asyncio.timeout_at(until) as timeout:
                        came = await awaited
                except TimeoutError:
                    if not timeout.expired():
                        raise
                    came = "deadline" if self.is_late else "slow"
        finally:
            self._step.on_news = None
        return came

    async def cut(self) -> Ending:
        """The end by the deadline, which it waits for by the journal's clock too."""
        await self._until_the_deadline()
        self._cut_at = self._deadline
        return Ending("length")

    def stamped(self, stamp: events.Stamp) -> events.Stamp:
        """The stamp of the turn's end. Never before the deadline that cut it: a clock that is corrected may go back."""
        return stamp if self._cut_at is None else stamp._replace(time=max(stamp.time, self._cut_at))

    async def stream(self, said: AsyncGenerator[Chunk, None]) -> Ending | None:
        """Journal what a model says. All of it is stored when this returns, or raises the provider's failure.

        None if the user has redirected the task meanwhile, or the step is recalled.
        """
        so_far = self._step.state.turn(self._turn)
        self._bytes_left = {
            "output": self._step.fitting(OUTPUT_BYTES_MAX) - output_bytes(so_far.text),
            "reasoning": self._step.fitting(REASONING_BYTES_MAX) - output_bytes(so_far.reasoning_text or ""),
        }
        failure: StepFailed | None = None
        ending: Ending | None = None
        self._step.on_news = self._look_for_interruption
        try:
            async with DeltaWriter(self._append, self._preview) as writer:
                try:
                    # The provider is closed first: it need not generate while the last append is under way.
                    async with self._interruptible(), aclosing(said) as chunks:
                        ending = await self._pump(chunks, writer)
                except StepFailed as error:
                    failure = error
        finally:
            self._step.on_news = None
        if failure is not None:
            raise failure
        return ending

    @asynccontextmanager
    async def _interruptible(self) -> AsyncIterator[None]:
        """Let the body end early, wherever it waits, when the user redirects the task, or the step is recalled."""
        interruption = self._interruption = asyncio.timeout(None)
        try:
            async with interruption:
                self._look_for_interruption()
                yield
        except TimeoutError:
            if not interruption.expired():
                raise
        finally:
            self._interruption = None

    def _look_for_interruption(self) -> None:
        told_to = self._step.is_recalled or is_redirected(self._step.state, self._turn)
        if self._interruption is not None and told_to:
            # Once: an append that was under way is stored while the provider is being closed, and looks again.
            interruption, self._interruption = self._interruption, None
            interruption.reschedule(self._loop.time())

    async def _pump(self, chunks: AsyncGenerator[Chunk, None], writer: DeltaWriter) -> Ending:
        # For each token, of which a fast model gives some 100,000 a second: no call that is not needed.
        is_bounded, put_out = self._measured.is_bounded, self._measured.put_out
        following: Callable[[AsyncGenerator[Chunk, None]], Awaitable[Chunk | None]]
        following = anext if self._end_at is None else self._in_time
        try:
            while (chunk := await following(chunks)) is not None:
                if isinstance(chunk, Finished):
                    return _ending(chunk, self._step.fitting)
                kind: DeltaKind = "output" if isinstance(chunk, TextDelta) else "reasoning"
                text = chunk.text
                kept = self._kept(kind, text)
                if kept and writer.put(kind, kept):
                    await writer.room()
                is_cut = len(kept) < len(text) and kind == "output"  # Of what it thinks the end is left out.
                if is_cut or (is_bounded and put_out(text)):
                    return Ending("length")
        except StopAsyncIteration:
            raise StepFailed("provider-disconnected", "the stream broke off", retryable=True) from None
        return await self.cut()

    async def _until_the_deadline(self) -> None:
        """Wait for it by the journal's clock too, which the loop's may be ahead of: it tells why a turn was cut."""
        left = (self._deadline - now()).total_seconds() if self._deadline is not None else 0.0
        if left > 0:
            await asyncio.sleep(min(left, CLOCKS_APART_SECONDS_MAX) + CLOCK_TICK_SECONDS)

    async def _in_time(self, chunks: AsyncGenerator[Chunk, None]) -> Chunk | None:
        """The next chunk; None once the deadline has passed. Only the provider is timed, never an append."""
        if self.is_late:
            return None
        try:
            async with asyncio.timeout_at(self._end_at) as deadline:
                return await anext(chunks)
        except TimeoutError:
            if not deadline.expired():
                raise  # It is the provider's own.
            return None

    def _kept(self, kind: DeltaKind, text: str) -> str:
        """As much of a text as may be written."""
        before = self._bytes_left[kind]
        left = before - _inner_bytes(text)
        # A narrower character behind the cut must not slip in.
        self._bytes_left[kind] = max(0, left)
        kept = text if left >= 0 else clip(text, before)
        if self._first_token_at is None and kept:
            self._first_token_at = time.perf_counter()
        return kept

    async def _append(self, kind: DeltaKind, text: str) -> JournalEvent:
        self._measured.stores()
        event = events.OutputDelta if kind == "output" else events.ReasoningDelta
        appended = await self._step.append(lambda stamp: event(*stamp, turn=self._turn, text=text))
        self._look_for_interruption()
        return appended

    async def _preview(self, text: str) -> None:
        """Tell who listens what can't be stored at present."""
        await self._step.preview(self._turn, text)


def became_due(state: TaskState, turn: int, queued: events.TaskQueued) -> datetime:
    """When a turn could first be claimed: at the submission, or with the last result of the turn before."""
    before = state.turn(turn - 1).completed
    if before is None:
        return queued.accepted_at
    results = (state.call_results.get(asked.call) for asked in before.calls)
    return max([before.time, *(result.time for result in results if result is not None)])


def is_redirected(state: TaskState, turn: int) -> bool:
    """Whether the user has said something that the turn under way must begin again with."""
    return any(told.mode == "redirect" for told in state.unseen_inputs(turn))


def clip(text: str, bytes_max: int) -> str:
    """The longest beginning of a text that takes at most `bytes_max` bytes inside of a JSON string."""
    if _inner_bytes(text) <= bytes_max:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _inner_bytes(text[:middle]) <= bytes_max:
            fits = middle
        else:
            too_long = middle
    return text[:fits]


def _inner_bytes(text: str) -> int:
    """Length inside of a JSON string, without its quotes: it adds up over the parts of a text."""
    return len(encode(text)) - 2


def _ending(finished: Finished, fitting: Callable[[int], int]) -> Ending:
    """The end as the stream told it. Calls that a small broker has no room for are cut off, as any text is."""
    blocks = finished.blocks
    if fitting(ARGUMENTS_BYTES_MAX) < ARGUMENTS_BYTES_MAX:
        if blocks and len(encode(blocks)) > fitting(BLOCKS_BYTES_MAX):
            blocks = None
        if len(encode([call.arguments for call in finished.calls])) > fitting(ARGUMENTS_BYTES_MAX):
            return Ending("length", finished.usage)
    return Ending(finished.finish_reason, finished.usage, finished.calls, blocks)
