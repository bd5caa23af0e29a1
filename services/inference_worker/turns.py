"""One model turn: from the claim to `turn.completed`, and to the task's end.

There are four ways in, by what the journal holds of the turn: nothing; a part, from which the provider can go on; a
part that it can't go on from, so that the turn is generated again; all of it, and only the task's end is missing. There
are five ways out: the provider has finished; the deadline has passed; the output is as long as it may be; the provider
has failed; the step is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from contracts import events
from contracts.events import FinishReason, Incomplete, JournalEvent, Stamp, Timings, Usage
from contracts.tasks import OUTPUT_BYTES_MAX, Message, TaskRequest, output_bytes
from contracts.work import TurnWork, Work
from inference_worker.chunks import Chunk, Finished, ReasoningDelta, TextDelta, TurnInput
from inference_worker.observing import observed_call
from inference_worker.providers import Provider
from mesh import metrics
from mesh.clock import now
from mesh.coalescing import DeltaKind, DeltaWriter
from mesh.decisions import StepFailed
from mesh.fold import TaskState
from mesh.work import ClaimedStep

REASONING_BYTES_MAX = 192 * 1024
"""Most of a turn's reasoning that is kept, as encoded JSON: with the text it must fit into `turn.completed`."""

OnClaimed = Callable[[str, str, float], None]
"""Told pool, priority and seconds from acceptance to the first claim."""
OnFinished = Callable[[str, str], None]
"""Told pool and priority of a turn that is over."""


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stream ended that did not fail. A provider that was stopped has reported no usage."""

    finish_reason: FinishReason
    incomplete: Incomplete | None = None
    usage: Usage = field(default_factory=Usage)


class TurnHandler:
    """Runs turns with one provider."""

    def __init__(
        self, provider: Provider, *, on_claimed: OnClaimed = _ignore, on_finished: OnFinished = _ignore
    ) -> None:
        self._provider = provider
        self._on_claimed = on_claimed
        self._on_finished = on_finished

    def describe_claim(self, state: TaskState, work: Work) -> dict[str, str]:
        """Which provider and model the turn goes to."""
        model = self._provider.default_model
        if state.queued is not None and state.queued.request.model is not None:
            model = state.queued.request.model
        return {"provider": self._provider.name, "model": model}

    async def perform(self, step: ClaimedStep) -> None:
        """Generate the turn, and append its result and the task's end. Raises `StepFailed`."""
        work = step.work
        queued = step.state.queued
        if not isinstance(work, TurnWork) or queued is None:
            raise TypeError("not a claimed turn")
        if work.turn == 1 and step.claim.attempt == 1:
            wait = (step.claim.time - queued.accepted_at).total_seconds()
            self._on_claimed(work.pool, work.priority, max(0.0, wait))
            metrics.queue_waited(work.pool, work.priority, max(0.0, wait))
        try:
            await self._perform(step, work, queued)
        except StepFailed as error:
            if error.terminal:
                self._on_finished(work.pool, work.priority)
            raise
        self._on_finished(work.pool, work.priority)

    async def _perform(self, step: ClaimedStep, work: TurnWork, queued: events.TaskQueued) -> None:
        completed = step.state.turn(work.turn).completed
        if completed is None:
            incomplete = await self._generate(step, work, queued)
        else:
            incomplete = incomplete_of(completed, queued)
        await step.append(lambda stamp: task_completed(stamp, step.state, work.turn, incomplete))

    async def _generate(self, step: ClaimedStep, work: TurnWork, queued: events.TaskQueued) -> Incomplete | None:
        """Generate the turn up to `turn.completed`."""
        run = _Run(step, work.turn, queued)
        turn_input = await self._prepare(step, work, queued.request)
        with observed_call(self._provider.name, turn_input) as call:
            ending = await run.stream(self._provider, turn_input)
            call.ended(ending.finish_reason, ending.usage, run.timings())
        turn = step.state.turn(work.turn)
        text, reasoning, timings = turn.text, turn.reasoning_text, run.timings()
        await step.append(
            lambda stamp: events.TurnCompleted(
                *stamp,
                turn=work.turn,
                text=text,
                reasoning=reasoning,
                finish_reason=ending.finish_reason,
                usage=ending.usage,
                timings=timings,
            )
        )
        return ending.incomplete

    async def _prepare(self, step: ClaimedStep, work: TurnWork, request: TaskRequest) -> TurnInput:
        """What the provider is asked; what it can't continue is taken back first."""
        turn = step.state.turn(work.turn)
        first_delta = min((n for n, _ in turn.parts + turn.reasoning), default=None)
        # A text can be continued; reasoning without text can't.
        if first_delta is not None and not (turn.parts and self._provider.continues_prefix):
            reason = "retry" if step.state.tries.get((work.step, work.gen)) else "takeover"
            discard_from = first_delta
            await step.append(
                lambda stamp: events.TurnRestarted(
                    *stamp,
                    turn=work.turn,
                    attempt=step.claim.attempt or 1,
                    discard_from=discard_from,
                    reason=reason,
                )
            )
        turn = step.state.turn(work.turn)
        return TurnInput(
            messages=messages_of(request),
            model=request.model or self._provider.default_model,
            max_output_tokens=request.max_output_tokens,
            temperature=request.temperature,
            prefix=turn.text,
            tries=failed_tries(step.state, work.step),
            deliveries=turn.claims,
        )


