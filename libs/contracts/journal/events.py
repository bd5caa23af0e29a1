"""The events of a journal: what has happened to a task, in the past tense.

A journal lives on two subjects, milestones on `.log`, tokens and progress on `.delta`; both together are
ordered by stream sequence and by `n`, which counts 0, 1, 2 … per task, dense as written. Events only ever
gain fields. Readers skip types they don't know, and count them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from contracts.codec import decode
from contracts.errors import ErrorInfo
from contracts.fields import By, Call, Count, Id, LaneName, Ordinal, Seconds, Step, Tenant, Time
from contracts.journal.heads import EventHead
from contracts.journal.parts import (
    Estimate,
    FinishReason,
    Incomplete,
    ModelCall,
    ObjectReference,
    Parent,
    RecordedEdits,
    Reserved,
    SpentReason,
    StepGen,
    Timings,
    ToolCall,
    Trigger,
    Usage,
)
from contracts.tasks import Priority, TaskRequest

MESSAGE_CHARACTERS_MAX = 1_000
REASON_CHARACTERS_MAX = 200


class Stamp(NamedTuple):
    """The fields that every event begins with, in their order: `OutputDelta(*stamp, turn=1, text="…")`."""

    id: str
    task: str
    tenant: str
    n: int
    time: datetime


class Event(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type"):
    """The fields of every event. `id` is a ULID of its own; `time` is RFC 3339 in UTC."""

    id: Id
    task: Id
    tenant: Tenant
    n: Count
    time: Time


class TaskQueued(Event, frozen=True, kw_only=True, tag="task.queued"):
    """Accepted, at `accepted_at`: the first event of every journal, whoever writes it and however late."""

    request: TaskRequest
    pool: LaneName
    priority: Priority
    fingerprint: str
    accepted_at: Time
    deadline: Time | None = None
    parent: Parent | None = None
    trigger: Trigger | None = None
    budget_tokens: Ordinal | None = None
    """How many tokens, read and put out, the turns may use up together."""
    by: By | None = None  # A caller, a rule, the critic; of a sub-task, who has submitted its parent.
    pool_bound: bool = False
    """Whether its submitter may use no other pool: its sub-tasks stay in the one that it is in."""
    estimate: Estimate | None = None
    reserved: Reserved | None = None
    """What it was thought to cost, and what of its tenant's budget was set aside for that."""


class StepClaimed(Event, frozen=True, kw_only=True, tag="step.claimed"):
    """A worker took a step. `message` is the stream sequence of the work message that the step is bound to."""

    step: Step
    gen: Count
    message: Ordinal
    worker: str
    delivery: Ordinal
    turn: Ordinal
    attempt: Ordinal | None = None
    provider: str | None = None
    model: str | None = None
    call: Call | None = None
    tool: LaneName | None = None
    reason: Annotated[str, Meta(max_length=REASON_CHARACTERS_MAX)] | None = None
    """Why this model, of a pool that chooses: a word, and figures. Absent: it is the pool's first that may be asked."""
    base: Count | None = None
    """Of a turn: n of the event from which on what there is of it was generated. That of this claim, if it begins."""
    lost: list[ModelCall] | None = None
    """Calls of models for this turn that went with the claim before."""


class StepReleased(Event, frozen=True, kw_only=True, tag="step.released"):
    """A step, claimed or not yet, has no owner any more, and its message does not stand for it: there is another one.

    `reason` is `drain` (its worker stops) or `message-lost` (its message is gone from its queue).
    """

    step: Step
    gen: Count
    reason: str


class OutputDelta(Event, frozen=True, kw_only=True, tag="output.delta"):
    """More of a turn's text."""

    turn: Ordinal
    text: str


class ReasoningDelta(Event, frozen=True, kw_only=True, tag="reasoning.delta"):
    """More of a turn's reasoning."""

    turn: Ordinal
    text: str


class TurnRestarted(Event, frozen=True, kw_only=True, tag="turn.restarted"):
    """The turn is generated again: forget its deltas from n = `discard_from` on.

    `discarded_tokens` is about how many tokens that takes back: a provider that was cut off has told no usage.
    """

    turn: Ordinal
    attempt: Ordinal
    discard_from: Count
    reason: str
    discarded_tokens: Ordinal | None = None


