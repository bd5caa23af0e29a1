"""Consumption: durable consumers are pulled, and each delivery is handled under its lease, a bounded number at once.

The one loop of every process that works on messages: workers, runners, the steward. Walk one delivery through it:
`_pull` asks for it, `_start` takes a permit and keeps the lease, `_run` sees to it that it is answered or given up, and
`_handled` brings it to its handler, until that has an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog

from mesh.background import background
from mesh.broker.answers import NO_PERMIT_SECONDS, Ack, Answer, Hold, Nak, Term
from mesh.broker.connection import Connection
from mesh.broker.deliveries import Delivery, Leases, while_leased
from mesh.broker.gates import ALWAYS, UNLIMITED, AlwaysOpen, Gate, Permit, WaitingRoom
from mesh.broker.in_hand import InHand
from mesh.broker.pull_consumer import ConsumerUnavailable, PullConsumer
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable, StepLost
from mesh.loop_health import LoopHealth

log = structlog.get_logger("mesh.broker.consumption")

AT_ONCE_MAX = 32
"""Messages in hand of a consumer that names no other bound."""
UNAVAILABLE_SECONDS = 0.5
"""Pause after a consumer that does not answer pulls."""
SHORT_DRAIN_SECONDS = 5.0
"""What a drain waits for at most where nothing takes long, or can be handed over."""
LIMITED_PULL_SECONDS = 0.25
"""How often a consumer is looked at whose gate lets single messages through: no pull is left open there."""

Handle = Callable[[Delivery, Permit], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A durable consumer to pull, and its weight: how much one pull may take. It is pulled while its gate is open."""

    stream: str
    consumer: str
    batch_max: int
    gate: Gate = field(default_factory=AlwaysOpen)


