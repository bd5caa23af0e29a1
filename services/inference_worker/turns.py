"""One model turn: from the claim to `turn.completed`, and to the task's end.

There are four ways in, by what the journal holds of the turn: nothing; a part, from which the provider can go on; a
part that it can't go on from, so that the turn is generated again; all of it, and only the task's end is missing. There
are five ways out: the provider has finished; the deadline has passed; the output is as long as it may be; the provider
has failed; the step is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from contracts import events
from contracts.errors import ErrorInfo
from contracts.events import FinishReason, JournalEvent, Stamp, Timings, ToolCall, Usage
from contracts.tasks import OUTPUT_BYTES_MAX, TaskRequest, output_bytes
from contracts.tools import ASK_USER
from contracts.work import TurnWork, Work
from inference_worker.calls import Before, OfferedTool, Offers, decided_calls
from inference_worker.chunks import Chunk, Finished, ReasoningDelta, RequestedCall, TextDelta, TurnInput
from inference_worker.observing import observed_call
from inference_worker.providers import Provider
from mesh import metrics
from mesh.clock import now
from mesh.coalescing import DeltaKind, DeltaWriter
from mesh.conversation import continued, conversation
from mesh.decisions import StepFailed
from mesh.dues import incomplete_after, is_last_turn, tokens_left, unasked
from mesh.fold import TaskState
from mesh.work import ClaimedStep

REASONING_BYTES_MAX = 192 * 1024
"""Most of a turn's reasoning that is kept, as encoded JSON: with the text it must fit into `turn.completed`."""

CLOCKS_APART_SECONDS_MAX = 0.1
CLOCK_TICK_SECONDS = 0.001
CALLED_OFF = ErrorInfo("called-off", "the user has said something else")
WAITING_SECONDS = 24 * 3600.0

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
    usage: Usage = field(default_factory=Usage)
    calls: tuple[RequestedCall, ...] = ()
    blocks: list[Any] | None = None


