"""The workers and runners of a small mesh: they decide on a delivery, claim its step, perform it and settle it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal

from contracts.errors import ErrorInfo
from contracts.journal import events, parts
from contracts.journal.events import JournalEvent, Stamp
from contracts.journal.parts import Timings, Usage
from contracts.messages.work import ToolWork, TurnWork, Work
from contracts.records.tools import ASK_USER, SPAWN_TASK, ToolDeclaration
from contracts.retries import RetryPolicy
from inference_worker.models.candidates import Candidates
from inference_worker.models.chunks import RequestedCall
from inference_worker.turn.attempts import is_redirected
from inference_worker.turn.calls import OfferedTool, decided_calls
from inference_worker.turn.restarting import restart_reason
from inference_worker.turn.turns import task_completed
from mesh.task.budget import budget_left, budget_left_with, share_of_budget
from mesh.task.conversation import conversation
from mesh.task.decisions import (
    Begin,
    Claim,
    Decision,
    Drop,
    Expire,
    Later,
    Refuse,
    Settle,
    SettleDeadLetter,
    base_of_claim,
    decide,
)
from mesh.task.failures import Fail, GiveUp, Retry, StepFailed, decide_failure
from mesh.task.limits import is_last_turn
from mesh.task.outbox import deadline_timer, unasked
from mesh.task.state import TaskState
from mesh.task.subtasks import child_id
from tests.unit.journals import TASK
from tests.unit.played import PlayedProvider
from tests.unit.small_broker import Delivery, View
from tests.unit.small_writer import (
    Asked,
    Build,
    Lost,
    Luck,
    MayAppend,
    SmallWriter,
    Steps,
    dead_lettered,
    expired,
    queued,
)

POLICY = RetryPolicy(tries_max=3, delay_seconds_first=1.0, delay_seconds_max=1.0)
MODELS = (("main", "large"), ("backup", "small"))
WAITING = timedelta(hours=24)
BUSY_SECONDS = 20.0
"""A delay that the other side names, and that goes through a timer."""
TOOLS = {
    name: OfferedTool(ToolDeclaration(name=name, description="", parameters={}, destructive=name == "wipe"))
    for name in ("add", "wipe", SPAWN_TASK)
}
REQUESTED: dict[Asked, RequestedCall] = {
    "plain": RequestedCall("add", {"a": 1}),
    "approval": RequestedCall("wipe", {"path": "/"}),
    "question": RequestedCall(ASK_USER, {"question": "Which one?"}),
    "child": RequestedCall(SPAWN_TASK, {"input": "hi"}),
    "unknown": RequestedCall("No such tool!", {}),
    "no-object": RequestedCall("add", None, "not JSON"),
    "no-question": RequestedCall(ASK_USER, {}),
}


class Drained(Exception):
    """The process stops, and hands its step over."""


@dataclass(slots=True)
class SmallWorker(SmallWriter):
    """What works on turns and calls."""

    def work(self, delivery: Delivery, behind: int) -> Steps:
        """One delivery of a turn or a call."""
        work = delivery.message.payload
        assert isinstance(work, Work)
        view = View(self.broker, behind)
        yield
        try:
            claim = yield from self._claim(view, work, delivery)
            if claim is not None:
                yield from self._perform(view, work, claim, delivery)
        except Lost:
            pass

    def _claim(self, view: View, work: Work, delivery: Delivery) -> Generator[None, None, events.StepClaimed | None]:
        sequence = delivery.message.sequence
        while True:
            decision = decide(view.state, work, sequence, self.now)
            match decision:
                case Begin() | Expire() | Claim():
                    if isinstance(decision, Claim) and work.step == "1":
                        for due in deadline_timer(view.state):
                            yield
                            self._send(due)
                    appended = yield from self._try(view, work, delivery, decision)
                    if isinstance(appended, events.StepClaimed):
                        return appended
                    continue
                case Settle():
                    yield from self._settle(view.state, (work.step,), delivery)
                case SettleDeadLetter() | Drop():
                    yield from self._ack(delivery)
                case Later():
                    assert view.is_behind, f"nobody could ever do {work}"
                    self.broker.give_back(delivery)
                case Refuse():
                    assert view.is_behind, f"{work} was never asked for"
                    self.broker.give_back(delivery)
            return None

    def _try(
        self, view: View, work: Work, delivery: Delivery, decision: Decision
    ) -> Generator[None, None, JournalEvent | None]:
        match decision:
            case Begin():
                build: Build = partial(queued, decision.work)
            case Expire():
                build = expired
            case _:
                build = partial(self._claimed, view, work, delivery)

        def still_so(state: TaskState) -> bool:
            return delivery.lease_held and decide(state, work, delivery.message.sequence, self.now) == decision

        try:
            return (yield from self.append(view, build, still_so))
        except Lost:
            if not delivery.lease_held:
                raise
            return None

    def _claimed(self, view: View, work: Work, delivery: Delivery, stamp: Stamp) -> JournalEvent:
        tool = work if isinstance(work, ToolWork) else None
        candidate = None if tool else self._candidates.of_turn(view.state, work.turn)
        return events.StepClaimed(
            *stamp,
            step=work.step,
            gen=work.gen,
            message=delivery.message.sequence,
            worker="test",
            delivery=delivery.message.deliveries,
            turn=work.turn,
            attempt=None if tool else view.state.turn(work.turn).claims + 1,
            provider=candidate.provider if candidate else None,
            model=candidate.model if candidate else None,
            call=tool.call if tool else None,
            tool=tool.tool if tool else None,
            base=None if tool else base_of_claim(view.state, work.turn, stamp.n),
        )

    def _perform(self, view: View, work: Work, claim: events.StepClaimed, delivery: Delivery) -> Steps:
        owned: MayAppend = lambda state: state.owns(claim)  # noqa: E731 - a name for what is passed on
        try:
            try:
                if isinstance(work, TurnWork):
                    yield from self._generate(view, work, claim, owned)
                    yield from self._record_consequences(view, work.turn, owned)
                else:
                    yield from self._carry_out(view, work, owned)
            except Drained:
                yield from self.append(view, partial(_released, work), owned)
            except StepFailed as error:
                retry = yield from self._fail(view, work, error, owned)
                if retry is not None and not retry.by_timer:
                    self.broker.give_back(delivery)
                    return
                if retry is None and view.state.terminal is None:
                    yield from self._ack(delivery)
                    return
        except Lost:
            if view.state.terminal is None or not view.state.is_last_claim(claim):
                raise
        yield from self._settle(view.state, (work.step,), delivery)

    def _fail(self, view: View, work: Work, error: StepFailed, owned: MayAppend) -> Generator[None, None, Retry | None]:
        """How the step is tried again, if it is."""
        match decide_failure(view.state, work, error, POLICY, 0.5):
            case Fail():
                yield from self.append(view, lambda stamp: events.TaskFailed(*stamp, error=error.info()), owned)
            case GiveUp():
                yield from self.append(view, partial(dead_lettered, work, error.info()), owned)
            case Retry() as retry:
                yield from self.append(view, partial(_retrying, work, retry), owned)
                return retry
        return None

    def _try_luck(self) -> None:
        luck, self.luck = self.luck, "fine"
        if luck == "drains":
            raise Drained
        if luck in ("retryable", "busy", "hopeless", "terminal"):
            after = BUSY_SECONDS if luck == "busy" else None
            retryable = luck in ("retryable", "busy")
            raise StepFailed("test", luck, retryable=retryable, terminal=luck == "terminal", retry_after_seconds=after)

    def _generate(self, view: View, work: TurnWork, claim: events.StepClaimed, owned: MayAppend) -> Steps:
        while view.state.turn(work.turn).completed is None:
            if budget_left(view.state) == 0:
                yield from self.append(view, partial(_completed_with_nothing, view, work.turn), owned)
                return
            if self.luck in ("switches", "compacts"):
                yield from self.append(view, partial(self._degraded, view, work.turn, self.luck), owned)
                self.luck = "fine"
            turn = view.state.turn(work.turn)
            reason = restart_reason(view.state, work, self._candidates.of_turn(view.state, work.turn))
            if reason is not None:
                first = turn.parts[0][0] if turn.parts else None
                yield from self.append(view, partial(_restarted, work.turn, first, reason), owned)
            check_conversation(view.state, work.turn)
            for _ in range(2):
                yield from self.append(
                    view, lambda stamp: events.OutputDelta(*stamp, turn=work.turn, text=f"{work.turn}"), owned
                )
                if is_redirected(view.state, work.turn):
                    break
            if is_redirected(view.state, work.turn):
                continue
            self._try_luck()
            yield from self.append(view, partial(self._completed, view, work.turn), owned)
            self.place = "completed"
            yield

    @property
    def _candidates(self) -> Candidates:
        return Candidates.of_providers(
            PlayedProvider(named=named, continues_prefix=self.continues_prefix) for named in MODELS
        )

    def _degraded(self, view: View, turn: int, luck: Luck, stamp: Stamp) -> JournalEvent:
        """Another model goes on, or the same one with less of the conversation."""
        if luck == "compacts":
            return events.ContextCompacted(*stamp, turn=turn, bytes_before=100, bytes_kept=50)
        before = self._candidates.of_turn(view.state, turn)
        provider, model = MODELS[1 - before.index]
        reason: Literal["context", "latency"] = "context" if before.index == 0 else "latency"
        return events.ModelSwitched(
            *stamp, from_model=before.model, to_model=model, reason=reason, turn=turn, provider=provider
        )

    def _completed(self, view: View, turn: int, stamp: Stamp) -> JournalEvent:
        state = view.state
        late = self.deadline is not None and stamp.time >= self.deadline
        asked = [] if late or turn > len(self.script) else [REQUESTED[each] for each in self.script[turn - 1]]
        return events.TurnCompleted(
            *stamp,
            turn=turn,
            text=state.turn(turn).text,
            calls=decided_calls(turn, asked, TOOLS, self.request),
            finish_reason="length" if late else "tool_calls" if asked else "stop",
            usage=Usage(1, 1),
            timings=Timings(),
            budget_left_tokens=budget_left_with(state, Usage(1, 1)),
        )

    def _record_consequences(self, view: View, turn: int, owned: MayAppend) -> Steps:
        while True:
            completed = view.state.turn(turn).completed
            assert completed is not None
            asked = unasked(view.state, completed)
            if asked is None and not is_last_turn(view.state, completed):
                return
            build = partial(_asked_for, asked) if asked else partial(_ended, view, turn)

            def still_so(
                state: TaskState, completed: events.TurnCompleted = completed, asked: parts.ToolCall | None = asked
            ) -> bool:
                return (
                    owned(state)
                    and unasked(state, completed) == asked
                    and (asked is not None or is_last_turn(state, completed))
                )

            try:
                yield from self.append(view, build, still_so)
            except Lost:
                if not owned(view.state):
                    raise
            if view.state.terminal is not None:
                return

    def _carry_out(self, view: View, work: ToolWork, owned: MayAppend) -> Steps:
        asked = view.state.asked_for(work.call)
        assert asked is not None
        assert not asked.approval or view.state.resolutions[work.call].decision == "approved"
        if work.tool == SPAWN_TASK:
            child = child_id(TASK, work.call, work.gen)
            if share_of_budget(view.state, work.call) == 0:
                yield from self.append(view, partial(_tool_refused, work), owned)
                return
            yield from self.append(
                view,
                lambda stamp: events.SubtaskStarted(
                    *stamp, call=work.call, child=child, budget_tokens=share_of_budget(view.state, work.call)
                ),
                lambda state: owned(state) and share_of_budget(state, work.call) != 0,
            )
            return
        yield
        self._try_luck()
        # What it was run with, of which the journal is to say the same when it has its result.
        yield from self.append(view, partial(_tool_completed, work, asked.arguments), owned)


def check_conversation(state: TaskState, before_turn: int) -> None:
    """Each call of a turn is answered right behind it, once, in order."""
    entries = conversation(state, before_turn)
    open_calls: list[str] = []
    for entry in entries:
        call = getattr(entry, "call", None)
        if call is not None:
            assert call == open_calls.pop(0)
            continue
        assert not open_calls, f"{open_calls} are not answered"
        open_calls = [asked.call for asked in getattr(entry, "calls", ())]
    assert not open_calls, f"{open_calls} are not answered"


def _restarted(turn: int, first: int | None, reason: str, stamp: Stamp) -> JournalEvent:
    return events.TurnRestarted(
        *stamp,
        turn=turn,
        attempt=1,
        discard_from=stamp.n if first is None else first,
        reason=reason,
    )


def _asked_for(asked: parts.ToolCall, stamp: Stamp) -> JournalEvent:
    expires_at = stamp.time + WAITING
    if asked.error is not None:
        turn = int(asked.call.partition("-")[0])
        return events.ToolFailed(
            *stamp, turn=turn, call=asked.call, tool=asked.tool, error=asked.error, outcome="failed"
        )
    if asked.tool == ASK_USER:
        return events.InputRequested(*stamp, question="?", call=asked.call, expires_at=expires_at)
    return events.ApprovalRequested(
        *stamp, call=asked.call, tool=asked.tool, arguments=asked.arguments, expires_at=expires_at
    )


def _ended(view: View, turn: int, stamp: Stamp) -> JournalEvent:
    return task_completed(stamp, view.state, turn)


def _tool_completed(work: ToolWork, arguments: dict[str, Any], stamp: Stamp) -> JournalEvent:
    return events.ToolCompleted(
        *stamp, turn=work.turn, call=work.call, tool=work.tool, result=arguments, timings=Timings()
    )


def _released(work: Work, stamp: Stamp) -> events.StepReleased:
    return events.StepReleased(*stamp, step=work.step, gen=work.gen, reason="drain")


def _tool_refused(work: ToolWork, stamp: Stamp) -> JournalEvent:
    error = ErrorInfo("tool-refused", "nothing is left")
    return events.ToolFailed(*stamp, turn=work.turn, call=work.call, tool=work.tool, error=error, outcome="failed")


def _completed_with_nothing(view: View, turn: int, stamp: Stamp) -> JournalEvent:
    """No model is asked with nothing left."""
    return events.TurnCompleted(
        *stamp,
        turn=turn,
        text=view.state.turn(turn).text,
        finish_reason="length",
        usage=Usage(),
        timings=Timings(),
        budget_left_tokens=0,
    )


def _retrying(work: Work, retry: Retry, stamp: Stamp) -> JournalEvent:
    return events.TaskRetrying(
        *stamp,
        step=work.step,
        gen=work.gen,
        reason="test",
        delay_seconds=retry.delay_seconds,
        tries=retry.tries,
        timer=retry.by_timer,
    )