class _Run:
    """One attempt at a turn's stream: its clock, and how much it may still write."""

    def __init__(self, step: ClaimedStep, turn: int, queued: events.TaskQueued) -> None:
        self._step = step
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        # Not the loop's clock for what is told: uvloop's counts whole milliseconds.
        self._started_at = time.perf_counter()
        self._first_token_at: float | None = None
        self._queued_seconds = max(0.0, (step.claim.time - queued.accepted_at).total_seconds())
        self._end_at: float | None = None
        if queued.deadline is not None:
            self._end_at = self._loop.time() + (queued.deadline - now()).total_seconds()
        self._bytes_left: dict[DeltaKind, int] = {}

    def timings(self) -> Timings:
        """The attempt's timings up to now."""
        first = self._first_token_at
        return Timings(
            queued_seconds=self._queued_seconds,
            first_token_seconds=None if first is None else round(first - self._started_at, 6),
            total_seconds=round(time.perf_counter() - self._started_at, 6),
        )

    async def stream(self, provider: Provider, turn_input: TurnInput) -> Ending:
        """Journal what the provider says. All of it is stored when this returns, or raises the provider's failure."""
        so_far = self._step.state.turn(self._turn)
        self._bytes_left = {
            "output": OUTPUT_BYTES_MAX - output_bytes(so_far.text),
            "reasoning": REASONING_BYTES_MAX - output_bytes(so_far.reasoning_text or ""),
        }
        failure: StepFailed | None = None
        ending: Ending | None = None
        async with DeltaWriter(self._append) as writer:
            try:
                # The provider is closed first: it need not generate while the last append is under way.
                async with aclosing(provider.stream(turn_input)) as chunks:
                    ending = await self._pump(chunks, writer)
            except StepFailed as error:
                failure = error
        if ending is None:
            raise failure or RuntimeError("the stream neither ended nor failed")
        return ending

    async def _pump(self, chunks: AsyncGenerator[Chunk, None], writer: DeltaWriter) -> Ending:
        while (chunk := await self._next(chunks)) is not None:
            match chunk:
                case TextDelta(text):
                    if not await self._write(writer, "output", text):
                        return Ending("length", "max_output_tokens")
                case ReasoningDelta(text):
                    await self._write(writer, "reasoning", text)
                case Finished():
                    return _ending(chunk)
        return Ending("length", "deadline")

    async def _next(self, chunks: AsyncGenerator[Chunk, None]) -> Chunk | None:
        """The next chunk; None once the deadline has passed. Only the provider is timed, never an append."""
        try:
            if self._end_at is None:
                return await anext(chunks)
            if self._loop.time() >= self._end_at:
                return None
            try:
                async with asyncio.timeout_at(self._end_at) as deadline:
                    return await anext(chunks)
            except TimeoutError:
                if not deadline.expired():
                    raise  # It is the provider's own.
                return None
        except StopAsyncIteration:
            raise StepFailed("provider-disconnected", "the stream broke off", retryable=True) from None

    async def _write(self, writer: DeltaWriter, kind: DeltaKind, text: str) -> bool:
        """Write as much as may be written. False if that is not all."""
        kept = clip(text, self._bytes_left[kind])
        if kept:
            if self._first_token_at is None:
                self._first_token_at = time.perf_counter()
            self._bytes_left[kind] -= _inner_bytes(kept)
            await writer.write(kind, kept)
        if len(kept) < len(text):
            self._bytes_left[kind] = 0  # A narrower character behind the cut must not slip in.
            return False
        return True

    async def _append(self, kind: DeltaKind, text: str) -> JournalEvent:
        event = events.OutputDelta if kind == "output" else events.ReasoningDelta
        return await self._step.append(lambda stamp: event(*stamp, turn=self._turn, text=text))


def messages_of(request: TaskRequest) -> list[Message]:
    """The conversation that a request begins: its instructions, then its input."""
    instructions = [Message("system", request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        return [*instructions, Message("user", request.input)]
    return [*instructions, *request.input]


def failed_tries(state: TaskState, step: str) -> int:
    """Failed tries of a step, over all its replays; the one that ended in a dead letter is told by its replay."""
    retried = sum(tries for (tried, _), tries in state.tries.items() if tried == step)
    return retried + state.gen(step)


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


def incomplete_of(completed: events.TurnCompleted, queued: events.TaskQueued) -> Incomplete | None:
    """Why a recorded last turn holds not all, as far as its journal tells."""
    if completed.finish_reason != "length":
        return None
    if queued.deadline is not None and completed.time >= queued.deadline:
        return "deadline"
    return "max_output_tokens"


def task_completed(stamp: Stamp, state: TaskState, turn: int, incomplete: Incomplete | None) -> events.TaskCompleted:
    """The end of a task whose last turn is completed: that turn's text, and the usage of all of them."""
    completed = state.turn(turn).completed
    if completed is None:
        raise ValueError("the turn is not completed")
    usages = [each.completed.usage for each in state.turns.values() if each.completed is not None]
    return events.TaskCompleted(
        *stamp,
        output=completed.text,
        incomplete=incomplete,
        usage=Usage(
            input_tokens=sum(usage.input_tokens for usage in usages),
            output_tokens=sum(usage.output_tokens for usage in usages),
        ),
        timings=completed.timings,
    )


def _inner_bytes(text: str) -> int:
    """Length inside of a JSON string, without its quotes: it adds up over the parts of a text."""
    return output_bytes(text) - 2


def _ending(finished: Finished) -> Ending:
    if finished.calls:
        message = "the model asked for tools, which this version does not run"
        raise StepFailed("provider-bad-request", message, retryable=False, terminal=True)
    incomplete: Incomplete | None = "max_output_tokens" if finished.finish_reason == "length" else None
    return Ending(finished.finish_reason, incomplete, finished.usage)
