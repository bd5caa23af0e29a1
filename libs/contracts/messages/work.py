"""Work messages: what waits in TASKS, TURNS and TOOLS, and what a dead letter keeps of it.

Workers trust no payload: any client that may publish can write one, so each is validated against its type
and against the subject it came on.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from contracts import subjects
from contracts.codec import decode
from contracts.errors import ErrorInfo, InvalidPayload
from contracts.fields import By, Call, Count, Id, LaneName, Ordinal, Step, Tenant, Time
from contracts.identifiers import turn_step
from contracts.journal.parts import Estimate, Parent, Reserved, Trigger
from contracts.tasks import Priority, TaskRequest


class TurnWork(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="turn"):
    """One model turn. `request` is there on turn 1 only: TASKS is the commit point of a submission.

    `tries`: how many had failed when a timer brought this message; 0 for the one before all timers. `releases`: how
    often the step had been released when it was published. `by`, on turn 1: who has submitted the task; `pool_bound`:
    whether they may use no other pool; `estimate`: what it is thought to cost; `reserved`: what of its tenant's budget
    was set aside for it.
    """

    task: Id
    tenant: Tenant
    turn: Ordinal
    gen: Count = 0
    tries: Count = 0
    releases: Count = 0
    pool: LaneName
    priority: Priority
    request: TaskRequest | None = None
    accepted_at: Time | None = None
    deadline: Time | None = None
    parent: Parent | None = None
    trigger: Trigger | None = None
    budget_tokens: Ordinal | None = None
    by: By | None = None
    pool_bound: bool = False
    estimate: Estimate | None = None
    reserved: Reserved | None = None

    @property
    def step(self) -> str:
        """The step's name, e.g. `"1"`."""
        return turn_step(self.turn)


class ToolWork(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="tool"):
    """One tool call. `tries` and `releases` as in `TurnWork`."""

    task: Id
    tenant: Tenant
    turn: Ordinal
    call: Call
    gen: Count = 0
    tries: Count = 0
    releases: Count = 0
    tool: LaneName
    arguments: dict[str, Any]
    deadline: Time | None = None

    @property
    def step(self) -> str:
        """The step's name, which is the call's id, e.g. `"1-0"`."""
        return self.call


Work = TurnWork | ToolWork


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that a person needs to know about work that gave up, on `dead.<tenant>.<task>`.

    `message` is the work message as text (base64 if it is not UTF-8), `sequence` its place in `stream`;
    `errors` are those of the tries that failed, the last one's last. `request` is what the task asks for, with the
    edits of replays. `journal_from` and `journal_to` are stream sequences in EVENTS; `task`, `step` and `gen` are
    missing where the message could not be read.
    """

    id: Id
    time: Time
    stream: str
    subject: str
    sequence: Count
    deliveries: Count
    message: str
    message_encoding: Literal["utf-8", "base64"] = "utf-8"
    errors: Annotated[list[ErrorInfo], Meta(min_length=1)]
    tenant: Tenant | None = None
    task: Id | None = None
    step: Step | None = None
    gen: Count | None = None
    request: TaskRequest | None = None
    worker: str | None = None
    provider: str | None = None
    model: str | None = None
    tries: Count | None = None
    journal_from: Count | None = None
    journal_to: Count | None = None
    traceparent: str | None = None


def decode_work(payload: bytes, subject: str) -> Work:
    """Decode a work message and hold it against its subject.

    Raises `InvalidPayload` (or `InvalidName` for a subject outside the grammar) if it is not the work that
    belongs there.
    """
    work: Work = decode(payload, Work)  # type: ignore[arg-type]  # a union is no type to mypy
    prefix = subject.partition(".")[0]
    if prefix == "tools":
        if not isinstance(work, ToolWork) or work.tool != subjects.parse_tools(subject):
            raise InvalidPayload(f"not a call of the tool that {subject} is for")
        return work
    if prefix == "backlog":
        lane = subjects.parse_backlog(subject)
    else:
        lane = subjects.parse_tasks(subject) if prefix == "tasks" else subjects.parse_turns(subject)
    if not isinstance(work, TurnWork) or (work.pool, work.priority, work.tenant) != tuple(lane):
        raise InvalidPayload(f"not a turn of the lane that {subject} is for")
    if prefix == "tasks" and (work.turn != 1 or work.request is None or work.accepted_at is None):
        raise InvalidPayload("a message in TASKS must be turn 1, with `request` and `accepted_at`")
    if prefix == "backlog" and work.request is not None and (work.turn != 1 or work.accepted_at is None):
        raise InvalidPayload("a request in BACKLOG must be of turn 1, with `accepted_at`")
    if prefix == "turns" and work.request is not None:
        raise InvalidPayload("a message in TURNS must not carry a request")
    return work