class TurnHandler:
    """Runs turns with one provider. `waiting_seconds`: how long an approval or a question may stay open."""

    def __init__(
        self,
        provider: Provider,
        toolbox: Offers,
        history: Before,
        *,
        waiting_seconds: float = WAITING_SECONDS,
        on_claimed: OnClaimed = _ignore,
        on_finished: OnFinished = _ignore,
    ) -> None:
        self._provider = provider
        self._toolbox = toolbox
        self._history = history
        self._waiting_seconds = waiting_seconds
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
        if step.state.turn(work.turn).completed is None:
            await self._generate(step, work, queued)
        await self._lead_on(step, work.turn)

    async def _lead_on(self, step: ClaimedStep, turn: int) -> None:
        """Record what a completed turn leads to: refusals, questions and approvals of its calls, or the task's end."""
        while True:
            state = step.state
            completed = state.turn(turn).completed
            if completed is None:
                raise ValueError("the turn is not completed")
            asked = unasked(state, completed)
            if asked is not None:
                build = self._requests_of(step, turn, asked)
            elif is_last_turn(state, completed):
                build = _end_of(step, turn)
            else:
                return
            # An input that arrives before the end is stored makes another turn of it.
            await step.append_if(
                build,
                lambda now_so, completed=completed, asked=asked: (  # type: ignore[misc]  # mypy can't infer it
                    unasked(now_so, completed) == asked and (asked is not None or is_last_turn(now_so, completed))
                ),
            )
            if step.state.terminal is not None:
                return

    def _requests_of(self, step: ClaimedStep, turn: int, asked: ToolCall) -> Callable[[Stamp], JournalEvent]:
        """The event that a call needs before anybody can carry it out."""

        def build(stamp: Stamp) -> JournalEvent:
            expires_at = stamp.time + timedelta(seconds=self._waiting_seconds)
            # A redirect calls off what would wait for a person, also what was not asked for yet.
            error = CALLED_OFF if asked.error is None and is_redirected(step.state, turn) else asked.error
            if error is not None:
                return events.ToolFailed(
                    *stamp, turn=turn, call=asked.call, tool=asked.tool, error=error, outcome="failed"
                )
            if asked.tool == ASK_USER:
                question = str(asked.arguments.get("question", ""))
                return events.InputRequested(*stamp, question=question, call=asked.call, expires_at=expires_at)
            return events.ApprovalRequested(
                *stamp, call=asked.call, tool=asked.tool, arguments=asked.arguments, expires_at=expires_at
            )

        return build

    async def _generate(self, step: ClaimedStep, work: TurnWork, queued: events.TaskQueued) -> None:
        """Generate the turn up to `turn.completed`."""
        run = _Run(step, work.turn, queued)
        tools = await self._tools_of(queued.request)
        ending: Ending | None = None
        while ending is None:
            turn_input = await self._prepare(step, work, queued.request, tools)
            with observed_call(self._provider.name, turn_input) as call:
                ending = await run.stream(self._provider, turn_input)
                if ending is not None:
                    call.ended(ending.finish_reason, ending.usage, run.timings())
        end = ending
        turn = step.state.turn(work.turn)
        text, reasoning, timings = turn.text, turn.reasoning_text, run.timings()
        calls = decided_calls(work.turn, end.calls, tools, queued.request)
        await step.append(
            lambda stamp: events.TurnCompleted(
                *stamp,
                turn=work.turn,
                text=text,
                reasoning=reasoning,
                calls=calls,
                blocks=end.blocks,
                finish_reason=end.finish_reason,
                usage=end.usage,
                timings=timings,
            )
        )

    async def _tools_of(self, request: TaskRequest) -> dict[str, OfferedTool]:
        return await self._toolbox.offered(request.tools) if request.tools else {}

    async def _prepare(
        self, step: ClaimedStep, work: TurnWork, request: TaskRequest, tools: dict[str, OfferedTool]
    ) -> TurnInput:
        """What the provider is asked; what it can't continue, or must not, is taken back first."""
        turn = step.state.turn(work.turn)
        first_delta = min((n for n, _ in turn.parts + turn.reasoning), default=None)
        redirected = is_redirected(step.state, work.turn)
        # A text can be continued; reasoning without text can't.
        goes_on = bool(turn.parts) and self._provider.continues_prefix and not redirected
        if redirected or (first_delta is not None and not goes_on):
            reason = "redirect" if redirected else _why_again(step, work)
            discard_from = first_delta
            await step.append(
                lambda stamp: events.TurnRestarted(
                    *stamp,
                    turn=work.turn,
                    attempt=step.claim.attempt or 1,
                    discard_from=stamp.n if discard_from is None else discard_from,
                    reason=reason,
                )
            )
        state = step.state
        turn = state.turn(work.turn)
        return TurnInput(
            messages=continued(await self._history.before(state), conversation(state, work.turn)),
            model=request.model or self._provider.default_model,
            tools=tuple(offered.declaration for offered in tools.values()),
            max_output_tokens=tokens_left(state),
            temperature=request.temperature,
            prefix=turn.text,
            tries=failed_tries(state, work.step),
            deliveries=turn.claims,
        )


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


def _why_again(step: ClaimedStep, work: TurnWork) -> str:
    return "retry" if step.state.tries.get((work.step, work.gen)) else "takeover"


