"""Journals made by hand, folded without a broker: for tests of pure code and of handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.identifiers import new_id
from contracts.journal import events, parts
from contracts.journal.events import Event, JournalEvent, Stamp, decode_event
from contracts.journal.parts import Timings, Usage
from contracts.messages.work import ToolWork, TurnWork, Work
from contracts.tasks import TaskRequest, fingerprint
from mesh.clock import now
from mesh.errors import StepLost
from mesh.steps.claimed_step import ClaimedStep
from mesh.task.decisions import base_of_claim
from mesh.task.fold import fold
from mesh.task.state import TaskState

E = TypeVar("E", bound=Event)

TENANT = "acme"
TASK = "01jqzv3m8k5w2x7y9a4b6c8d0e"
MESSAGE = 7
"""Stream sequence of the work message in these tests."""
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EXPIRES_AT = START + timedelta(hours=24)
"""Until when approvals and questions stay open."""
CHILD = "01jqzv3m8k5w2x7y9a4b6c8d0f"
PARENT = "01jqzv3m8k5w2x7y9a4b6c8d0g"
SEQUENCES_PER_EVENT = 3
"""Other tasks' events lie between those of a journal: a sequence is not n."""


class HandMadeJournal:
    """A journal without a broker: each event gets the next n and sequence, and is folded as decoded from its bytes."""

    def __init__(self) -> None:
        self.state = TaskState(TENANT, TASK)
        self.events: list[JournalEvent] = []

    def fold(self, event: JournalEvent) -> None:
        """Store an event as the broker would, and fold what a reader would read."""
        payload = encode(event)
        read = decode_event(payload)
        assert read == event
        fold(self.state, self.state.revision + SEQUENCES_PER_EVENT, read, payload_bytes=len(payload))
        self.events.append(event)

    def stamp(self, time: datetime | None = None) -> Stamp:
        """The common fields of the next event; by default a second after the one before."""
        n = self.state.next_n
        return Stamp(new_id(), TASK, TENANT, n, time or START + timedelta(seconds=n))

    def add(self, kind: Callable[..., E], /, time: datetime | None = None, **fields: Any) -> E:
        """Append an event of this type."""
        event = kind(*self.stamp(time), **fields)
        self.fold(event)  # type: ignore[arg-type]  # every Event type is one of JournalEvent
        return event

    def types(self) -> list[str]:
        """The types of all events, in order."""
        return [events.event_type(event) for event in self.events]

    # The usual events, with what a test seldom cares for filled in.

    def queued(
        self,
        request: TaskRequest | None = None,
        *,
        deadline: datetime | None = None,
        time: datetime | None = None,
        parent: parts.Parent | None = None,
        reserved: parts.Reserved | None = None,
    ) -> events.TaskQueued:
        request = request or TaskRequest(input="hello")
        return self.add(
            events.TaskQueued,
            time,
            request=request,
            pool=request.pool,
            priority=request.priority,
            fingerprint=fingerprint(request),
            accepted_at=time or START,
            deadline=deadline,
            parent=parent,
            budget_tokens=request.budget_tokens,
            reserved=reserved,
        )

    def claimed(
        self, step: str = "1", gen: int = 0, *, message: int = MESSAGE, delivery: int = 1, time: datetime | None = None
    ) -> events.StepClaimed:
        turn, _, index = step.partition("-")
        return self.add(
            events.StepClaimed,
            time,
            step=step,
            gen=gen,
            message=message,
            worker="worker",
            delivery=delivery,
            turn=int(turn),
            attempt=None if index else self.state.turn(int(turn)).claims + 1,
            call=step if index else None,
            tool="add" if index else None,
            model=None if index else "scripted",
            base=None if index else base_of_claim(self.state, int(turn), self.state.next_n),
        )

    def switched(
        self, to: str, reason: Literal["context", "latency", "unavailable"], turn: int = 1, provider: str = "backup"
    ) -> events.ModelSwitched:
        return self.add(
            events.ModelSwitched, from_model="any", to_model=to, reason=reason, turn=turn, provider=provider
        )

    def compacted(self, bytes_before: int, turn: int = 1) -> events.ContextCompacted:
        return self.add(events.ContextCompacted, turn=turn, bytes_before=bytes_before, bytes_kept=bytes_before // 3)

    def delta(self, text: str, turn: int = 1) -> events.OutputDelta:
        return self.add(events.OutputDelta, turn=turn, text=text)

    def reasoning(self, text: str, turn: int = 1) -> events.ReasoningDelta:
        return self.add(events.ReasoningDelta, turn=turn, text=text)

    def restarted(
        self, discard_from: int, turn: int = 1, *, discarded_tokens: int | None = None
    ) -> events.TurnRestarted:
        return self.add(
            events.TurnRestarted,
            turn=turn,
            attempt=2,
            discard_from=discard_from,
            reason="takeover",
            discarded_tokens=discarded_tokens,
        )

    def released(self, step: str = "1", gen: int = 0) -> events.StepReleased:
        return self.add(events.StepReleased, step=step, gen=gen, reason="drain")

    def turn_completed(
        self,
        text: str = "done",
        turn: int = 1,
        *,
        calls: int = 0,
        finish_reason: parts.FinishReason = "stop",
        usage: Usage | None = None,
        time: datetime | None = None,
    ) -> events.TurnCompleted:
        return self.add(
            events.TurnCompleted,
            time,
            turn=turn,
            text=text,
            calls=[parts.ToolCall(f"{turn}-{index}", "add", {"a": 1, "b": 2}) for index in range(calls)],
            finish_reason=finish_reason,
            usage=usage or Usage(1, 2),
            timings=Timings(total_seconds=1.0),
        )

    def tool_completed(self, call: str = "1-0") -> events.ToolCompleted:
        return self.add(
            events.ToolCompleted, turn=int(call[0]), call=call, tool="add", result=3, timings=Timings(total_seconds=0.1)
        )

    def retrying(
        self,
        tries: int,
        step: str = "1",
        gen: int = 0,
        *,
        timer: bool = False,
        message: str | None = None,
        reason: str = "provider-error",
        time: datetime | None = None,
    ) -> events.TaskRetrying:
        delay_seconds = 30.0 if timer else 0.5
        return self.add(
            events.TaskRetrying,
            time=time,
            step=step,
            gen=gen,
            reason=reason,
            delay_seconds=delay_seconds,
            tries=tries,
            timer=timer,
            message=message,
        )

    def dead_lettered(self, step: str = "1", gen: int = 0) -> events.TaskDeadLettered:
        error = ErrorInfo("provider-error", f"{step} gave up")
        return self.add(events.TaskDeadLettered, step=step, gen=gen, error=error, deliveries=5)

    def replayed(self, *steps: tuple[str, int], **edits: Any) -> events.TaskReplayed:
        return self.add(
            events.TaskReplayed,
            steps=[parts.StepGen(step, gen) for step, gen in steps],
            by="ops",
            edits=parts.RecordedEdits(**edits) if edits else None,
        )

    def completed(self, output: str = "done", incomplete: parts.Incomplete | None = None) -> events.TaskCompleted:
        return self.add(
            events.TaskCompleted,
            output=output,
            incomplete=incomplete,
            usage=Usage(1, 2),
            timings=Timings(total_seconds=1.0),
        )

    # What agents do.

    def asks(
        self, *asked: parts.ToolCall, turn: int = 1, usage: Usage | None = None, missing_tools: list[str] | None = None
    ) -> events.TurnCompleted:
        """A turn that is completed with these calls."""
        return self.add(
            events.TurnCompleted,
            turn=turn,
            text="",
            calls=list(asked),
            finish_reason="tool_calls",
            usage=usage or Usage(1, 2),
            timings=Timings(),
            missing_tools=missing_tools,
        )

    def tool_failed(self, call: str = "1-0", tool: str = "add", code: str = "tool-timeout") -> events.ToolFailed:
        error = ErrorInfo(code, "no result")
        return self.add(events.ToolFailed, turn=int(call[0]), call=call, tool=tool, error=error, outcome="failed")

    def approval_requested(self, call: str = "1-0", tool: str = "wipe") -> events.ApprovalRequested:
        return self.add(events.ApprovalRequested, call=call, tool=tool, arguments={}, expires_at=EXPIRES_AT)

    def resolved(
        self, decision: Literal["approved", "denied", "expired"] = "approved", call: str = "1-0"
    ) -> events.ApprovalResolved:
        return self.add(events.ApprovalResolved, call=call, decision=decision, by="user")

    def input_requested(self, call: str = "1-0") -> events.InputRequested:
        return self.add(events.InputRequested, question="Which one?", call=call, expires_at=EXPIRES_AT)

    def told(
        self,
        text: str = "and this?",
        *,
        call: str | None = None,
        command: str | None = None,
        mode: Literal["append", "redirect"] = "append",
    ) -> events.InputReceived:
        return self.add(events.InputReceived, text=text, by="user", mode=mode, call=call, command=command)

    def child_started(self, call: str = "1-0", child: str = CHILD) -> events.SubtaskStarted:
        return self.add(events.SubtaskStarted, call=call, child=child)

    def child_ended(
        self, call: str = "1-0", child: str = CHILD, status: str = "completed", output: str | None = "done"
    ) -> events.SubtaskCompleted:
        return self.add(events.SubtaskCompleted, call=call, child=child, status=status, output=output)

    def cancelled(self) -> events.TaskCancelled:
        return self.add(events.TaskCancelled, output=self.state.output_so_far, by="user")


class FoldedStep(ClaimedStep):
    """A claimed step whose appends are folded, and stored nowhere.

    An append takes at least one round of the event loop. `on_append` is called with each event's type before it is
    stored, and may write into the journal what somebody else got in first.
    """

    def fitting(self, bytes_max: int) -> int:
        return bytes_max

    def __init__(
        self,
        journal: HandMadeJournal,
        work: Work,
        claim: events.StepClaimed,
        *,
        on_append: Callable[[str], None] | None = None,
    ) -> None:
        self.journal = journal
        self.work = work
        self.claim = claim
        self.deliveries = claim.delivery
        self.recalled = asyncio.Event()
        self.appends_open = 0
        self.on_news = None
        self._on_append = on_append

    @property
    def state(self) -> TaskState:
        return self.journal.state

    async def append(self, build: Callable[[Stamp], JournalEvent]) -> JournalEvent:
        self.appends_open += 1
        assert self.appends_open == 1, "two appends in flight"
        # Whoever cancels an append leaves it open, and the next one fails.
        await asyncio.sleep(0)
        if self._on_append is not None:
            self._on_append(events.event_type(build(self.journal.stamp(now()))))
        self.appends_open -= 1
        if not self.state.owns(self.claim):
            raise StepLost("somebody else has it")
        event = build(self.journal.stamp(now()))
        self.journal.fold(event)
        return event

    async def append_if(
        self, build: Callable[[Stamp], JournalEvent], still_so: Callable[[TaskState], bool]
    ) -> JournalEvent | None:
        return await self.append(build) if still_so(self.state) else None


def turn_work(request: TaskRequest | None = None, turn: int = 1, gen: int = 0, **fields: Any) -> TurnWork:
    """Work for a turn: the first as in TASKS, others as in TURNS."""
    if turn == 1 and gen == 0 and not fields.get("tries"):
        fields = {"request": request or TaskRequest(input="hello"), "accepted_at": START} | fields
    return TurnWork(task=TASK, tenant=TENANT, turn=turn, gen=gen, pool="default", priority="normal", **fields)


def tool_work(call: str = "1-0", gen: int = 0, tool: str = "add", arguments: dict[str, Any] | None = None) -> ToolWork:
    """Work for a call."""
    arguments = {"a": 1, "b": 2} if arguments is None else arguments
    return ToolWork(task=TASK, tenant=TENANT, turn=int(call[0]), call=call, gen=gen, tool=tool, arguments=arguments)
