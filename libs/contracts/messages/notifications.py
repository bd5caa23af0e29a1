"""Webhooks: what an endpoint is told of a task, and how that is signed. As Standard Webhooks 1.0 has it.

A notification is a function of its event alone, so each try sends the same bytes under the same id.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from contracts.codec import decode, encode, exactly
from contracts.errors import InvalidPayload
from contracts.fields import Count, Id, Tenant, Time
from contracts.journal.events import DELTA_TYPES, EVENT_TYPES, TERMINAL_TYPES
from contracts.journal.heads import EVENT_TYPE_PATTERN, EventHead
from contracts.records.status import Links

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"
SECRET_PREFIX = "whsec_"  # noqa: S105 - what each secret begins with, and none itself
SECRET_BYTES_MIN = 24
SECRET_BYTES_MAX = 64
EVENT_BYTES_MAX = 16 * 1024
"""A larger event is cut. Standard Webhooks advises payloads below 20 kB."""
TEXT_BYTES_MAX = 2 * 1024
"""What is left of a text that is cut."""

GROUPS: dict[str, frozenset[str]] = {
    "approval": frozenset({"approval.requested"}),
    "question": frozenset({"input.requested"}),
    "ended": TERMINAL_TYPES,
    "dead_letter": frozenset({"task.dead_lettered"}),
}
"""Names for what people want to know of."""
MILESTONES: frozenset[str] = frozenset(str(kind.__struct_config__.tag) for kind in EVENT_TYPES) - DELTA_TYPES
"""Event types that there can be notifications of: all but tokens and progress."""


class NotificationData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which task, and what happened to it.

    `event` is the journal's event, `sequence` its place in EVENTS. `cut` has, for each field of an event that was too
    large, its bytes as JSON: a text was cut to its beginning, an error has lost its detail, anything else is left out.
    `links` say where all of it is.
    """

    tenant: Tenant
    task: Id
    sequence: Count
    event: dict[str, Any]
    cut: dict[str, Count] = {}
    links: Links


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a webhook. `type` is the event's, and `timestamp` its time."""

    type: Annotated[str, exactly(EVENT_TYPE_PATTERN)]
    timestamp: Time
    data: NotificationData


class _TimedHead(EventHead, frozen=True):
    time: Time


_COMMON_FIELDS = frozenset(_TimedHead.__struct_fields__)


def event_types(names: Iterable[str]) -> frozenset[str]:
    """The event types that names of groups and of types stand for. Raises `ValueError` for a name that is neither."""
    found: set[str] = set()
    for name in names:
        if name not in GROUPS and name not in MILESTONES:
            raise ValueError(f"{name!r} is neither a group ({', '.join(GROUPS)}) nor the type of a milestone")
        found |= GROUPS.get(name, {name})
    return frozenset(found)


def notification(payload: bytes, sequence: int, links: Links) -> Notification:
    """What is told of a stored event. Raises `InvalidPayload` if it is none."""
    head = decode(payload, _TimedHead)
    event, cut = bounded(decode(payload, dict[str, Any]), len(payload))
    data = NotificationData(
        tenant=head.tenant, task=head.task, sequence=sequence, event=event, cut=dict(sorted(cut.items())), links=links
    )
    return Notification(type=head.type, timestamp=head.time, data=data)


def bounded(event: dict[str, Any], event_bytes: int) -> tuple[dict[str, Any], dict[str, int]]:
    """An event of at most `EVENT_BYTES_MAX` bytes, and the bytes of what was cut, the largest fields first."""
    if event_bytes <= EVENT_BYTES_MAX:
        return event, {}
    kept = dict(event)
    sizes = {name: len(encode(value)) for name, value in event.items() if name not in _COMMON_FIELDS}
    largest_first = sorted(sizes, key=lambda name: (-sizes[name], name))
    cut: dict[str, int] = {}
    left_bytes = len(encode(kept))
    # Once more for what no cut makes small enough: short fields of a later version, but very many.
    for shorten in (_cut, _leave_out):
        for name in largest_first:
            if left_bytes <= EVENT_BYTES_MAX:
                return kept, cut
            if name not in kept:
                continue
            cut[name] = sizes[name]
            # Counted along: an event of very many fields must not be encoded once for each.
            left_bytes -= _member_bytes(name, kept[name])
            shorter = shorten(kept.pop(name))
            if shorter is not None:
                kept[name] = shorter
                left_bytes += _member_bytes(name, shorter)
    return kept, cut


def _member_bytes(name: str, value: Any) -> int:
    """What a member takes in a compact object: name, colon, value and comma."""
    return len(encode(name)) + len(encode(value)) + 2


def _cut(value: Any) -> Any:
    match value:
        case str():
            return value.encode()[:TEXT_BYTES_MAX].decode("utf-8", "ignore")
        case {"code": str(code), "message": str(message)}:
            return {"code": _cut(code), "message": _cut(message)}
        case _:
            return None


def _leave_out(_: Any) -> None:
    return None


def secret_key(text: str) -> bytes:
    """The key in a secret, `whsec_<base64>`. Raises `InvalidPayload`, which never shows it."""
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(SECRET_PREFIX) or not SECRET_BYTES_MIN <= len(key) <= SECRET_BYTES_MAX:
        raise InvalidPayload(
            f"must be {SECRET_PREFIX}<base64 of {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} random bytes>"
        )
    return key


def signature(keys: Iterable[bytes], message_id: str, timestamp_seconds: int, body: bytes) -> str:
    """The value of `webhook-signature`: one signature for each key, separated by spaces."""
    signed = f"{message_id}.{timestamp_seconds}.".encode() + body
    digests = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode('ascii')}" for digest in digests)


def signed_headers(keys: Iterable[bytes], message_id: str, timestamp_seconds: int, body: bytes) -> dict[str, str]:
    """The three headers of a webhook. `timestamp_seconds` is the time of the try, in seconds since 1970."""
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(timestamp_seconds),
        SIGNATURE_HEADER: signature(keys, message_id, timestamp_seconds, body),
    }
