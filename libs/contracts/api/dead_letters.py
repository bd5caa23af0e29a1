"""Dead letters over HTTP: the list of them, those of a task in full, and what a replay is asked for and answers."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from contracts.errors import ErrorInfo
from contracts.fields import Call, Count, Id, LaneName, Ordinal, Step, Tenant, Time
from contracts.journal.parts import StepGen
from contracts.messages.control import REPLAYED_STEPS_MAX, Edits, Reason
from contracts.messages.work import DeadLetter
from contracts.records.status import Links, OpenDeadLetter, Status
from contracts.tasks import TaskRequest

RECORDS_SHOWN_MAX = 100
RECORDS_SHOWN_BYTES_MAX = 8 * 1024 * 1024
"""Of a task, the newest: a record may have a message of 1 MiB in it."""
ERROR_CHARACTERS_LISTED_MAX = 1_000


class ListedDeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A dead letter as the list has it: without its message and its request, and with the last of its errors.

    `record_sequence` is the stream sequence of the record in DEAD_LETTERS. Without `task` it is a message that was no
    work, or fitted no journal: that one is known by its `record_sequence`, and open until it is deleted.
    """

    record_sequence: Ordinal
    id: Id
    time: Time
    open: bool
    error: ErrorInfo
    stream: str
    subject: str
    deliveries: Count
    tenant: Tenant | None = None
    task: Id | None = None
    step: Step | None = None
    gen: Count | None = None
    tool: LaneName | None = None
    tries: Count | None = None
    worker: str | None = None
    provider: str | None = None
    model: str | None = None
    traceparent: str | None = None


class DeadLetterList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of dead letters, the newest first. `cursor` is null on the last page."""

    dead_letters: list[ListedDeadLetter]
    cursor: str | None


class ShownDeadLetter(DeadLetter, frozen=True, kw_only=True, omit_defaults=True):
    """A dead letter's record in full, where it lies in DEAD_LETTERS, and whether it is open."""

    record_sequence: Ordinal
    open: bool
    tool: LaneName | None = None


class TaskDeadLetters(msgspec.Struct, frozen=True, kw_only=True):
    """The dead letters of a task. `open` are all that wait to be repaired, by its journal; `records` the newest ones.

    `more`: there are older records than those.
    """

    id: Id
    tenant: Tenant
    status: Status
    open: list[OpenDeadLetter]
    records: list[ShownDeadLetter]
    more: bool
    links: Links


class ReplayRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The body of `POST /v1/dead-letters/{id}/replay`. Unknown fields are refused: a misspelt repair must not be lost.

    `steps` names the dead letters to repair, each with its own gen; absent are all that are open. `dry_run`: only tell
    what it would do.
    """

    edits: Edits | None = None
    steps: Annotated[list[StepGen], Meta(min_length=1, max_length=REPLAYED_STEPS_MAX)] | None = None
    reason: Reason | None = None
    dry_run: bool = False


class ReplayAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a 202: each of `steps` goes on with the gen that it has here."""

    id: Id
    status: Status
    steps: list[StepGen]
    links: Links


class RequestChange(msgspec.Struct, frozen=True, kw_only=True):
    """What a task asks for, as it is and with the edits."""

    before: TaskRequest
    after: TaskRequest


class ArgumentsChange(msgspec.Struct, frozen=True, kw_only=True):
    """What a call is run with, as it is and with the edits."""

    tool: LaneName
    before: dict[str, Any]
    after: dict[str, Any]


class ReplayPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay would do. `arguments` has each call that would be run again."""

    id: Id
    status: Status
    steps: list[StepGen]
    request: RequestChange
    arguments: dict[Call, ArgumentsChange]
    links: Links