class TurnCompleted(Event, frozen=True, kw_only=True, tag="turn.completed"):
    """A turn's whole text, and the calls it asks for. `usage` is that of the call of `model` which answered it.

    `blocks` is what the provider wants to see again in the next turn as it was, such as signed thinking; opaque.
    """

    turn: Ordinal
    text: str
    reasoning: str | None = None
    calls: list[ToolCall] = []
    blocks: list[Any] | None = None
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    budget_left_tokens: Count | None = None
    """What was left of the task's budget then, of which its sub-tasks have used their part. Absent without a budget.

    0 as well where the turn has used up what its task may cost, or was cut since its tenant's budget is used up."""
    missing_tools: list[LaneName] | None = None
    """Tools of the request that nobody served when the turn was generated: the model was told so. Absent if none."""
    provider: str | None = None
    model: str | None = None
    pool: LaneName | None = None
    """Where `usage` counts."""


class ToolProgress(Event, frozen=True, kw_only=True, tag="tool.progress"):
    """How far a call is."""

    turn: Ordinal
    call: Call
    tool: LaneName
    progress: float
    total: float | None = None
    message: str | None = None


class ToolCompleted(Event, frozen=True, kw_only=True, tag="tool.completed"):
    """A call's recorded result. One that is too large lies in `object`, and `result` is the beginning of its JSON."""

    turn: Ordinal
    call: Call
    tool: LaneName
    result: Any
    object: ObjectReference | None = None
    timings: Timings


class ToolFailed(Event, frozen=True, kw_only=True, tag="tool.failed"):
    """A call that ended without a result; `unknown`: it may have had its effect."""

    turn: Ordinal
    call: Call
    tool: LaneName
    error: ErrorInfo
    outcome: Literal["failed", "unknown"]


class ApprovalRequested(Event, frozen=True, kw_only=True, tag="approval.requested"):
    """A call waits for a person."""

    call: Call
    tool: LaneName
    arguments: dict[str, Any]
    expires_at: Time


class ApprovalResolved(Event, frozen=True, kw_only=True, tag="approval.resolved"):
    """A person, or the clock, has decided on a call. Denied or expired, this is the call's result."""

    call: Call
    decision: Literal["approved", "denied", "expired"]
    by: str
    reason: str | None = None


class InputRequested(Event, frozen=True, kw_only=True, tag="input.requested"):
    """The task asks its user, and waits: a call of the tool `ask_user`."""

    question: str
    call: Call | None = None
    expires_at: Time | None = None


class InputReceived(Event, frozen=True, kw_only=True, tag="input.received"):
    """A message of the user in mid-run. With `call` it answers that question, and is the call's result.

    `command` is the message id of the command that brought it: the same command is carried out once.
    """

    text: str
    by: str
    mode: Literal["append", "redirect"]
    call: Call | None = None
    command: str | None = None


class SubtaskStarted(Event, frozen=True, kw_only=True, tag="subtask.started"):
    """A call became a task of its own. `budget_tokens` is what that one may use up, of what its parent had left."""

    call: Call
    child: Id
    budget_tokens: Ordinal | None = None


class SubtaskCompleted(Event, frozen=True, kw_only=True, tag="subtask.completed"):
    """A child has ended: the result of the call that it stands for. `usage` is that of its whole tree.

    `incomplete`, of a completed one, says why there is not more of its output, as in its own end.
    `uncounted_tokens` is the most that it may have used beyond that: a turn that was cut off, sub-tasks that still ran.
    """

    call: Call
    child: Id
    status: str
    output: str | None = None
    incomplete: Incomplete | None = None
    error: ErrorInfo | None = None
    usage: Usage | None = None
    uncounted_tokens: Ordinal | None = None


class ModelSwitched(Event, frozen=True, kw_only=True, tag="model.switched"):
    """Another model goes on with a turn, at `provider`; where the context was too long, with later turns too."""

    from_model: str = msgspec.field(name="from")
    to_model: str = msgspec.field(name="to")
    reason: Literal["context", "latency", "unavailable", "cost"]
    turn: Ordinal | None = None
    provider: str | None = None


class ModelHedged(Event, frozen=True, kw_only=True, tag="model.hedged"):
    """A model was asked for a turn beside a slow one: the first that gives a token goes on."""

    turn: Ordinal
    model: str
    provider: str


class ModelSpent(Event, frozen=True, kw_only=True, tag="model.spent"):
    """A model was asked for a turn, and what it said is not the turn's answer: what that has used all the same."""

    turn: Ordinal
    provider: str
    model: str
    pool: LaneName
    reason: SpentReason
    usage: Usage


class ContextCompacted(Event, frozen=True, kw_only=True, tag="context.compacted"):
    """The conversation was too long: from here on the model is shown at most half of `bytes_before`.

    Both count bytes of UTF-8; `bytes_kept` is what is left of it now.
    """

    turn: Ordinal
    bytes_before: Count
    bytes_kept: Count


