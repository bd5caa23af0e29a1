"""How many messages stand before one in its queue."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import msgspec

from contracts import headers
from contracts.codec import encode
from contracts.streams import BACKLOG
from mesh.broker.requests import Requests
from mesh.broker.stream_states import messages_on

FOUND_MAX: Final = 64
"""Messages that are looked at, of those that were stored at about the time when this one was."""
FOUND_BYTES_MAX: Final = 256 * 1024
STORED_WITHIN: Final = timedelta(milliseconds=250)
"""A message is stored a little after its cause, and who stamped that may be a little ahead of the broker."""
ANSWER_SECONDS_MAX: Final = 1.0


class _Work(msgspec.Struct):
    task: str


async def ahead_of(
    requests: Requests, stream: str, consumer: str, subject_filter: str, task: str, stored_at: datetime
) -> int | None:
    """How many messages that nobody has stand before the task's; None if it is not found, or was delivered.

    It is looked for among those that were stored at about `stored_at` and later. Raises `BrokerUnavailable`,
    `BrokerError`.
    """
    behind = await _behind(requests, stream, subject_filter, task, stored_at)
    if behind is None:
        return None
    info = await requests.api(f"CONSUMER.INFO.{stream}.{consumer}", timeout_seconds=ANSWER_SECONDS_MAX)
    ahead = int(info["num_pending"]) - behind - 1
    return ahead if ahead >= 0 else None


async def before_of_tenant(requests: Requests, subject: str, task: str, stored_at: datetime) -> int | None:
    """How many messages of its own tenant stand in BACKLOG before the task's; None if it is not found there.

    As `ahead_of`.
    """
    behind = await _behind(requests, BACKLOG.name, subject, task, stored_at)
    if behind is None:
        return None
    return max(0, await messages_on(requests, BACKLOG.name, subject) - behind - 1)


async def _behind(requests: Requests, stream: str, subject_filter: str, task: str, stored_at: datetime) -> int | None:
    """How many messages were stored after the task's; None if that is not found."""
    body = {
        "start_time": stored_at - STORED_WITHIN,
        "next_by_subj": subject_filter,
        "batch": FOUND_MAX,
        "max_bytes": FOUND_BYTES_MAX,
    }
    messages, _ = await requests.many(requests.api_subject(f"DIRECT.GET.{stream}"), encode(body), ANSWER_SECONDS_MAX)
    for message in messages:
        try:
            found = msgspec.json.decode(message.data, type=_Work).task == task
        except msgspec.MsgspecError:
            continue
        if found:
            return int((message.headers or {}).get(headers.NUM_PENDING, "0"))
    return None
