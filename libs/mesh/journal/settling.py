"""Settling: what is done for a step or command that is done, whoever comes upon it. Each part may be done twice.

Its end is the answer to the message, an ack or a term, which is not sent here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import UTC, timedelta

import structlog
from msgspec.structs import replace

from contracts import headers
from contracts.codec import encode
from contracts.errors import ErrorInfo, TaskmeshError
from contracts.journal.parts import StepGen
from contracts.messages.control import RoomCommand
from contracts.retries import ROOM_POLICY
from contracts.streams import FIRED_TTL_SECONDS, TIMERS
from mesh import faults
from mesh.admission import backlog
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.errors import BrokerUnavailable, NoRoom
from mesh.journal import dead_letter_records
from mesh.journal.dead_letter_records import QueuedMessage
from mesh.journal.projection import BackgroundProjection, project
from mesh.task.outbox import OutboxMessage, messages_after, room_timer, timers_over
from mesh.task.records import record
from mesh.task.state import TaskState

log = structlog.get_logger("mesh.journal.settling")

TIMER_HEADER_BYTES = 320
"""About what a timer's headers and its entry in the stream take beside subject and payload (measured)."""


async def settle(
    requests: Requests,
    state: TaskState,
    steps: tuple[str, ...],
    traceparent: str | None,
    again: tuple[OutboxMessage, ...] = (),
    projection: BackgroundProjection | None = None,
    refusals: int = 0,
) -> None:
    """Project the task, then publish what is due after each of the steps, and what goes on (rule 1).

    A task that still runs is projected by `projection`, if there is one: nobody waits for that. `refusals`: how often
    what goes on was refused for want of room. Raises `BrokerUnavailable`.
    """
    if state.is_packed:
        pass  # Its record is in the archive.
    elif projection is not None and state.status == "running":
        projection.submit(record(state))
    else:
        await _project(requests, state, projection)
    for step in steps:
        await publish_outbox(requests, messages_after(state, step), traceparent)
    await publish_outbox(requests, again, traceparent, refusals)
    if state.terminal is not None:
        await purge_timers(requests, state)


async def purge_timers(requests: Requests, state: TaskState, steps: tuple[str, ...] = ()) -> None:
    """Take away timers that are over: of a task that has ended, or of calls that were answered. Never fails."""
    for subject_filter in timers_over(state, steps):
        try:
            await requests.purge(TIMERS.name, subject_filter)
        except TaskmeshError as error:
            # It fires in vain then.
            log.info("timer.not_purged", filter=subject_filter, error=str(error))


async def settle_dead_letter(
    requests: Requests,
    state: TaskState,
    message: QueuedMessage,
    gave_up: StepGen,
    error: ErrorInfo,
    worker: str,
    projection: BackgroundProjection | None = None,
) -> None:
    """Project a task whose step gave up, and write the step's record (rule 7). Raises `BrokerUnavailable`, `NoRoom`."""
    await _project(requests, state, projection)
    await dead_letter_records.write_step(requests, message, gave_up, state, error, worker)


async def _project(requests: Requests, state: TaskState, projection: BackgroundProjection | None) -> None:
    if projection is not None:
        await projection.superseded(state.tenant, state.task)
    await project(requests, record(state))


async def publish_outbox(
    requests: Requests, dues: Iterable[OutboxMessage], traceparent: str | None, refusals: int = 0
) -> None:
    """Send what is due, one after the other. What a stream has no room for is left to a timer, and holds nothing.

    `refusals`: how often that was so before. Raises `BrokerUnavailable`, also where there is no room for a timer.
    """
    postponed: set[str] = set()
    for due in dues:
        try:
            await _publish(requests, due, traceparent)
        except NoRoom as error:
            if due.refused is None:
                raise BrokerUnavailable(f"no room for what is due: {error}") from None
            if due.refused.step not in postponed:
                # One for each step: it brings all that the step waits for.
                postponed.add(due.refused.step)
                await _postpone(requests, due, replace(due.refused, refusals=refusals + 1), traceparent)


async def _postpone(requests: Requests, due: OutboxMessage, command: RoomCommand, traceparent: str | None) -> None:
    delay_seconds = max(1.0, ROOM_POLICY.delay_seconds(command.refusals, random.random()))
    log.info(
        "message.refused_for_room",
        subject=due.subject,
        task=command.task,
        tenant=command.tenant,
        step=command.step,
        refusals=command.refusals,
        again_in_seconds=round(delay_seconds, 3),
    )
    at = now() + timedelta(seconds=delay_seconds)
    try:
        await _publish(requests, room_timer(command, at), traceparent)
    except NoRoom as error:
        raise BrokerUnavailable(f"no room for what is due, nor for a timer of it: {error}") from None


async def _publish(requests: Requests, due: OutboxMessage, traceparent: str | None) -> None:
    message_headers = {headers.MESSAGE_ID: due.message_id} if due.message_id and faults.MESSAGE_ID_ON else {}
    if traceparent:
        message_headers[headers.TRACEPARENT] = traceparent
    payload = encode(due.payload)
    if due.at is not None and due.fires_on is not None:
        # In whole seconds, and never early.
        at = due.at.astimezone(UTC) + timedelta(microseconds=999_999)
        message_headers[headers.SCHEDULE] = f"@at {at.strftime('%Y-%m-%dT%H:%M:%SZ')}"
        message_headers[headers.SCHEDULE_TARGET] = due.fires_on
        message_headers[headers.SCHEDULE_TTL] = f"{FIRED_TTL_SECONDS}s"
        # The stream itself would make room by dropping its oldest timer, whoever still waits for that.
        await requests.timers.take(len(due.subject) + len(payload) + TIMER_HEADER_BYTES)
    if due.subject.startswith("tasks."):
        # A sub-task: it waits where its lane's other tasks do.
        await backlog.send(requests, due.subject, payload, message_headers)
        return
    await requests.publish(due.subject, payload, message_headers or None)
