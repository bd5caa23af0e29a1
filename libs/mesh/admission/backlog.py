"""BACKLOG: where turns wait for their tenant's turn, and how they come there. Stewards move them on."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from contracts import headers, subjects
from contracts.codec import encode
from contracts.errors import InvalidName
from contracts.messages.envelope import read_envelope
from contracts.messages.work import TurnWork
from contracts.streams import BACKLOG
from mesh import faults
from mesh.broker.deliveries import Delivery
from mesh.broker.direct_get import Stored, read_page, subjects_of
from mesh.broker.levels import stream_info
from mesh.broker.requests import REQUEST_TIMEOUT_SECONDS, PubAck, Requests
from mesh.errors import NoRoom

PAGES_MAX: Final = 20
"""Pages that are searched for a task's message: as many messages as a lane takes of one tenant, if they are small."""
STORED_WITHIN: Final = timedelta(milliseconds=250)
"""A message is stored a little after its task was accepted, by a clock that may be a little ahead of the broker's."""
_PUT_OFF: Final = re.compile(r"\.(?:tasks|turns)-\d+$")
"""What a message id ends in that was made by `put_off`."""


def backlog_subject(lane: subjects.LaneSubject) -> str:
    """Where a lane's messages of a tenant wait."""
    return subjects.backlog(lane.pool, lane.priority, lane.tenant)


def destination(message: Stored) -> str:
    """Where a message of BACKLOG goes on to: TASKS if it brings the request, else TURNS.

    One of another version goes its way, too. One that is no work goes to TASKS, whose worker says what is wrong with
    it. Raises `InvalidName`.
    """
    lane = subjects.parse_backlog(message.subject)
    envelope = read_envelope(message.payload, message.subject)
    is_later = envelope is not None and envelope.request is None
    return subjects.turns(*lane) if is_later else subjects.tasks(*lane)


async def put(
    requests: Requests,
    lane: subjects.LaneSubject,
    payload: bytes,
    message_headers: dict[str, str],
    timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
) -> PubAck:
    """Let a turn wait for its tenant's turn, and tell the stewards. Raises `NoRoom`, `BrokerUnavailable`."""
    ack = await requests.publish(backlog_subject(lane), payload, message_headers, timeout_seconds=timeout_seconds)
    if requests.backlog_lanes.is_news(lane):
        await requests.announce(subjects.BACKLOG_GREW, encode(lane._asdict()))
    return ack


async def send(
    requests: Requests,
    subject: str,
    payload: bytes,
    message_headers: dict[str, str],
) -> None:
    """Send a first turn on: into its lane, or behind it where that is ordered, or full. Raises as `put`."""
    lane = subjects.parse_tasks(subject)
    if not await requests.backlog_lanes.look(lane.pool, lane.priority):
        try:
            await requests.publish(subject, payload, message_headers or None)
        except NoRoom:
            pass
        else:
            return
    await put(requests, lane, payload, message_headers)


async def put_off(requests: Requests, delivery: Delivery) -> None:
    """Let a delivered turn wait until its tenant may go on. Its delivery is to be acked after this.

    For a turn that has not been claimed. The stewards bring it back, with a message id of its own: TASKS and TURNS
    still know the other one. Who dies before the ack does it again: one message, by the id. Raises as `put`.
    """
    prefix, _, rest = delivery.subject.partition(".")
    lane = subjects.parse_tasks(delivery.subject) if prefix == "tasks" else subjects.parse_turns(delivery.subject)
    # However often it waits: its id grows by no more than this.
    known = _PUT_OFF.sub("", delivery.headers.get(headers.MESSAGE_ID, rest))
    message_headers = {headers.MESSAGE_ID: f"{known}.{prefix}-{delivery.sequence}"} if faults.MESSAGE_ID_ON else {}
    if traceparent := delivery.headers.get(headers.TRACEPARENT):
        message_headers[headers.TRACEPARENT] = traceparent
    await put(requests, lane, delivery.payload, message_headers)


class Waiting(NamedTuple):
    """What BACKLOG has: messages by lane and tenant, and how much of it is taken, in percent."""

    messages: dict[subjects.LaneSubject, int]
    used_percent: int = 0


async def look(requests: Requests, subject_filter: str = "backlog.>") -> Waiting:
    """How BACKLOG stands; nothing waits where there is no such stream yet.

    One request where it is empty, and some for thousands of tenants. Raises `BrokerUnavailable`, `BrokerError`.
    """
    info = await stream_info(requests, BACKLOG.name)
    if info is None or not int(info["state"]["messages"]):
        return Waiting({})
    found: dict[subjects.LaneSubject, int] = {}
    for subject, count in (await subjects_of(requests, BACKLOG.name, subject_filter)).items():
        with contextlib.suppress(InvalidName):  # A stranger's: it stays there, and holds up nobody.
            found[subjects.parse_backlog(subject)] = count
    return Waiting(found, _used_percent(info))


def _used_percent(info: Mapping[str, Any]) -> int:
    config, state = info["config"], info["state"]
    of_each = ((state["messages"], config["max_msgs"]), (state["bytes"], config["max_bytes"]))
    return min(100, max((100 * int(used) // int(limit) for used, limit in of_each if int(limit) > 0), default=0))


async def waiting_by_lane(requests: Requests, subject_filter: str = "backlog.>") -> dict[subjects.LaneSubject, int]:
    """How many messages wait in BACKLOG, by lane and tenant. Raises as `look`."""
    return (await look(requests, subject_filter)).messages


def task_of(message: Stored) -> str | None:
    """Whose message it is; None if it is no work of any version."""
    envelope = read_envelope(message.payload, message.subject)
    return envelope.task if envelope is not None else None


async def find(
    requests: Requests, stream: str, subject: str, task: str, accepted_at: datetime | None = None
) -> Stored | None:
    """A task's message on one subject of TASKS, TURNS or BACKLOG, as any replica has it. Raises `BrokerUnavailable`.

    Only from about `accepted_at` on, if that is said: nothing of it was stored before.
    """
    after, needle = 0, task.encode()
    since = None if accepted_at is None else accepted_at - STORED_WITHIN
    for number in range(PAGES_MAX):
        page = await read_page(requests, stream, subject, after, since=since if number == 0 else None)
        for message in page.messages:
            after = message.sequence
            if needle in message.payload and task_of(message) == task:
                return message
        if not page.more or not page.messages:
            return None
    return None


async def withdraw(requests: Requests, lane: subjects.LaneSubject, task: str, accepted_at: datetime) -> bool:
    """Delete the message of a task that has ended while it waited. False if there is none.

    Raises `BrokerUnavailable`, `BrokerError`.
    """
    message = await find(requests, BACKLOG.name, backlog_subject(lane), task, accepted_at)
    return message is not None and await requests.delete_message(BACKLOG.name, message.sequence)


def queue_of(work: TurnWork) -> subjects.LaneSubject:
    """The lane of a turn."""
    return subjects.LaneSubject(work.pool, work.priority, work.tenant)
