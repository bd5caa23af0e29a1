"""Settling: what is done for a step or command that is done, whoever comes upon it. Each part may be done twice."""

from __future__ import annotations

from datetime import UTC, timedelta

from contracts import headers
from contracts.codec import encode
from contracts.streams import FIRED_TTL_SECONDS
from mesh import faults
from mesh.broker.requests import NO_ROOM, Requests
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.journal.projection import project
from mesh.task.outbox import Due, due_after
from mesh.task.records import record
from mesh.task.state import TaskState


async def settle(
    requests: Requests, state: TaskState, steps: tuple[str, ...], traceparent: str | None, again: tuple[Due, ...] = ()
) -> None:
    """Project the task, then publish what is due after each of the steps, and what goes on (rule 1).

    Raises `BrokerUnavailable`.
    """
    await project(requests, record(state))
    for step in steps:
        await publish_due(requests, due_after(state, step), traceparent)
    await publish_due(requests, [*again], traceparent)


async def publish_due(requests: Requests, dues: list[Due], traceparent: str | None) -> None:
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
