"""What a client may say to a task that goes on: the body of `POST /v1/tasks/{id}/inputs`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from contracts.fields import Call
from contracts.identifiers import derived_id, new_id
from contracts.messages.control import INPUT_CHARACTERS_MAX, InputMode, Reason


class MessageInput(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="message",
):
    """A message of the user. It answers the oldest open question; if there is none, the next turn sees it.

    `redirect`: the turn under way begins again with it, and what else waits for a person is called off.
    """

    text: Annotated[str, Meta(min_length=1, max_length=INPUT_CHARACTERS_MAX)]
    mode: InputMode = "append"


class ApprovalInput(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="approval",
):
    """A person's decision on a call that waits for one. `reason` is for people, and for the model if it is denied."""

    call: Call
    decision: Literal["approved", "denied"]
    reason: Reason | None = None


TaskInput = MessageInput | ApprovalInput


def input_request(tenant: str, idempotency_key: str | None) -> str:
    """What tells one request that brings a message from another: derived from its Idempotency-Key, else new."""
    return derived_id("input", tenant, idempotency_key) if idempotency_key is not None else new_id()
