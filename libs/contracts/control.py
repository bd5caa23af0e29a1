"""Commands to a task: what waits in CONTROL until the steward carries it out.

As with work messages no payload is trusted: each is validated against its type and the subject it came on.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts import subjects
from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.events import Id, Tenant

BY_CHARACTERS_MAX = 256
REASON_CHARACTERS_MAX = 2_000
"""Both end up in a terminal event beside an output that may take 448 KiB of the event's 1 MiB."""


class CancelCommand(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="cancel"):
    """Stop a task, for good. `by` says who wants it, `reason` why: both are for people."""

    task: Id
    tenant: Tenant
    by: Annotated[str, Meta(min_length=1, max_length=BY_CHARACTERS_MAX)]
    reason: Annotated[str, Meta(max_length=REASON_CHARACTERS_MAX)] | None = None


def cancel_message_id(task: str) -> str:
    """`Nats-Msg-Id` of a cancel, `<task>.cancel`: one for each task, so that twice is the same as once."""
    return f"{subjects.check_task(task)}.cancel"


def decode_control(payload: bytes, subject: str) -> CancelCommand:
    """Decode a command and hold it against its subject.

    Raises `InvalidPayload` (or `InvalidName` for a subject outside the grammar) if it is not the command that
    belongs there, or one of a kind that this version does not carry out.
    """
    kind, tenant = subjects.parse_control(subject)
    if kind != "cancel":
        raise InvalidPayload(f"this version carries out no command of kind {kind}")
    command = decode(payload, CancelCommand)
    if command.tenant != tenant:
        raise InvalidPayload(f"not a command of the tenant that {subject} is for")
    return command
