"""Commands to a task: what waits in CONTROL until the steward carries it out.

As with work messages no payload is trusted: each is validated against its type and the subject it came on. Timers that
have fired carry the same commands.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from contracts import subjects
from contracts.codec import decode
from contracts.errors import ErrorInfo, InvalidPayload
from contracts.fields import By, Call, Count, Id, Ordinal, Step, Tenant
from contracts.identifiers import derived_id
from contracts.journal.parts import Incomplete, RecordedEdits, StepGen, Usage

REASON_CHARACTERS_MAX = 2_000
"""Like `by` it ends up in a terminal event beside an output that may take 448 KiB of the event's 1 MiB."""
INPUT_CHARACTERS_MAX = 100_000
REPLAYED_STEPS_MAX = 1_000
COMMAND_CHARACTERS_MAX = 128
HOLD_SECONDS_MAX = 2.0
"""No owner lets itself be held for longer at once."""

Reason = Annotated[str, Meta(max_length=REASON_CHARACTERS_MAX)]
InputMode = Literal["append", "redirect"]
Decision = Literal["approved", "denied", "expired"]


class Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """What every command has. `by` says who wants it: a person's approval may have to be another's (`[approvals]`)."""

    task: Id
    tenant: Tenant
    by: By


class CancelCommand(Command, frozen=True, kw_only=True, omit_defaults=True, tag="cancel"):
    """Stop a task, for good. `reason` says why: it is for people."""

    reason: Reason | None = None


class InputCommand(Command, frozen=True, kw_only=True, omit_defaults=True, tag="input"):
    """A message of the user in mid-run. `command` is its message id.

    `append`: the oldest open question is answered; if there is none, the next turn sees it. `redirect`: the turn under
    way begins again with it, and what else waits for a person is called off.
    """

    text: Annotated[str, Meta(min_length=1, max_length=INPUT_CHARACTERS_MAX)]
    mode: InputMode = "append"
    command: Annotated[str, Meta(min_length=1, max_length=COMMAND_CHARACTERS_MAX)]


class ApprovalCommand(Command, frozen=True, kw_only=True, omit_defaults=True, tag="approval"):
    """A decision on one call. `expired` is the clock's, on an approval or on a question."""

    call: Call
    decision: Decision
    reason: Reason | None = None


class ChildDoneCommand(Command, frozen=True, kw_only=True, omit_defaults=True, tag="child_done"):
    """A sub-task has ended. `task` is the parent; the rest is the child's, as in `subtask.completed`."""

    call: Call
    child: Id
    status: str
    output: str | None = None
    incomplete: Incomplete | None = None
    error: ErrorInfo | None = None
    usage: Usage | None = None
    uncounted_tokens: Ordinal | None = None


class Edits(RecordedEdits, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a replay is to change. Unknown fields are refused: a misspelt repair must not be ignored."""

    def recorded(self) -> RecordedEdits:
        """The same, as the journal keeps it."""
        return RecordedEdits(**msgspec.structs.asdict(self))


class ReplayCommand(Command, frozen=True, kw_only=True, omit_defaults=True, tag="replay"):
    """Go on with steps that gave up. `steps` names the dead letters that it repairs, each with its own gen."""

    steps: Annotated[list[StepGen], Meta(min_length=1, max_length=REPLAYED_STEPS_MAX)]
    edits: Edits | None = None
    reason: Reason | None = None


class RetryCommand(Command, frozen=True, kw_only=True, omit_defaults=True, tag="retry"):
    """A timer's: the step's next try is due. `tries` counts the ones that failed."""

    step: Step
    gen: Count
    tries: Ordinal


class DeadlineCommand(Command, frozen=True, kw_only=True, omit_defaults=True, tag="deadline"):
    """A timer's: the task's deadline has passed. It ends what nobody else has ended."""


class RoomCommand(Command, frozen=True, kw_only=True, omit_defaults=True, tag="room"):
    """A timer's: what a step waits for was refused for want of room, `refusals` times, and is to be published now.

    `gen`, `tries` and `releases` are those of the step at the time, so that it is known whether anybody has published
    it since.
    """

    step: Step
    gen: Count = 0
    tries: Count = 0
    releases: Count = 0
    refusals: Ordinal = 1


AnyCommand = (
    CancelCommand
    | InputCommand
    | ApprovalCommand
    | ChildDoneCommand
    | ReplayCommand
    | RetryCommand
    | DeadlineCommand
    | RoomCommand
)


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Asks who works on a task to append nothing for so many seconds. A core message, without any promise."""

    seconds: Annotated[float, Meta(ge=0, le=HOLD_SECONDS_MAX)]


def cancel_message_id(task: str) -> str:
    """`Nats-Msg-Id` of a cancel, `<task>.cancel`: one for each task, so that twice is the same as once."""
    return f"{subjects.check_task(task)}.cancel"


def input_message_id(task: str, request: str) -> str:
    """`Nats-Msg-Id` of an input, `<task>.input.<request>`: unique to the request that brought it."""
    return f"{subjects.check_task(task)}.input.{request}"


def approval_message_id(task: str, call: str, decision: str) -> str:
    """`Nats-Msg-Id` of a decision, `<task>.approval.<call>.<decision>`."""
    return f"{subjects.check_task(task)}.approval.{subjects.check_call(call)}.{decision}"


def replay_message_id(task: str, steps: list[StepGen]) -> str:
    """`Nats-Msg-Id` of a replay, `<task>.replay.<dead letters>`: the same for the same dead letters, in any order."""
    named = derived_id("replay", *sorted(f"{each.step}.g{each.gen}" for each in steps))
    return f"{subjects.check_task(task)}.replay.{named}"


def retry_message_id(task: str, step: str, gen: int, tries: int) -> str:
    """`Nats-Msg-Id` of a step's later try, and of its timer: `<task>.<step>.g<gen>.t<tries>`."""
    return f"{subjects.check_task(task)}.{step}.g{gen}.t{tries}"


def retry_timer_name(step: str, gen: int, tries: int) -> str:
    """The last token of a later try's timer: one schedule for each try, so that none takes another's place."""
    return f"{step}-g{gen}-t{tries}"


def deadline_message_id(task: str) -> str:
    """`Nats-Msg-Id` of the timer of a task's deadline: `<task>.deadline`."""
    return f"{subjects.check_task(task)}.deadline"


def child_done_message_id(child: str) -> str:
    """`Nats-Msg-Id` of the news of a child's end, `<child>.done`."""
    return f"{subjects.check_task(child)}.done"


def decode_control(payload: bytes, subject: str) -> AnyCommand:
    """Decode a command and hold it against its subject, one of CONTROL or that of a timer that has fired.

    Raises `InvalidPayload` (or `InvalidName` for a subject outside the grammar) if it is not the command that
    belongs there, or one of a kind that this version does not carry out.
    """
    kind, tenant = (
        subjects.parse_timer_fired(subject) if subject.startswith("timers.") else subjects.parse_control(subject)
    )
    command: AnyCommand = decode(payload, AnyCommand)  # type: ignore[arg-type]  # a union is no type to mypy
    if command.tenant != tenant or command.__struct_config__.tag != kind:
        raise InvalidPayload(f"not a command of the kind and tenant that {subject} is for")
    return command
