"""Stranded messages: work that lies in its queue, and that its consumer will never deliver again (rule 8).

There are two ways there. A process died at each of the deliveries: after max_deliver the broker keeps the message,
invisible. Or the broker's disk gave out between an acknowledgement and the removal: after its restart the message
is back, behind the consumer that had finished it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import structlog

from contracts import headers
from contracts.errors import ErrorInfo, InvalidPayload, TaskmeshError
from contracts.journal import events
from contracts.journal.parts import StepGen
from contracts.messages.control import decode_control
from contracts.messages.envelope import read_envelope
from contracts.messages.work import Work, decode_work
from mesh.background import repeatedly
from mesh.broker.consumer_lists import all_consumers
from mesh.broker.direct_get import Stored, find_sequence
from mesh.broker.requests import Requests
from mesh.broker.scanning import Scan
from mesh.clock import now
from mesh.errors import BrokerUnavailable, NoRoom, StepLost
from mesh.journal import dead_letter_records, giving_up
from mesh.journal.dead_letter_records import UndeliveredMessage
from mesh.journal.journal import Append, Build, Journal
from mesh.journal.settling import settle, settle_dead_letter
from mesh.loop_health import LoopHealth
from mesh.task.decisions import Begin, Expire, Leave, Refuse, SettleDeadLetter, decide_stranded, queued_event
from mesh.task.failures import GiveUp
from mesh.task.state import TaskState
from steward.command_decisions import CarriedOut, decide_command

log = structlog.get_logger("steward.stranded")

ROUND_SECONDS = 2.0
MESSAGES_PER_ROUND_MAX = 256
"""Read of one queue in one round; the next goes on behind them."""
QUEUES = ("TASKS", "TURNS", "TOOLS", "CONTROL")
DELIVERIES_EXHAUSTED = "deliveries-exhausted"


def finished_below(consumer: dict[str, Any]) -> int:
    """The sequence up to which a consumer (a `CONSUMER.INFO` answer) holds no message, and will deliver none."""
    if consumer["num_ack_pending"] == 0:
        return int(consumer["delivered"]["stream_seq"])
    return int(consumer["ack_floor"]["stream_seq"])


class ConsumerIndex:
    """The consumers of a stream, found by the subject that one's filter takes."""

    def __init__(self, consumers: Iterable[dict[str, Any]]) -> None:
        self._by_filter = {consumer["config"].get("filter_subject", ""): consumer for consumer in consumers}
        self._wildcards = {
            tuple(place for place, part in enumerate(parts) if part == "*")
            for parts in (pattern.split(".") for pattern in self._by_filter)
        }
        """Where filters have a wildcard: few ways, however many consumers."""

    def of(self, subject: str) -> dict[str, Any] | None:
        """`tasks.default.high.acme`: that of `tasks.default.high.*`. Filters of a work queue never overlap."""
        parts = subject.split(".")
        for places in self._wildcards:
            pattern = ".".join("*" if place in places else part for place, part in enumerate(parts))
            if (consumer := self._by_filter.get(pattern)) is not None:
                return consumer
        return None


