"""One model turn: from the claim to `turn.completed`, and to the task's end.

There are four ways in, by what the journal holds of the turn: nothing; a part, from which the provider can go on; a
part that it can't go on from, so that the turn is generated again; all of it, and only the task's end is missing. There
are five ways out: the provider has finished; the deadline has passed; the output is as long as it may be; the provider
has failed; the step is lost. On the way another model of the pool may go on, and the conversation may be compacted:
each is an event first, so that whoever takes the turn over goes on so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec
import structlog

from contracts.errors import ErrorInfo
from contracts.journal import events
from contracts.journal.events import JournalEvent, Stamp
from contracts.journal.parts import ToolCall, Usage
from contracts.messages.work import TurnWork, Work
from contracts.records.tools import ASK_USER, ASK_USER_DECLARATION
from contracts.tasks import TaskRequest
from inference_worker.dialects.errors import CONTEXT_TOO_LONG
from inference_worker.models.candidates import Available, Candidate, Candidates
from inference_worker.models.chunks import Meter, TurnInput
from inference_worker.turn.attempts import Attempt, Ending, is_redirected
from inference_worker.turn.budgets import Measured, TurnBudgets
from inference_worker.turn.calls import ConversationSource, OfferedTool, Offers, decided_calls
from inference_worker.turn.compaction import COMPACTIONS_MAX, compacted
from inference_worker.turn.history import text_bytes
from inference_worker.turn.observing import observed_call
from inference_worker.turn.offers import missing_from, with_note_of_missing
from inference_worker.turn.racing import Asked, Race
from inference_worker.turn.restarting import failed_tries, restart_reason
from inference_worker.turn.spending import PricesOf, Spending, no_prices
from inference_worker.turn.task_ends import end_of_task
from mesh.configuration.mesh_toml import PoolConfiguration
from mesh.steps.claimed_step import ClaimedStep, StepRecalled
from mesh.task.budget import budget_left, budget_left_with, cost_left_micros
from mesh.task.conversation import ConversationItem, continued, conversation, shown_to
from mesh.task.discarded import tokens_of
from mesh.task.failures import StepFailed
from mesh.task.limits import is_last_turn, output_tokens_max
from mesh.task.outbox import unasked
from mesh.task.state import TaskState
from mesh.telemetry import metrics

log = structlog.get_logger("inference_worker.turn.turns")

SUPERSEDED = ErrorInfo("called-off", "the user has said something else")
WAITING_SECONDS = 24 * 3600.0

TOOL_POLL_SECONDS = 0.5
"""How often a tool that is waited for is looked for."""

WANTED_RESTARTS = ("redirect", "edit")
"""Where somebody wants another text than the one that there is."""

SwitchReason = Literal["context", "latency", "unavailable"]
OnClaimed = Callable[[str, str, float], None]
"""Told pool, priority and seconds from acceptance to the first claim."""
OnFinished = Callable[[TurnWork, events.TurnCompleted | None, datetime], None]
"""Told of a turn that is over, what it has come to, None of one that has failed, and when it was claimed."""


def _ignore(*_: object) -> None:
    pass


def _always(_: str) -> bool:
    return True


class TurnHandler:
    """Runs the turns of one pool. `waiting_seconds`: how long an approval or a question may stay open.

    `available`: whether a provider may be asked now. `pool`: what follows on a model that is slow, or whose context is
    too short.
    """

    def __init__(  # noqa: PLR0913 - what a turn stands on, each by its name
        self,
        candidates: Candidates,
        toolbox: Offers,
        history: ConversationSource,
        *,
        pool: PoolConfiguration | None = None,
        available: Available = _always,
        waiting_seconds: float = WAITING_SECONDS,
        on_claimed: OnClaimed = _ignore,
        on_finished: OnFinished = _ignore,
        prices: PricesOf = no_prices,
    ) -> None:
        self._candidates = candidates
        self._toolbox = toolbox
        self._history = history
        self._pool = pool or PoolConfiguration()
        self._available = available
        self._waiting_seconds = waiting_seconds
        self.budgets = TurnBudgets()
        """Those that its tenants have: none, unless they are set."""
        self._on_claimed = on_claimed
        self._on_finished = on_finished
        self._prices = prices

    def describe_claim(self, state: TaskState, work: Work) -> dict[str, str]:
        """Which provider and model the turn goes to, and why, where there was a choice."""
        return self._candidates_of(state).claim(state, work.turn, self._available)

    def _candidates_of(self, state: TaskState) -> Candidates:
        return self._candidates.for_model(state.request.model if state.request is not None else None)

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
                self._on_finished(work, None, step.claim.time)
            raise
        self._on_finished(work, step.state.turn(work.turn).completed, step.claim.time)

    async def _perform(self, step: ClaimedStep, work: TurnWork, queued: events.TaskQueued) -> None:
        if step.state.turn(work.turn).completed is None:
            await self._generate(step, work, queued)
        await self._record_consequences(step, work.turn)

    async def _record_consequences(self, step: ClaimedStep, turn: int) -> None:
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
                build = end_of_task(step, turn)
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
            error = SUPERSEDED if asked.error is None and is_redirected(step.state, turn) else asked.error
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
        """Generate the turn up to `turn.completed`. Raises `StepFailed` where its tenant's budget is used up, too."""
        if not _is_used_up(step.state):
            await self.budgets.check(step.state)
        with self.budgets.measured(step, work.turn) as measured:
            async with Spending(step, work.pool, self._prices) as spending:
                await self._generate_measured(step, work, queued, measured, spending)

    async def _generate_measured(
        self, step: ClaimedStep, work: TurnWork, queued: events.TaskQueued, measured: Measured, spending: Spending
    ) -> None:
        attempt = Attempt(step, work.turn, queued, measured)
        request = step.state.request or queued.request
        tools = await self._tools_of(step, attempt, request)
        missing = missing_from(request.tools, tools)
        if missing:
            log.warning("turn.tools_missing", tools=missing)
        # Its sub-tasks may have used up more than they were given: then no model is asked.
        ending = Ending("length") if _is_used_up(step.state) else None
        if ending is None:
            await self._begin_with_claimed(step, work)
        while ending is None:
            if step.is_recalled:
                raise StepRecalled
            candidate = self._candidates_of(step.state).of_turn(step.state, work.turn)
            turn_input = await self._prepare(step, work, candidate, tools, missing, measured)
            if turn_input is None:
                ending = Ending("length", Usage(output_tokens=tokens_of(step.state.turn(work.turn))))
                break
            try:
                ending = await self._ask(step, attempt, candidate, turn_input, spending)
                if ending is None:
                    await spending.tell("recall" if step.recalled.is_set() else "redirect")
            except StepFailed as error:
                await spending.tell("failed")
                if error.code == CONTEXT_TOO_LONG:
                    await self._go_on_after_overflow(step, work, candidate, error)
                elif error.code in self._candidates.left_on:
                    await self._go_on_elsewhere(step, work, candidate, error)
                else:
                    raise
        end = await spending.answered(ending)
        provider, model = spending.place()
        turn = step.state.turn(work.turn)
        text, reasoning, timings = turn.text, turn.reasoning_text, attempt.timings()
        calls = decided_calls(work.turn, end.calls, tools, request)
        cost_left, cost = cost_left_micros(step.state), end.usage.cost_micros or 0
        is_used_up = measured.is_used_up or (cost_left is not None and cost_left <= cost)
        left = 0 if is_used_up else budget_left_with(step.state, end.usage)
        await step.append(
            lambda stamp: events.TurnCompleted(
                *attempt.stamped(stamp),
                turn=work.turn,
                text=text,
                reasoning=reasoning,
                calls=calls,
                blocks=end.blocks,
                finish_reason=end.finish_reason,
                usage=end.usage,
                timings=timings,
                budget_left_tokens=left,
                missing_tools=missing or None,
                provider=provider,
                model=model,
                pool=work.pool,
            )
        )

    async def _begin_with_claimed(self, step: ClaimedStep, work: TurnWork) -> None:
        """Say so if the claim names another model than the one that the turn was with."""
        candidates = self._candidates_of(step.state)
        with_it, claimed = candidates.of_turn(step.state, work.turn), candidates.claimed(step.state, step.claim)
        if claimed.index != with_it.index:
            await self._switch(step, work.turn, with_it, claimed, "unavailable")

    async def _switch(
        self, step: ClaimedStep, turn: int, before: Candidate, after: Candidate, reason: SwitchReason
    ) -> None:
        await step.append(
            lambda stamp: events.ModelSwitched(
                *stamp,
                from_model=before.model,
                to_model=after.model,
                reason=reason,
                turn=turn,
                provider=after.provider,
            )
        )
        log.warning("model.switched", model=after.model, provider=after.provider, reason=reason)

    async def _ask(
        self, step: ClaimedStep, attempt: Attempt, candidate: Candidate, turn_input: TurnInput, spending: Spending
    ) -> Ending | None:
        """Let the model speak; None if it is not to go on so: it was redirected or recalled, or has another model."""
        candidates = self._candidates_of(step.state)
        slow_ends = self._pool.on_slow != "wait"
        second = candidates.after(step.state, step.work.turn, candidate, self._available) if slow_ends else None
        # A text that has begun goes on with its model.
        if second is not None and not turn_input.prefix and not attempt.is_late:
            return await self._ask_in_time(step, attempt, (candidate, second), turn_input, spending)
        spending.ask(candidate, turn_input)
        with observed_call(candidate.provider, turn_input) as call:
            ending = await attempt.stream(call.chunks(candidate.source.stream(turn_input)))
            if ending is not None:
                call.ended(ending.finish_reason, ending.usage, attempt.timings())
        return ending

    async def _ask_in_time(
        self,
        step: ClaimedStep,
        attempt: Attempt,
        models: tuple[Candidate, Candidate],
        turn_input: TurnInput,
        spending: Spending,
    ) -> Ending | None:
        """The same, where a second model comes in if the first one is slow."""
        (candidate, second), turn = models, step.work.turn
        async with Race() as race:
            spending.ask(candidate, turn_input)
            race.ask(candidate, turn_input)
            first = await attempt.wait(race.first_to_speak(), self._pool.slow_seconds)
            if first == "slow":
                # Who was the best to come in may be away by now.
                now_best = self._candidates_of(step.state).after(step.state, turn, candidate, self._available)
                second = second if now_best is None else now_best
            if first == "slow" and self._pool.on_slow == "hedge":
                await step.append(
                    lambda stamp: events.ModelHedged(*stamp, turn=turn, model=second.model, provider=second.provider)
                )
                also = msgspec.structs.replace(turn_input, model=second.model, meter=Meter())
                spending.ask(second, also)
                race.ask(second, also)
                first = await attempt.wait(race.first_to_speak())
            if isinstance(first, Asked):
                await race.close_all(but=first)
                await spending.tell("hedge", but=first.candidate)
                if first.candidate is second:
                    await self._switch(step, turn, candidate, second, "latency")
                return await attempt.stream(first.chunks())
        if first == "deadline":
            return await attempt.cut()
        if first == "slow":
            await spending.tell("slow")
            await self._switch(step, turn, candidate, second, "latency")
        return None

    async def _go_on_elsewhere(
        self, step: ClaimedStep, work: TurnWork, candidate: Candidate, error: StepFailed
    ) -> None:
        """Record with which model the turn goes on whose provider is away. Raises the error if there is none."""
        after = self._candidates_of(step.state).after(step.state, work.turn, candidate, self._available)
        if after is None:
            raise error
        await self._switch(step, work.turn, candidate, after, "unavailable")

    async def _go_on_after_overflow(
        self, step: ClaimedStep, work: TurnWork, candidate: Candidate, error: StepFailed
    ) -> None:
        """Record with which model, or with how much of the conversation, the turn goes on. Raises the error if not."""
        after = self._candidates_of(step.state).next_after(candidate, self._available)
        if self._pool.switches_on_context and after is not None:
            await self._switch(step, work.turn, candidate, after, "context")
            return
        if not self._pool.compacts_on_context or step.state.compactions >= COMPACTIONS_MAX:
            raise error
        entries = await self._conversation(step.state, work.turn, candidate)
        before = text_bytes(compacted(entries, step.state.context_bytes_max))
        kept = text_bytes(compacted(entries, before // 2))
        if kept >= before:
            raise error
        await step.append(
            lambda stamp: events.ContextCompacted(*stamp, turn=work.turn, bytes_before=before, bytes_kept=kept)
        )
        log.warning("context.compacted", bytes_before=before, bytes_kept=kept)

    async def _conversation(self, state: TaskState, turn: int, candidate: Candidate) -> list[ConversationItem]:
        before = shown_to(await self._history.before(state), candidate.provider)
        return continued(before, conversation(state, turn, candidate.provider))

    async def _tools_of(self, step: ClaimedStep, attempt: Attempt, request: TaskRequest) -> dict[str, OfferedTool]:
        """The task's tools that are served. What is not is waited for, unless the turn before has done so in vain."""
        names = [name for name in dict.fromkeys(request.tools or ()) if name != ASK_USER]
        if not names:
            return {}
        tools = await self._toolbox.offered(names)
        before = step.state.turn(step.work.turn - 1).completed
        in_vain = before.missing_tools or [] if before is not None else []
        if all(name in in_vain for name in missing_from(names, tools)):
            return tools
        waited = await attempt.wait(self._all_offered(names), self._pool.tool_wait_seconds)
        return waited if isinstance(waited, dict) else await self._toolbox.offered(names)

    async def _all_offered(self, names: Sequence[str]) -> dict[str, OfferedTool]:
        while True:
            tools = await self._toolbox.offered(names)
            if not missing_from(names, tools):
                return tools
            await asyncio.sleep(TOOL_POLL_SECONDS)

    async def _prepare(
        self,
        step: ClaimedStep,
        work: TurnWork,
        candidate: Candidate,
        tools: dict[str, OfferedTool],
        missing: Sequence[str],
        measured: Measured,
    ) -> TurnInput | None:
        """What the model is asked; what it can't continue, or must not, is taken back first.

        None if the budget has no room for that: the turn ends with what there is.
        """
        turn = step.state.turn(work.turn)
        first_delta = min((n for n, _ in turn.parts + turn.reasoning), default=None)
        reason = restart_reason(step.state, work, candidate)
        if reason is not None:
            # What a provider has told of it is no estimate, and counts already.
            discard_from, discarded = first_delta, max(0, tokens_of(turn) - turn.told_output_tokens)
            left = budget_left(step.state)
            if reason not in WANTED_RESTARTS and left is not None and left <= discarded:
                return None
            await step.append(
                lambda stamp: events.TurnRestarted(
                    *stamp,
                    turn=work.turn,
                    attempt=step.claim.attempt or 1,
                    discard_from=stamp.n if discard_from is None else discard_from,
                    reason=reason,
                    discarded_tokens=discarded or None,
                )
            )
            metrics.discarded(work.pool, reason, discarded)
            log.info("turn.restarted", reason=reason, discarded_tokens=discarded)
        state = step.state
        turn, tokens_max = state.turn(work.turn), output_tokens_max(state)
        entries = compacted(await self._conversation(state, work.turn, candidate), state.context_bytes_max)
        measured.asks(candidate, entries)
        questions = (ASK_USER_DECLARATION,) if self._pool.ask_user else ()
        return TurnInput(
            messages=with_note_of_missing(entries, missing),
            model=candidate.model,
            size=self._candidates_of(state).size(state, work.turn, candidate),
            tools=(*(offered.declaration for offered in tools.values()), *questions),
            # A redirect may have taken back the last of the budget: the model is asked all the same, and then cut.
            max_output_tokens=None if tokens_max is None else max(1, tokens_max),
            temperature=state.request.temperature if state.request is not None else None,
            prefix=turn.text,
            tries=failed_tries(state, work.step),
            deliveries=turn.claims,
        )


def _is_used_up(state: TaskState) -> bool:
    """Whether the task's own budget has nothing left, so that no model is asked."""
    return 0 in (budget_left(state), cost_left_micros(state))
