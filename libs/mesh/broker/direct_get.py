"""Reading journals: batched direct get, which any replica answers, and leader reads for negative answers.

A direct get needs no consumer and reads a contiguous tail in half a millisecond whatever lies before it
(measured). It may be stale by a moment on a replicated stream: harmless where an append follows, or more is
read later; what hangs on "there is none" asks the leader.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from contracts import headers, subjects
from contracts.codec import decode, encode
from mesh.broker.requests import NO_MESSAGE_FOUND, Requests
from mesh.errors import BrokerError, BrokerUnavailable

PAGE_EVENTS_MAX = 256
PAGE_BYTES_MAX = 512 * 1024
"""The server ends a page at the first message that reaches this."""


class Stored(NamedTuple):
    """A message of a stream. `headers`: its own where a direct get read it, and the broker's about it."""

    sequence: int
    subject: str
    payload: bytes
    headers: Mapping[str, str] = MappingProxyType({})

    @property
    def stored_at(self) -> datetime:
        """When the broker stored it, by its own clock: what writers say of the time is for people."""
        return decode(f'"{self.headers[headers.TIME_STAMP]}"'.encode(), datetime)


class Page(NamedTuple):
    """Some messages in order, and whether there are more behind them."""

    messages: list[Stored]
    more: bool


async def read_page(
    requests: Requests,
    stream: str,
    subject_filter: str,
    after: int,
    messages_max: int = PAGE_EVENTS_MAX,
    bytes_max: int = PAGE_BYTES_MAX,
) -> Page:
    """Read messages of the filter with a sequence above `after`. Raises `BrokerUnavailable`."""
    body = {"seq": after + 1, "batch": messages_max, "max_bytes": bytes_max, "next_by_subj": subject_filter}
    messages, last = await requests.many(f"$JS.API.DIRECT.GET.{stream}", encode(body))
    status_headers = last.headers or {}
    status = status_headers.get(headers.STATUS)
    if status == "404":
        return Page([], more=False)
    if status != "204":
        raise BrokerUnavailable(f"direct get from {stream} answered {status}")
    stored = [_stored(message.headers or {}, message.data) for message in messages]
    return Page(stored, more=int(status_headers.get(headers.NUM_PENDING, "0")) > 0)


async def last_event(requests: Requests, subject_filter: str) -> Stored | None:
    """Read the last message of a journal, over both of its subjects; None if there is none. Raises `BrokerUnavailable`.

    It costs the same wherever in the stream the journal lies. A page that is asked for more than there is does not: the
    server then searches to the stream's end (measured: 0.2 ms, against 2.4 ms with 100,000 events behind).
    """
    messages, last = await requests.many("$JS.API.DIRECT.GET.EVENTS", encode({"multi_last": [subject_filter]}))
    status = (last.headers or {}).get(headers.STATUS)
    if status not in ("204", "404"):
        raise BrokerUnavailable(f"direct get from EVENTS answered {status}")
    stored = [_stored(message.headers or {}, message.data) for message in messages]
    return max(stored, key=lambda message: message.sequence, default=None)


async def read_sequence(requests: Requests, stream: str, sequence: int) -> Stored | None:
    """Read the message at a sequence; None if it is not, or no longer, there."""
    answer = await requests.one(f"$JS.API.DIRECT.GET.{stream}", encode({"seq": sequence}))
    status = (answer.headers or {}).get(headers.STATUS)
    if status == "404":
        return None
    if status is not None:
        raise BrokerUnavailable(f"direct get from {stream} answered {status}")
    return _stored(answer.headers or {}, answer.data)


async def first_traceparent(requests: Requests, tenant: str, task: str) -> str | None:
    """The `traceparent` of a journal's first event: that of the task's submission. None if it tells none."""
    body = {"seq": 1, "next_by_subj": subjects.journal_log(tenant, task)}
    answer = await requests.one("$JS.API.DIRECT.GET.EVENTS", encode(body))
    return (answer.headers or {}).get(headers.TRACEPARENT)


async def last_from_leader(requests: Requests, stream: str, subject: str) -> Stored | None:
    """Read the last message of a subject from the stream's leader; None is the truth."""
    return await _from_leader(requests, stream, {"last_by_subj": subject})


async def sequence_from_leader(requests: Requests, stream: str, sequence: int) -> Stored | None:
    """Read the message at a sequence from the stream's leader; None is the truth."""
    return await _from_leader(requests, stream, {"seq": sequence})


async def _from_leader(requests: Requests, stream: str, body: dict[str, Any]) -> Stored | None:
    try:
        result = await requests.api(f"STREAM.MSG.GET.{stream}", body)
    except BrokerError as error:
        if error.number in NO_MESSAGE_FOUND:
            return None
        raise
    message = result["message"]
    payload = base64.b64decode(message.get("data", ""))
    return Stored(message["seq"], message["subject"], payload, {headers.TIME_STAMP: message["time"]})


async def first_from_leader(requests: Requests, stream: str, subject: str) -> Stored | None:
    """Read the first message of a subject from the stream's leader; None is the truth."""
    return await _from_leader(requests, stream, {"seq": 1, "next_by_subj": subject})


async def next_from_leader(requests: Requests, stream: str, subject_filter: str, after: int) -> Stored | None:
    """Read the first message of the filter above a sequence from the stream's leader; None is the truth."""
    return await _from_leader(requests, stream, {"seq": after + 1, "next_by_subj": subject_filter})


async def journal_exists(requests: Requests, tenant: str, task: str) -> bool:
    """Whether a journal has begun, by a leader read."""
    return await last_from_leader(requests, "EVENTS", subjects.journal_log(tenant, task)) is not None


async def last_sequence(requests: Requests, stream: str) -> int:
    """The last sequence that a stream has given out."""
    info = await requests.api(f"STREAM.INFO.{stream}")
    return int(info["state"]["last_seq"])


def _stored(message_headers: dict[str, str], payload: bytes) -> Stored:
    return Stored(int(message_headers[headers.SEQUENCE]), message_headers[headers.SUBJECT], payload, message_headers)
