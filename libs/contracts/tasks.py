"""What a client may ask for: the task request, and its limits."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from contracts.codec import encode, exactly
from contracts.subjects import LANE_NAME_PATTERN, TASK_PATTERN

BODY_BYTES_MAX = 512 * 1024
"""Largest body of a POST. With the fields around it a work message stays under NATS's default of 1 MiB."""
OUTPUT_BYTES_MAX = 448 * 1024
"""Largest output of a task as encoded JSON: it must fit into one event, beside usage and timings."""
IDEMPOTENCY_KEY_CHARACTERS_MAX = 255
WAIT_SECONDS_MAX = 60
"""Longest `Prefer: wait`."""
DEADLINE_SECONDS_MAX = 30 * 24 * 3600
BUDGET_TOKENS_MAX = 1_000_000_000
BUDGET_COST_MAX = 1e9
COST_MICROS = 1_000_000
"""Millionths of the currency, in which costs are counted."""

Priority = Literal["high", "normal", "low"]
ApprovalMode = Literal["never", "destructive", "always"]
UnknownTools = Literal["refuse", "allow"]
Role = Literal["system", "user", "assistant"]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Role
    content: Annotated[str, Meta(min_length=1)]


RequestInput = Annotated[str, Meta(min_length=1)] | Annotated[list[Message], Meta(min_length=1, max_length=1000)]
MODEL_CHARACTERS_MAX = 128
RequestModel = Annotated[str, Meta(min_length=1, max_length=MODEL_CHARACTERS_MAX)]


class TaskRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The body of `POST /v1/tasks`. Unknown fields are refused: a misspelt limit must not be ignored.

    `input` is text or messages. `deadline_seconds` counts from acceptance. `budget_tokens` are read and put
    out, over all turns; `budget_cost` is what they may cost, in the currency of the prices. `metadata` comes back
    unchanged. `unknown_tools`: whether `tools` may have names that nobody has declared yet, and that no configuration
    knows.
    """

    input: RequestInput
    pool: Annotated[str, exactly(LANE_NAME_PATTERN, 48)] = "default"
    model: RequestModel | None = None
    priority: Priority = "normal"
    instructions: Annotated[str, Meta(min_length=1)] | None = None
    tools: Annotated[list[Annotated[str, exactly(LANE_NAME_PATTERN, 48)]], Meta(max_length=64)] | None = None
    unknown_tools: UnknownTools = "refuse"
    approval: ApprovalMode | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    max_turns: Annotated[int, Meta(ge=1, le=1000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    deadline_seconds: Annotated[float, Meta(gt=0, le=DEADLINE_SECONDS_MAX)] | None = None
    budget_tokens: Annotated[int, Meta(ge=1, le=BUDGET_TOKENS_MAX)] | None = None
    budget_cost: Annotated[float, Meta(gt=0, le=BUDGET_COST_MAX)] | None = None
    continues: Annotated[str, exactly(TASK_PATTERN, 26)] | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Meta(min_length=1, max_length=64)],
                Annotated[str, Meta(max_length=512)] | Annotated[int, Meta(ge=-(2**53), le=2**53)] | bool,
            ],
            Meta(max_length=16),
        ]
        | None
    ) = None


_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(TaskRequest)}


def canonical(request: TaskRequest) -> bytes:
    """What was asked, as JSON that is independent of field order and white space of the body.

    A field that holds its default is left out, whether the body named it or not.
    """
    # Not left to omit_defaults, which compares by identity: a "default" that was read is not the one declared.
    fields = {name: value for name, value in msgspec.to_builtins(request).items() if value != _DEFAULTS[name]}
    return msgspec.json.encode(fields, order="sorted")


def fingerprint(request: TaskRequest) -> str:
    """A digest of what was asked. Two requests under one Idempotency-Key are the same if their fingerprints are."""
    return hashlib.sha256(canonical(request)).hexdigest()[:32]


def output_bytes(text: str) -> int:
    """Length of a text as encoded JSON, in bytes."""
    return len(encode(text))