class TaskRetrying(Event, frozen=True, kw_only=True, tag="task.retrying"):
    """A try of a step failed; the next comes after `delay_seconds`. `tries` counts the failed ones of this gen.

    `message` is the error's, for people. `timer`: the step's message was taken from its queue, and a timer brings it
    again then.
    """

    step: Step
    gen: Count = 0
    reason: str
    delay_seconds: Seconds
    tries: Ordinal
    timer: bool = False
    message: Annotated[str, Meta(max_length=MESSAGE_CHARACTERS_MAX)] | None = None


class TaskDeadLettered(Event, frozen=True, kw_only=True, tag="task.dead_lettered"):
    """A step gave up and waits to be repaired. A pause, not an end."""

    step: Step
    gen: Count
    error: ErrorInfo
    deliveries: Count


class TaskReplayed(Event, frozen=True, kw_only=True, tag="task.replayed"):
    """Dead-lettered steps go on; each is published again with gen + 1.

    Of what `edits` changes, all that follows counts with the change.
    """

    steps: Annotated[list[StepGen], Meta(min_length=1)]
    by: str
    edits: RecordedEdits | None = None
    reason: str | None = None


class End(Event, frozen=True, kw_only=True):
    """What each end may tell. `tree_usage` is the task's with all of its sub-tasks', where it has any.

    `over_budget_tokens`: how many tokens all of them have used beyond the task's budget. `lost`: calls of models that
    went with the task.
    """

    tree_usage: Usage | None = None
    over_budget_tokens: Ordinal | None = None
    lost: list[ModelCall] | None = None


class TaskCompleted(End, frozen=True, kw_only=True, tag="task.completed"):
    """The end: there is an output. `incomplete` says why there is not more of it."""

    output: str
    incomplete: Incomplete | None = None
    usage: Usage
    timings: Timings


class TaskFailed(End, frozen=True, kw_only=True, tag="task.failed"):
    """The end: the request itself could not be carried out."""

    error: ErrorInfo


class TaskCancelled(End, frozen=True, kw_only=True, tag="task.cancelled"):
    """The end: somebody stopped it. `output` is what there was."""

    output: str | None = None
    by: str | None = None
    reason: str | None = None


class TaskExpired(End, frozen=True, kw_only=True, tag="task.expired"):
    """The end: its deadline passed before it could run."""

    output: str | None = None
    by: str | None = None


JournalEvent = (
    TaskQueued
    | StepClaimed
    | StepReleased
    | OutputDelta
    | ReasoningDelta
    | TurnRestarted
    | TurnCompleted
    | ToolProgress
    | ToolCompleted
    | ToolFailed
    | ApprovalRequested
    | ApprovalResolved
    | InputRequested
    | InputReceived
    | SubtaskStarted
    | SubtaskCompleted
    | ModelSwitched
    | ModelHedged
    | ModelSpent
    | ContextCompacted
    | TaskRetrying
    | TaskDeadLettered
    | TaskReplayed
    | TaskCompleted
    | TaskFailed
    | TaskCancelled
    | TaskExpired
)
TerminalEvent = TaskCompleted | TaskFailed | TaskCancelled | TaskExpired

EVENT_TYPES: tuple[type[Event], ...] = JournalEvent.__args__
TERMINAL_TYPES = frozenset({"task.completed", "task.failed", "task.cancelled", "task.expired"})
DELTA_TYPES = frozenset({"output.delta", "reasoning.delta", "tool.progress"})
DELTAS = (OutputDelta, ReasoningDelta, ToolProgress)


class UnknownEvent(msgspec.Struct, frozen=True):
    """An event of a type that this version does not know: skipped, and counted."""

    head: EventHead


def decode_event(payload: bytes) -> JournalEvent | UnknownEvent:
    """Decode a stored event. Raises `InvalidPayload` if it is none, or a known type with wrong fields."""
    head = decode(payload, EventHead)
    if head.type not in _KNOWN_TYPES:
        return UnknownEvent(head)
    return decode(payload, JournalEvent)  # type: ignore[arg-type]  # a union is no type to mypy


def decode_head(payload: bytes) -> EventHead:
    """Decode only what every event has: cheaper, and works for types that are news."""
    return decode(payload, EventHead)


def event_type(event: Event) -> str:
    """The wire name of an event's type, e.g. `turn.completed`."""
    return str(event.__struct_config__.tag)


def is_delta(event: Event) -> bool:
    """True if the event belongs on `.delta`."""
    return isinstance(event, DELTAS)


_KNOWN_TYPES = frozenset(str(kind.__struct_config__.tag) for kind in EVENT_TYPES)
