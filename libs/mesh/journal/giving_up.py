"""Giving up a message that can't be carried out here: to another process, to its step's dead letter, or to its own.

A message, or a journal, of another version may be understood by a process of that version: it stays in its queue for as
long as it has deliveries. What is given up in the end can be put back: a step by a replay, a message by `requeue`.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from contracts import subjects
from contracts.errors import ErrorInfo, InvalidPayload, TaskmeshError
from contracts.journal import events
from contracts.journal.parts import StepGen
from contracts.messages.envelope import Envelope, read_envelope
from mesh.broker.answers import Nak, Term
from mesh.broker.deliveries import Delivery
from mesh.broker.requests import Requests
from mesh.errors import NoRoom, StepLost
from mesh.journal import dead_letter_records
from mesh.journal.dead_letter_records import QueuedMessage
from mesh.journal.journal import Append, Journal
from mesh.journal.projection import BackgroundProjection
from mesh.journal.settling import settle_dead_letter
from mesh.task.decisions import stands_for
from mesh.task.state import TaskState

log = structlog.get_logger("mesh.journal.giving_up")

NOT_UNDERSTOOD = "not-understood"
LEFT_SECONDS_MIN = 1.0
LEFT_SECONDS_MAX = 10.0
"""Delays of a message that is left to another process; ten deliveries last about a minute."""
_WORK_STREAMS = ("TASKS", "TURNS", "TOOLS")


def left_seconds(deliveries: int) -> float:
    """How long a message rests that its `deliveries`-th delivery has left to another process."""
    return float(min(LEFT_SECONDS_MAX, LEFT_SECONDS_MIN * 2 ** min(deliveries - 1, 10)))


async def leave_to_another(
    requests: Requests, delivery: Delivery, error: TaskmeshError, deliveries_max: int, worker: str
) -> Nak | Term:
    """The answer to a delivery that this version does not understand. Raises `BrokerUnavailable`, `StepLost`.

    It is left to another process until its last delivery, and then given up. What no version can have written is given
    up at once.
    """
    envelope = read_envelope(delivery.payload, delivery.subject)
    if envelope is not None and delivery.deliveries < deliveries_max:
        delay_seconds = left_seconds(delivery.deliveries)
        log.warning(
            "message.left_to_another",
            stream=delivery.stream,
            subject=delivery.subject,
            message=delivery.sequence,
            error=str(error),
            delay_seconds=delay_seconds,
        )
        return Nak(delay_seconds)
    try:
        await give_up_unread(requests, delivery, envelope, error, worker, lambda: delivery.lease_held)
    except NoRoom as no_room:
        return dead_letter_records.without_room(delivery, no_room)
    return Term("dead letter")


async def give_up_unread(
    requests: Requests,
    message: QueuedMessage,
    envelope: Envelope | None,
    error: TaskmeshError,
    worker: str,
    may_append: Callable[[], bool] = lambda: True,
) -> None:
    """Give up a message that can't be read: its step, if its journal can be, else the message.

    Raises `BrokerUnavailable`, `StepLost`, `NoRoom`.
    """
    if envelope is None:
        await dead_letter_records.write_off(requests, message, ErrorInfo("malformed-message", str(error)), worker)
        return
    unread = ErrorInfo(NOT_UNDERSTOOD, str(error))
    if envelope.step is not None and message.stream in _WORK_STREAMS:
        try:
            journal = await Journal.load(requests, envelope.tenant, envelope.task)
            if await give_up_step(journal, message, envelope.step, envelope.epoch, unread, worker, may_append):
                return
        except InvalidPayload as beyond:
            # Of a later version, too: whoever puts the message back has one that reads it.
            unread = ErrorInfo(NOT_UNDERSTOOD, f"{error}; its journal: {beyond}"[: events.MESSAGE_CHARACTERS_MAX])
    await dead_letter_records.write_off(requests, message, unread, worker)


async def give_up_step(
    journal: Journal,
    message: QueuedMessage,
    step: StepGen,
    epoch: tuple[int, int],
    error: ErrorInfo,
    worker: str,
    may_append: Callable[[], bool] = lambda: True,
    projection: BackgroundProjection | None = None,
) -> bool:
    """Make a dead letter of a step whose message can't be carried out. False if it does not go on by this message.

    Raises `StepLost` if somebody has written since the journal was read: what is to be done is decided anew, then.
    Raises `BrokerUnavailable`, `NoRoom`.
    """
    step_gen, read = (step.step, step.gen), journal.state.revision
    tool = subjects.parse_tools(message.subject) if message.stream == "TOOLS" else None
    if not stands_for(journal.state, step, message.sequence, epoch, tool):
        return False

    async def next_of(state: TaskState) -> Append | None:
        if step_gen in state.dead_letters:
            return None
        if state.revision != read:
            raise StepLost(f"task {state.task}: the journal has moved on")
        return Append(
            lambda stamp: events.TaskDeadLettered(
                *stamp, step=step.step, gen=step.gen, error=error, deliveries=message.deliveries
            )
        )

    await journal.advance(next_of, may_append)
    log.error("step.dead_lettered", step=step.step, gen=step.gen, code=error.code, error=error.message)
    await settle_dead_letter(journal.requests, journal.state, message, step, error, worker, projection)
    return True