class _Run:
    """One attempt at a turn's stream: its clock, and how much it may still write."""

    def __init__(self, step: ClaimedStep, turn: int, queued: events.TaskQueued) -> None:
        self._step = step
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

    def timings(self) -> Timings:
        """The attempt's timings up to now."""
        first = self._first_token_at
        return Timings(
            queued_seconds=self._queued_seconds,
            first_token_seconds=None if first is None else round(first - self._started_at, 6),
            total_seconds=round(time.perf_counter() - self._started_at, 6),
        )

    async def stream(self, provider: Provider, turn_input: TurnInput) -> Ending | None:
        """Journal what the provider says. All of it is stored when this returns, or raises the provider's failure.

        None if the user has redirected the task meanwhile.
        """
        so_far = self._step.state.turn(self._turn)
        self._bytes_left = {
            "output": OUTPUT_BYTES_MAX - output_bytes(so_far.text),
            "reasoning": REASONING_BYTES_MAX - output_bytes(so_far.reasoning_text or ""),
        }
        failure: StepFailed | None = None
        ending: Ending | None = None
        self._step.on_news = self._look_for_redirect
        try:
            async with DeltaWriter(self._append) as writer:
                try:
                    # The provider is closed first: it need not generate while the last append is under way.
                    async with self._interruptible(), aclosing(provider.stream(turn_input)) as chunks:
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
        """Let the body end early, wherever it waits, when the user redirects the task."""
        interruption = self._interruption = asyncio.timeout(None)
        try:
            async with interruption:
                self._look_for_redirect()
                yield
        except TimeoutError:
            if not interruption.expired():
                raise
        finally:
            self._interruption = None

    def _look_for_redirect(self) -> None:
        if self._interruption is not None and is_redirected(self._step.state, self._turn):
            self._interruption.reschedule(self._loop.time())

    async def _pump(self, chunks: AsyncGenerator[Chunk, None], writer: DeltaWriter) -> Ending:
        while (chunk := await self._next(chunks)) is not None:
            match chunk:
                case TextDelta(text):
                    if not await self._write(writer, "output", text):
                        return Ending("length")
                case ReasoningDelta(text):
                    await self._write(writer, "reasoning", text)
                case Finished():
                    return _ending(chunk)
        await self._until_the_deadline()
        return Ending("length")

    async def _until_the_deadline(self) -> None:
        """Wait for it by the journal's clock too, which the loop's may be ahead of: it tells why a turn was cut."""
        left = (self._deadline - now()).total_seconds() if self._deadline is not None else 0.0
        if left > 0:
            await asyncio.sleep(min(left, CLOCKS_APART_SECONDS_MAX) + CLOCK_TICK_SECONDS)

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
        appended = await self._step.append(lambda stamp: event(*stamp, turn=self._turn, text=text))
        self._look_for_redirect()
        return appended


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


def _end_of(step: ClaimedStep, turn: int) -> Callable[[Stamp], JournalEvent]:
    def build(stamp: Stamp) -> JournalEvent:
        return task_completed(stamp, step.state, turn)

    return build


def task_completed(stamp: Stamp, state: TaskState, turn: int) -> events.TaskCompleted:
    """The end of a task whose last turn is completed: that turn's text, and the usage of all of them."""
    completed = state.turn(turn).completed
    if completed is None:
        raise ValueError("the turn is not completed")
    usages = [each.completed.usage for each in state.turns.values() if each.completed is not None]
    incomplete = incomplete_after(state, completed)
    output = completed.text or (state.output_so_far or "" if incomplete else "")
    return events.TaskCompleted(
        *stamp,
        output=output,
        incomplete=incomplete,
        usage=Usage(
            input_tokens=sum(usage.input_tokens for usage in usages),
            output_tokens=sum(usage.output_tokens for usage in usages),
        ),
        timings=_timings_of_all(stamp, state, completed.timings),
    )


def _timings_of_all(stamp: Stamp, state: TaskState, last: Timings) -> Timings:
    """Of one turn its own; of several the first one's wait and first token, and all the time since its claim."""
    first, claim = state.turn(1).completed, state.claims.get(("1", state.gen("1")))
    if len(state.turns) == 1 or first is None or claim is None:
        return last
    return Timings(
        queued_seconds=first.timings.queued_seconds,
        first_token_seconds=first.timings.first_token_seconds,
        total_seconds=max(0.0, (stamp.time - claim.time).total_seconds()),
    )


def _inner_bytes(text: str) -> int:
    """Length inside of a JSON string, without its quotes: it adds up over the parts of a text."""
    return output_bytes(text) - 2


def _ending(finished: Finished) -> Ending:
    return Ending(finished.finish_reason, finished.usage, finished.calls, finished.blocks)