class Stranded:
    """Finds stranded messages, settles those whose work is done, and makes dead letters of the others."""

    def __init__(self, requests: Requests, worker: str) -> None:
        self._requests = requests
        self._worker = worker
        self._no_room: NoRoom | None = None
        self._cursors = dict.fromkeys(QUEUES, 0)
        self._suspects: set[tuple[str, int]] = set()
        """Found in the last round. What is found twice is stranded; the first time its ack may be under way."""

    async def run(self) -> None:
        """Keep looking until cancelled."""
        await repeatedly(self.round, ROUND_SECONDS, LoopHealth(log, "stranded.unavailable"))

    async def round(self) -> None:
        """Look through each queue once, as far as the bound goes. Raises `TaskmeshError`."""
        suspects: set[tuple[str, int]] = set()
        self._no_room = None
        for stream in QUEUES:
            async for message in self._found(stream):
                key = (stream, message.sequence)
                if key not in self._suspects:
                    suspects.add(key)
                    continue
                await self._try(message)
        self._suspects = suspects
        if self._no_room is not None:
            raise self._no_room

    async def exhausted(self, stream: str, sequence: int, deliveries: int) -> None:
        """Settle a message that was delivered as often as it may be, or make a dead letter of it.

        Raises `BrokerUnavailable`.
        """
        stored = await find_sequence(self._requests, stream, sequence)
        if stored is not None:
            await self._try(_message(stream, stored, deliveries))

    async def _try(self, message: UndeliveredMessage) -> None:
        try:
            await self._handle(message)
        except StepLost as error:
            log.info("stranded.moved_on", message=message.sequence, reason=str(error))
        except BrokerUnavailable:
            raise
        except NoRoom as error:
            self._no_room = error  # For its dead letter: the next round looks again. Others may need no room.
        except TaskmeshError as error:
            # It is for people to look at, and must not keep the others.
            log.error("stranded.unreadable", stream=message.stream, message=message.sequence, error=str(error))

    async def _found(self, stream: str) -> AsyncIterator[UndeliveredMessage]:
        state = (await self._requests.api(f"STREAM.INFO.{stream}"))["state"]
        if state["messages"] == 0:
            return
        consumers = await all_consumers(self._requests, stream)
        index = ConsumerIndex(consumers)
        end = max(map(finished_below, consumers), default=0)
        after = self._cursors[stream]
        if after >= end:
            after = 0
        page = await Scan(self._requests, stream).page(after, MESSAGES_PER_ROUND_MAX)
        # Found ones are looked at again before the walk goes on.
        found = False
        for stored in page.messages:
            consumer = index.of(stored.subject)
            if consumer is not None and stored.sequence <= finished_below(consumer):
                found = True
                yield _message(stream, stored, int(consumer["config"].get("max_deliver", -1)))
        # Nor must those wait for the others that have no room.
        behind = page.messages[-1].sequence if page.more else 0
        self._cursors[stream] = after if found and self._no_room is None else behind

    async def _handle(self, message: UndeliveredMessage) -> None:
        if message.stream == "CONTROL":
            await self._handle_command(message)
            return
        try:
            work = decode_work(message.payload, message.subject)
        except TaskmeshError as error:
            await self._give_up_unread(message, error)
            return
        with structlog.contextvars.bound_contextvars(task=work.task, tenant=work.tenant, step=work.step):
            await self._handle_work(message, work)

    async def _handle_command(self, message: UndeliveredMessage) -> None:
        """A command whose steward died at each delivery: settled if it was carried out, else for people to look at."""
        try:
            command = decode_control(message.payload, message.subject)
            journal = await Journal.load(self._requests, command.tenant, command.task)
        except BrokerUnavailable:
            raise
        except TaskmeshError as error:
            await self._give_up_unread(message, error)
            return
        outcome = decide_command(journal.state, command)
        if not isinstance(outcome, CarriedOut):
            await self._refuse(message, _exhausted(message))
            return
        traceparent = message.headers.get(headers.TRACEPARENT)
        await settle(self._requests, journal.state, outcome.steps, traceparent, outcome.again)
        await self._delete(message)

    async def _handle_work(self, message: UndeliveredMessage, work: Work) -> None:
        """Do what the journal says of the message's step, then delete it."""
        traceparent = message.headers.get(headers.TRACEPARENT)
        try:
            journal = await Journal.load(self._requests, work.tenant, work.task, traceparent=traceparent)
        except InvalidPayload as error:
            await self._give_up_unread(message, error)
            return

        async def next_of(state: TaskState) -> Append | SettleDeadLetter | Refuse | Leave:
            match decide_stranded(state, work, message.sequence, now()):
                case Begin(begun):
                    return Append(lambda stamp: queued_event(stamp, begun))
                case Expire():
                    return Append(lambda stamp: events.TaskExpired(*stamp))
                case GiveUp():
                    return Append(_dead_lettered(work, message), on_appended=gave_up)
                case decision:
                    return decision

        def gave_up() -> None:
            log.error("step.dead_lettered", code=DELIVERIES_EXHAUSTED, deliveries=message.deliveries)

        step = StepGen(work.step, work.gen)
        match await journal.advance(next_of):
            case SettleDeadLetter(event):
                await settle_dead_letter(self._requests, journal.state, message, step, event.error, self._worker)
            case Refuse(reason):
                if await journal.is_behind():
                    return
                epoch = (work.tries, work.releases)
                if not await giving_up.give_up_step(journal, message, step, epoch, reason, self._worker):
                    await self._refuse(message, reason)
                    return
            case Leave():
                await settle(self._requests, journal.state, (work.step,), traceparent)
        log.warning("message.stranded", stream=message.stream, message=message.sequence)
        await self._delete(message)

    async def _give_up_unread(self, message: UndeliveredMessage, error: TaskmeshError) -> None:
        """Nobody gets it any more, whatever version he is of."""
        envelope = read_envelope(message.payload, message.subject)
        await giving_up.give_up_unread(self._requests, message, envelope, error, self._worker)
        await self._delete(message)

    async def _refuse(self, message: UndeliveredMessage, error: ErrorInfo) -> None:
        log.error("message.refused", stream=message.stream, message=message.sequence, code=error.code)
        await dead_letter_records.write_message(self._requests, message, error, self._worker)
        await self._delete(message)

    async def _delete(self, message: UndeliveredMessage) -> None:
        await self._requests.delete_message(message.stream, message.sequence)


def _message(stream: str, stored: Stored, deliveries: int) -> UndeliveredMessage:
    return UndeliveredMessage(
        stream=stream,
        subject=stored.subject,
        sequence=stored.sequence,
        deliveries=deliveries,
        stored_at=stored.stored_at,
        payload=stored.payload,
        headers=stored.headers,
    )


def _exhausted(message: UndeliveredMessage) -> ErrorInfo:
    return ErrorInfo(DELIVERIES_EXHAUSTED, f"each of the {message.deliveries} deliveries ended without an answer")


def _dead_lettered(work: Work, message: UndeliveredMessage) -> Build:
    error = _exhausted(message)
    return lambda stamp: events.TaskDeadLettered(
        *stamp, step=work.step, gen=work.gen, error=error, deliveries=message.deliveries
    )
