"""Dead letters: everything a person needs to repair work that gave up."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

import msgspec
import structlog

from contracts import headers, subjects
from contracts.codec import encode
from contracts.errors import ErrorInfo, TaskmeshError
from contracts.identifiers import new_id, turn_of
from contracts.journal.parts import StepGen
from contracts.messages.envelope import read_envelope
from contracts.messages.work import DeadLetter
from contracts.streams import CONTROL, FIRED_TTL_SECONDS, TASKS, TIMERS, TOOLS, TURNS
from mesh import faults
from mesh.broker.answers import Nak, Term
from mesh.broker.deliveries import Delivery
from mesh.broker.requests import MESSAGE_TOO_LARGE, Requests
from mesh.clock import now
from mesh.errors import BrokerError, NoRoom, NotRequeued, QueueFull
from mesh.task.state import TaskState

NO_ROOM_SECONDS = 30.0
"""When a record that DEAD_LETTERS has no room for is written again: room comes from retention, or from people."""

log = structlog.get_logger("mesh.journal.dead_letter_records")

REQUEUED_STREAMS = tuple(stream.name for stream in (TASKS, TURNS, TOOLS, CONTROL, TIMERS))


class QueuedMessage(Protocol):
    """A message of a work queue: a `Delivery`, or one that lies in its stream."""

    @property
    def stream(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def sequence(self) -> int: ...
    @property
    def deliveries(self) -> int: ...
    @property
    def stored_at(self) -> datetime: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class UndeliveredMessage:
    """A queued message that is no delivery. `deliveries` is how often the broker may have delivered it."""

    stream: str
    subject: str
    sequence: int
    deliveries: int
    stored_at: datetime
    payload: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


async def write_step(
    requests: Requests,
    message: QueuedMessage,
    gave_up: StepGen,
    state: TaskState,
    error: ErrorInfo,
    worker: str,
) -> None:
    """Write the record of a step that gave up. Writing it twice is the same as once."""
    step, gen = gave_up.step, gave_up.gen
    # A call has none; a turn may have had another one than it was claimed for.
    provider, model = (None if "-" in step else state.turn(turn_of(step)).model) or (None, None)
    record = DeadLetter(
        **_of_message(message),
        errors=[*state.failures.get((step, gen), ()), error],
        tenant=state.tenant,
        task=state.task,
        step=step,
        gen=gen,
        request=state.request,
        worker=worker,
        provider=provider,
        model=model,
        tries=state.tries.get((step, gen), 0) + 1,
        journal_from=state.first_sequence,
        journal_to=state.revision,
    )
    message_id = f"{state.task}.{step}.g{gen}.dead"
    await _publish(requests, subjects.dead_letter(state.tenant, state.task), record, message_id)


async def refuse(requests: Requests, delivery: Delivery, error: ErrorInfo, worker: str) -> Term | Nak:
    """Give up a message that nobody can carry out: a log line, and its record. Returns the answer to it."""
    try:
        await write_off(requests, delivery, error, worker)
    except NoRoom as no_room:
        return without_room(delivery, no_room)
    return Term(error.code)


async def write_off(requests: Requests, message: QueuedMessage, error: ErrorInfo, worker: str) -> None:
    """The same without an answer. Raises `NoRoom`."""
    log.error(
        "message.refused",
        stream=message.stream,
        subject=message.subject,
        message=message.sequence,
        code=error.code,
        error=error.message,
    )
    await write_message(requests, message, error, worker)


def without_room(delivery: Delivery, error: NoRoom) -> Nak:
    """The answer to a message whose record DEAD_LETTERS refuses: it holds nothing, and is not lost.

    What becomes of its deliveries does not matter: a message that has none left is found by the steward's sweep.
    """
    log.error("dead_letter.no_room", stream=delivery.stream, message=delivery.sequence, error=str(error))
    return Nak(NO_ROOM_SECONDS)


async def write_message(
    requests: Requests, message: QueuedMessage, error: ErrorInfo, worker: str, rule: str = ""
) -> None:
    """Write the record of a message that is not work, or fits no journal. Its tenant is read off the subject.

    `rule`: the trigger rule that can't act on a signal; each has a record of its own.
    """
    tenant = _tenant_of(message)
    record = DeadLetter(**_of_message(message), errors=[error], tenant=tenant, worker=worker)
    part = f".{rule}" if rule else ""
    message_id = f"{message.stream}.{message.sequence}.{message.stored_at.timestamp()}{part}.dead"
    await _publish(requests, subjects.malformed_dead_letter(tenant), record, message_id)


async def write_notification(
    requests: Requests, message: QueuedMessage, error: ErrorInfo, consumer: str, worker: str
) -> None:
    """Write the record of a milestone that an endpoint was not told of. `consumer`: whose delivery it is."""
    journal = subjects.parse_journal(message.subject)
    record = DeadLetter(
        **_of_message(message),
        errors=[error],
        tenant=journal.tenant,
        task=journal.task,
        worker=worker,
        tries=message.deliveries,
    )
    message_id = f"{message.stream}.{message.sequence}.{message.stored_at.timestamp()}.{consumer}.dead"
    await _publish(requests, subjects.malformed_dead_letter(journal.tenant), record, message_id)


async def requeue(requests: Requests, record: DeadLetter) -> None:
    """Publish the message of a record again, on its subject. Doing it twice is the same as once.

    Raises `NotRequeued` for what can't be carried out however often it comes, `QueueFull`, `BrokerUnavailable`.
    """
    if record.stream not in REQUEUED_STREAMS or record.step is not None:
        raise NotRequeued(f"a message of {record.stream} is not put back")
    payload = record.message.encode()
    if record.message_encoding != "utf-8" or read_envelope(payload, record.subject) is None:
        raise NotRequeued("its message is no work and no command of any version, or was too large to be kept whole")
    message_headers = {headers.MESSAGE_ID: f"{record.id}.requeued"}
    if record.traceparent:
        message_headers[headers.TRACEPARENT] = record.traceparent
    if record.stream == TIMERS.name:
        message_headers[headers.TTL] = f"{FIRED_TTL_SECONDS}s"
    try:
        await requests.publish(record.subject, payload, message_headers)
    except NoRoom:
        raise QueueFull(f"{record.stream} takes no more on {record.subject}") from None


def _tenant_of(message: QueuedMessage) -> str | None:
    """The last token of a lane's or command's subject, the second of a signal's, that of a schedule.

    None for a tool's, or where the subject is as wrong as that.
    """
    if message.stream == "TOOLS":
        return None
    try:
        if message.stream == "SIGNALS":
            return subjects.check_tenant(message.subject.split(".")[1])
        if message.subject.startswith(subjects.CRON_FIRED_PREFIX):
            return subjects.parse_cron(message.subject)[0]
        return subjects.check_tenant(message.subject.rpartition(".")[2])
    except (TaskmeshError, IndexError):
        return None


def _of_message(message: QueuedMessage) -> dict[str, Any]:
    encoding: Literal["utf-8", "base64"] = "utf-8"
    try:
        text = message.payload.decode("utf-8")
    except UnicodeDecodeError:
        encoding = "base64"
        text = base64.b64encode(message.payload).decode("ascii")
    return {
        "id": new_id(),
        "time": now(),
        "stream": message.stream,
        "subject": message.subject,
        "sequence": message.sequence,
        "deliveries": message.deliveries,
        "message": text,
        "message_encoding": encoding,
        "traceparent": message.headers.get(headers.TRACEPARENT),
    }


async def _publish(requests: Requests, subject: str, record: DeadLetter, message_id: str) -> None:
    message_headers = {headers.MESSAGE_ID: message_id} if faults.MESSAGE_ID_ON else None
    try:
        await requests.publish(subject, encode(record), message_headers)
    except BrokerError as error:
        if error.number != MESSAGE_TOO_LARGE:
            raise
        # The message is as large as a message may be: keep its beginning. The request is in the journal.
        shortened = msgspec.structs.replace(record, message=record.message[: len(record.message) // 8], request=None)
        await requests.publish(subject, encode(shortened), message_headers)
