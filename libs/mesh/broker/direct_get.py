"""Reading journals: batched direct get, which any replica answers, and leader reads for negative answers.

A direct get needs no consumer. It may be stale by a moment on a replicated stream: harmless where an append follows,
or more is read later; what hangs on "there is none" asks the leader.

What a page costs hangs on its filter (ADR-19; measured in a stream of 200,000 subjects and 500,000 messages):

- of one subject, 0.3 to 0.6 ms, wherever its messages lie, and however many are asked for: the server knows in which
  blocks a subject begins and ends. A page of more than there is costs no more.
- of any other filter, 20 to 130 ms: the server counts what is left by going through subjects and blocks, and, asked for
  more than there is, searches up to the stream's end. Only small streams are read so, and a whole one by a
  `scanning.Scan`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
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
LAST_SUBJECTS_MAX = 1_024
"""The server refuses to look up more at once."""
LAST_BYTES_MAX = 4 * 1024 * 1024
"""Of one answer about many subjects; what is left is asked for again."""


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
    since: datetime | None = None,
) -> Page:
    """Read messages of the filter with a sequence above `after`, or stored since then. Raises `BrokerUnavailable`."""
    begin: dict[str, Any] = {"seq": after + 1} if since is None else {"start_time": since}
    body = {**begin, "batch": messages_max, "max_bytes": bytes_max, "next_by_subj": subject_filter}
    messages, last = await requests.many(requests.api_subject(f"DIRECT.GET.{stream}"), encode(body))
    status_headers = last.headers or {}
    status = status_headers.get(headers.STATUS)
    if status == "404":
        return Page([], more=False)
    if status != "204":
        raise BrokerUnavailable(f"direct get from {stream} answered {status}")
    stored = [_stored(message.headers or {}, message.data) for message in messages]
    return Page(stored, more=int(status_headers.get(headers.NUM_PENDING, "0")) > 0)


async def last_of_each(requests: Requests, stream: str, *filters: str) -> list[Stored]:
    """Read the last message of each subject of these filters, in the stream's order. `LAST_SUBJECTS_MAX` at most.

    It costs the same wherever in the stream they lie: 0.3 to 0.5 ms (measured). Raises `BrokerUnavailable`.
    """
    messages, last = await requests.many(requests.api_subject(f"DIRECT.GET.{stream}"), encode({"multi_last": filters}))
    status = (last.headers or {}).get(headers.STATUS)
    if status not in ("204", "404"):
        raise BrokerUnavailable(f"direct get from {stream} answered {status}")
    stored = [_stored(message.headers or {}, message.data) for message in messages]
    return sorted(stored, key=lambda message: message.sequence)


async def last_of_many(
    requests: Requests, stream: str, names: Iterable[str], bytes_max: int = LAST_BYTES_MAX
) -> dict[str, Stored]:
    """The last message of each of these subjects that has one, as one replica sees it. `LAST_SUBJECTS_MAX` at most.

    However large they are: `bytes_max` bounds one answer, and what is left is asked for again. Raises
    `BrokerUnavailable`.
    """
    missing = [*dict.fromkeys(names)]
    found: dict[str, Stored] = {}
    while missing:
        body = {"multi_last": missing, "max_bytes": bytes_max}
        messages, last = await requests.many(requests.api_subject(f"DIRECT.GET.{stream}"), encode(body))
        for message in messages:
            stored = _stored(message.headers or {}, message.data)
            found[stored.subject] = stored
        status_headers = last.headers or {}
        status = status_headers.get(headers.STATUS)
        if status not in ("204", "404"):
            raise BrokerUnavailable(f"direct get from {stream} answered {status}")
        if int(status_headers.get(headers.NUM_PENDING, "0")) == 0 or not messages:
            break
        missing = [name for name in missing if name not in found]
    return found


async def subjects_of(requests: Requests, stream: str, subject_filter: str) -> dict[str, int]:
    """The subjects of a filter that have messages, and how many, by the stream's leader.

    A millisecond for a thousand of them (measured); for few. Raises `BrokerUnavailable`.
    """
    counts: dict[str, int] = {}
    while True:
        # The server answers with so many subjects at most, and says how many there are.
        body = {"subjects_filter": subject_filter, "offset": len(counts)}
        info = await requests.api(f"STREAM.INFO.{stream}", body)
        page: dict[str, int] = info["state"].get("subjects") or {}
        counts |= page
        if not page or len(counts) >= int(info.get("total") or 0):
            return counts


async def count_of(requests: Requests, stream: str, subject_filter: str) -> int:
    """How many messages a filter has, as any replica counts them. Raises `BrokerUnavailable`.

    The server goes through all subjects for that: some 0.2 µs each, in which nobody can write (measured; ADR-19).
    """
    body = {"seq": 1, "batch": 1, "next_by_subj": subject_filter}
    messages, last = await requests.many(requests.api_subject(f"DIRECT.GET.{stream}"), encode(body))
    return len(messages) + int((last.headers or {}).get(headers.NUM_PENDING, "0"))


async def read_sequence(requests: Requests, stream: str, sequence: int) -> Stored | None:
    """Read the message at a sequence; None if it is not there, or the replica that answers is behind."""
    return await _one(requests, stream, {"seq": sequence})


async def find_sequence(requests: Requests, stream: str, sequence: int) -> Stored | None:
    """Read the message at a sequence; None is the truth: a replica that does not have it may be behind."""
    stored = await read_sequence(requests, stream, sequence)
    return stored if stored is not None else await sequence_from_leader(requests, stream, sequence)


async def read_next(requests: Requests, stream: str, subject_filter: str, after: int) -> Stored | None:
    """Read the first message of a filter with a sequence above `after`; None if there is none."""
    return await _one(requests, stream, {"seq": after + 1, "next_by_subj": subject_filter})


async def _one(requests: Requests, stream: str, body: dict[str, Any]) -> Stored | None:
    answer = await requests.one(requests.api_subject(f"DIRECT.GET.{stream}"), encode(body))
    status = (answer.headers or {}).get(headers.STATUS)
    if status == "404":
        return None
    if status is not None:
        raise BrokerUnavailable(f"direct get from {stream} answered {status}")
    return _stored(answer.headers or {}, answer.data)


async def first_traceparent(requests: Requests, tenant: str, task: str) -> str | None:
    """The `traceparent` of a journal's first event: that of the task's submission. None if it tells none."""
    body = {"seq": 1, "next_by_subj": subjects.journal_log(tenant, task)}
    answer = await requests.one(requests.api_subject("DIRECT.GET.EVENTS"), encode(body))
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
    own = _headers(base64.b64decode(message.get("hdrs", "")))
    return Stored(message["seq"], message["subject"], payload, own | {headers.TIME_STAMP: message["time"]})


def _headers(block: bytes) -> dict[str, str]:
    """The headers of a message, by the block in which the API has them: a line of its version, and one for each."""
    lines = (line.partition(":") for line in block.decode("utf-8", "replace").split("\r\n")[1:])
    return {name: value.strip() for name, colon, value in lines if colon}


async def first_from_leader(requests: Requests, stream: str, subject_filter: str, after: int = 0) -> Stored | None:
    """Read the first message of a filter above a sequence from the stream's leader; None is the truth."""
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
