"""Settling: what is done for a step or command that is done, whoever comes upon it. Each part may be done twice.

Its end is the answer to the message, an ack or a term, which is not sent here.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, timedelta

from contracts import headers
from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.messages.work import Work
from contracts.streams import FIRED_TTL_SECONDS
from mesh import faults
from mesh.broker.requests import NO_ROOM, Requests
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.journal import dead_letter_records
from mesh.journal.dead_letter_records import QueuedMessage
from mesh.journal.projection import BackgroundProjection, project
from mesh.task.outbox import OutboxMessage, messages_after
from mesh.task.records import record
from mesh.task.state import TaskState


async def settle(
    requests: Requests,
    state: TaskState,
    steps: tuple[str, ...],
    traceparent: str | None,
    again: tuple[OutboxMessage, ...] = (),
    projection: BackgroundProjection | None = None,
) -> None:
    """Project the task, then publish what is due after each of the steps, and what goes on (rule 1).

    A task that still runs is projected by `projection`, if there is one: nobody waits for that. Raises
    `BrokerUnavailable`.
    """
    if projection is not None and state.status == "running":
        projection.submit(record(state))
    else:
        await _project(requests, state, projection)
    for step in steps:
        await publish_outbox(requests, messages_after(state, step), traceparent)
    await publish_outbox(requests, again, traceparent)


async def settle_dead_letter(
    requests: Requests,
    state: TaskState,
    message: QueuedMessage,
    work: Work,
    error: ErrorInfo,
    worker: str,
    projection: BackgroundProjection | None = None,
) -> None:
    """Project a task whose step gave up, and write the step's record (rule 7). Raises `BrokerUnavailable`."""
    await _project(requests, state, projection)
    await dead_letter_records.write_step(requests, message, work, state, error, worker)


async def _project(requests: Requests, state: TaskState, projection: BackgroundProjection | None) -> None:
    if projection is not None:
        await projection.superseded(state.tenant, state.task)
    await project(requests, record(state))


async def publish_outbox(requests: Requests, dues: Iterable[OutboxMessage], traceparent: str | None) -> None:
    """Send what is due, one after the other. Raises `BrokerUnavailable`, also where a stream has no room now."""
    for due in dues:
        message_headers = {headers.MESSAGE_ID: due.message_id} if faults.MESSAGE_ID_ON else {}
        if traceparent:
            message_headers[headers.TRACEPARENT] = traceparent
        if due.at is not None and due.fires_on is not None:
            # In whole seconds, and never early.
            at = due.at.astimezone(UTC) + timedelta(microseconds=999_999)
            message_headers[headers.SCHEDULE] = f"@at {at.strftime('%Y-%m-%dT%H:%M:%SZ')}"
            message_headers[headers.SCHEDULE_TARGET] = due.fires_on
            message_headers[headers.SCHEDULE_TTL] = f"{FIRED_TTL_SECONDS}s"
        try:
            await requests.publish(due.subject, encode(due.payload), message_headers or None)
        except BrokerError as error:
            if error.number in NO_ROOM:
                raise BrokerUnavailable(f"no room for what is due: {error}") from None
            raise