class Consumption:
    """Pulls consumers, and hands each delivery to `handle`, whose answer it sends. What has none comes back.

    At most `at_once_max` deliveries are handled at once; consumers are asked for no more than there is room for.
    `hands_over`: `handle` lets go of a delivery that is `recalled`, and its answer then uses up no delivery.
    """

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        consumers: Sequence[ConsumerSpec],
        handle: Handle,
        at_once_max: int,
        *,
        hands_over: bool = False,
    ) -> None:
        self._handle = handle
        self._hands_over = hands_over
        # A message that was not begun keeps its place in the queue, as long as it has deliveries to spare.
        self._spare_deliveries = settings.max_deliver // 2
        self._at_once_max = at_once_max
        self._leases = Leases(settings.ack_wait_seconds)
        drain_seconds = settings.drain_seconds if hands_over else min(settings.drain_seconds, SHORT_DRAIN_SECONDS)
        self._in_hand = InHand(at_once_max, drain_seconds)
        self._asked_for = 0
        self._room = asyncio.Event()
        self._waiting = WaitingRoom(self._room.set)
        self._limited = asyncio.Lock()
        self._consumers: list[tuple[PullConsumer, Gate]] = []
        for spec in consumers:
            start = partial(self._start, spec.gate)
            consumer = PullConsumer(
                connection, spec.stream, spec.consumer, spec.batch_max, settings.ack_wait_seconds, start
            )
            spec.gate.on_shut(consumer.end_pull)
            self._consumers.append((consumer, spec.gate))

    @classmethod
    def of_one(
        cls,
        connection: Connection,
        settings: Settings,
        stream: str,
        consumer: str,
        handle: Callable[[Delivery], Awaitable[Answer]],
        at_once_max: int = AT_ONCE_MAX,
    ) -> Consumption:
        """That of a single consumer, without a gate."""

        async def handle_delivery(delivery: Delivery, _: Permit) -> Answer:
            return await handle(delivery)

        spec = ConsumerSpec(stream, consumer, at_once_max)
        return cls(connection, settings, [spec], handle_delivery, at_once_max)

    @property
    def in_hand(self) -> int:
        """Deliveries in this process's hands."""
        return len(self._in_hand)

    async def run(self, hurrying: asyncio.Event | None = None) -> None:
        """Work until cancelled; then pull no more, and let what was begun end, for as long as such things take.

        Never longer than `MESH_DRAIN_SECONDS`, and not once `hurrying` is set. What does not end in time is handed
        over: it goes back at once, for another process.
        """
        async with background(self._leases.run()):
            try:
                async with background(*(self._pull(consumer, gate) for consumer, gate in self._consumers)):
                    await asyncio.Event().wait()
            finally:
                # Leases are kept until the last delivery is out of hand.
                await self._drain(hurrying or asyncio.Event())

    async def _drain(self, hurrying: asyncio.Event) -> None:
        self._waiting.close()
        self._in_hand.close()
        # First of all: what goes back must not come here again.
        await asyncio.gather(*(consumer.close() for consumer, _ in self._consumers))
        await self._in_hand.let_end(hurrying)
        if self._hands_over:
            await self._in_hand.recall()
        await self._in_hand.cancel()

    # Pulling

    async def _pull(self, consumer: PullConsumer, gate: Gate) -> None:
        health = LoopHealth(log, "consumer.unavailable", stream=consumer.stream, consumer=consumer.consumer)
        idle = False
        while True:
            try:
                await self._wait_for_room()
                if not gate.opened.is_set():
                    await consumer.withdraw()
                    await gate.opened.wait()
                    continue
                await consumer.open()
                if gate.room() < UNLIMITED:
                    await self._take_one(consumer, gate)
                # What is there already, as much as there is room for; then wait for the next message. A wait in vain
                # is followed by another: there is nothing to take.
                elif idle or not await self._take(consumer):
                    idle = await consumer.pull(1, wait=True) == 0
                health.succeeded()
            except ConsumerUnavailable as error:
                health.failed(error)
                await asyncio.sleep(UNAVAILABLE_SECONDS)

    async def _take(self, consumer: PullConsumer) -> bool:
        """Pull what is there. True if there may be more."""
        batch = min(consumer.batch_max, self._room_now())
        if batch <= 0:
            return True
        self._asked_for += batch
        try:
            return await consumer.pull(batch, wait=False) == batch
        finally:
            self._asked_for -= batch
            self._room.set()

    async def _take_one(self, consumer: PullConsumer, gate: Gate) -> None:
        """Pull one message, if there is one: a gate of little room is shut by it, and the others wait for that."""
        async with self._limited:
            taken = gate.room() <= 0 or await consumer.pull(1, wait=False)
        if not taken:
            await asyncio.sleep(LIMITED_PULL_SECONDS)

    def _room_now(self) -> int:
        return self._at_once_max - (len(self._in_hand) - self._waiting.count) - self._asked_for

    async def _wait_for_room(self) -> None:
        while self._room_now() <= 0:
            self._room.clear()
            await self._room.wait()

    # One delivery

    def _start(self, gate: Gate, delivery: Delivery) -> None:
        # The permit is taken before anything is awaited: the next pull must know.
        task = asyncio.create_task(self._run(delivery, gate, gate.acquire()))
        self._in_hand.add(delivery, task)
        self._leases.add(delivery, task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._in_hand.remove(task)
        self._room.set()

    async def _run(self, delivery: Delivery, gate: Gate, permit: Permit | None) -> None:
        """Handle and answer a delivery, whatever happens. What is not answered here comes back after ack_wait."""
        message = {"stream": delivery.stream, "message": delivery.sequence}
        try:
            answer = await self._handled(delivery, gate, permit)
            await while_leased(delivery, partial(delivery.answer, answer))
        except asyncio.CancelledError:
            # The lease was lost, and then this sends nothing; or the process stops, and gives it back.
            if self._in_hand.is_closed:
                log.info("delivery.given_back", **message)
                await delivery.answer(Nak())
        except StepLost as error:
            log.info("delivery.lost", **message, reason=str(error))
        except BrokerUnavailable as error:
            log.warning("delivery.abandoned", **message, error=str(error))
        except Exception:
            log.exception("delivery.crashed", **message)
        finally:
            delivery.give_up()
            self._leases.remove(delivery)

    async def _handled(self, delivery: Delivery, gate: Gate, permit: Permit | None) -> Ack | Nak | Term:
        """The answer of the handler, which gets the delivery under a permit, and again under another if it holds it."""
        delay_seconds, tried = NO_PERMIT_SECONDS, False
        while True:
            permit = permit or await self._waiting.wait(gate, tried=tried)
            if permit is None:
                break
            try:
                # An idle consumer may bring a message more than there is room for: it waits here, its lease kept.
                if not await self._in_hand.place():
                    break
                with self._in_hand.begun(delivery):
                    answer = await while_leased(delivery, partial(self._handle, delivery, permit))
            finally:
                permit.release()
            if not isinstance(answer, Hold):
                return answer
            log.info("delivery.held", stream=delivery.stream, message=delivery.sequence)
            permit, delay_seconds, tried = None, answer.delay_seconds, True
        return await self._given_back(delivery) if self._in_hand.is_closed else Nak(delay_seconds)

    async def _given_back(self, delivery: Delivery) -> Ack | Nak | Term:
        """The answer to a delivery that was not begun here, since the process stops."""
        log.info("delivery.not_begun", stream=delivery.stream, message=delivery.sequence)
        if not self._hands_over or delivery.deliveries <= self._spare_deliveries:
            return Nak()
        delivery.recalled.set()
        answer = await while_leased(delivery, partial(self._handle, delivery, ALWAYS))
        return Nak() if isinstance(answer, Hold) else answer
