"""What events are made of: usage, calls, origins, edits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from contracts.errors import ErrorInfo
from contracts.fields import Call, Count, Id, LaneName, Ordinal, Seconds, SignalFilter, Step
from contracts.tasks import Priority, RequestInput, RequestModel

CALLS_EDITED_MAX = 64
CHAIN_RULES_MAX = 8
"""How many rules may set one another off, one after the other."""
SENDS_MAX = 32
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Incomplete = Literal["deadline", "max_output_tokens", "max_turns", "journal_bytes", "budget", "content_filter"]


class Usage(msgspec.Struct, frozen=True):
    """Tokens that the provider counted, and what they cost. What is absent was not told, or is none.

    `cached_tokens` and `cache_creation_tokens` are parts of `input_tokens`: read from the provider's cache, and written
    into it; `reasoning_tokens` is a part of `output_tokens`. `cost_micros`: millionths of the currency of the prices;
    absent, nothing of it has a price, and beside it `unpriced_tokens` are those that have none. `untold_calls`: how
    many calls of a model are not in here, or not wholly, as their provider told no usage. `discarded_tokens`, of a
    task: about how many its restarts have thrown away that are in no provider's count.
    """

    input_tokens: Count = 0
    output_tokens: Count = 0
    discarded_tokens: Ordinal | msgspec.UnsetType | None = msgspec.UNSET
    cached_tokens: Ordinal | msgspec.UnsetType = msgspec.UNSET
    cache_creation_tokens: Ordinal | msgspec.UnsetType = msgspec.UNSET
    reasoning_tokens: Ordinal | msgspec.UnsetType = msgspec.UNSET
    cost_micros: Count | msgspec.UnsetType = msgspec.UNSET
    unpriced_tokens: Ordinal | msgspec.UnsetType = msgspec.UNSET
    untold_calls: Ordinal | msgspec.UnsetType = msgspec.UNSET


class ModelCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call of a model of which nobody has told what it has used, as whoever made it has died or was cut off."""

    turn: Ordinal
    provider: str | None = None
    model: str | None = None
    pool: LaneName | None = None


SpentReason = Literal["hedge", "slow", "failed", "redirect", "recall"]
"""Why what a model was asked for is not its turn's answer: another one gave its first token sooner, it gave none in
time, its call failed, its user said something else, its worker stops."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a task was thought to cost when it was accepted: tokens of its first turn, and where they are from.

    `basis` of what is put out: `limit` (the request or its pool bounds it), `median` (what the pool's turns have put
    out lately) or `default`. `lowered_from`: the lane that was asked for, where the task got a less urgent one, for
    `lowered_for`: its tenant's `tier`, or its `size`.
    """

    input_tokens: Count
    output_tokens: Count
    basis: Literal["limit", "median", "default"] = "default"
    lowered_from: Priority | None = None
    lowered_for: Literal["tier", "size"] | None = None

    @property
    def tokens(self) -> int:
        """Read and put out together."""
        return self.input_tokens + self.output_tokens


class Reserved(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What of its tenant's budget was set aside for a task: tokens, and millionths of the currency.

    It is less than the estimate where that is more than a limit, and nothing in a unit that has no limit.
    """

    tokens: Count = 0
    cost_micros: Count = 0


class Timings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Seconds in the queue, from claim to first token, and from claim to end."""

    queued_seconds: Seconds | None = None
    first_token_seconds: Seconds | None = None
    total_seconds: Seconds | None = None


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call that a model asked for, and what was decided on it when its turn was completed.

    `approval`: a person has to agree first. `error`: it can't be carried out at all (no such tool, arguments that are
    no JSON), and is answered with `tool.failed` at once.
    """

    call: Call
    tool: LaneName
    arguments: dict[str, Any]
    approval: bool = False
    error: ErrorInfo | None = None


class Parent(msgspec.Struct, frozen=True):
    """The call that a sub-task stands for. `depth` is 1 for a child of a task that has no parent itself."""

    task: Id
    call: Call
    depth: Ordinal


class Trigger(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What started a task that nobody asked for: a rule, and the signal or firing that it took.

    `signal` is the sequence in SIGNALS, or of a firing in TIMERS. `chain` is the rules that led here, this one last.
    `sends`: the only signals that the task may send, as filters below its tenant; absent, the settings alone say.
    """

    rule: LaneName
    signal: Ordinal
    chain: Annotated[list[LaneName], Meta(min_length=1, max_length=CHAIN_RULES_MAX)]
    sends: Annotated[list[SignalFilter], Meta(max_length=SENDS_MAX)] | None = None


class ObjectReference(msgspec.Struct, frozen=True):
    """A result that is too large for an event, as JSON in an object store bucket. `digest` is `SHA-256=<base64url>`."""

    bucket: str
    name: str
    size: Count
    digest: str


class StepGen(msgspec.Struct, frozen=True):
    """A step and the number of its replays."""

    step: Step
    gen: Count


class RecordedEdits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a replay changed of its task from there on. `arguments` holds new ones by call, in place of the old."""

    instructions: Annotated[str, Meta(min_length=1)] | None = None
    input: RequestInput | None = None
    model: RequestModel | None = None
    pool: LaneName | None = None
    arguments: Annotated[dict[Call, dict[str, Any]], Meta(max_length=CALLS_EDITED_MAX)] | None = None
