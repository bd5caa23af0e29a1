"""A delivery: a work message in this process's hands, and the lease on it.

The lease is a clock: it holds while the last heartbeat is younger than ack_wait, on a clock that counts
suspension. Who has lost it sends nothing more for the delivery: no ack, no nak, no term, no heartbeat.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from contracts.retries import BROKER_POLICY
from mesh import faults
from mesh.broker.answers import Ack, Nak, Term
from mesh.broker.requests import Requests
from mesh.clock import lease_clock
from mesh.errors import BrokerUnavailable
from mesh.loop_health import LoopHealth

log = structlog.get_logger("mesh.broker.deliveries")

HEARTBEATS_PER_LEASE = 3


class Delivery:
    """One delivery of one message of a work queue. `sequence` is the message's place in `stream`."""

    def __init__(self, client: Client, requests: Requests, message: Msg, ack_wait_seconds: float) -> None:
        metadata = message.metadata
        self.stream = metadata.stream
        self.sequence = metadata.sequence.stream
        self.deliveries = metadata.num_delivered or 1
        self.stored_at: datetime = metadata.timestamp
        self.pending = metadata.num_pending
        """How many messages its consumer had behind it as it was sent."""
        self.subject = message.subject
        self.payload = message.data
        self.headers = message.headers or {}
        self._client = client
        self._requests = requests
        self._reply = message.reply
        self._ack_wait_seconds = ack_wait_seconds
        self._leased_at = lease_clock()
        self._over = False
        self.consumer = metadata.consumer
        self.recalled = asyncio.Event()
        """Set when this process must not go on with it, or begin it: its handler is to let go of it soon."""

    @property
    def lease_held(self) -> bool:
        """Whether anything may still be sent for this delivery."""
        return not self._over and lease_clock() - self._leased_at <= self._ack_wait_seconds

    def give_up(self) -> None:
        """The step is somebody else's now, or the delivery is answered."""
        self._over = True

    def was_sent_since(self, at: float) -> None:
        """It may have been sent as long ago as that, on the clock of leases: its lease runs from then on."""
        self._leased_at = min(self._leased_at, at)

    async def heartbeat(self) -> None:
        """Extend the lease, if it holds and the broker is there to hear it."""
        if self.lease_held and self._client.is_connected:
            self._leased_at = lease_clock()
            await self._client.publish(self._reply, b"+WPI")

    async def answer(self, answer: Ack | Nak | Term) -> None:
        """Send an answer while the lease holds. Raises `BrokerUnavailable` where a confirmation is wanted.

        Sending the same answer again is harmless.
        """
        if self.lease_held:
            match answer:
                case Ack(confirmed=True):
                    await self._ack()
                case Ack():
                    await self._client.publish(self._reply, b"+ACK")
                case Nak(delay_seconds):
                    await self._nak(delay_seconds)
                case Term(reason) if faults.ACK_ON:
                    await self._requests.one(self._reply, f"+TERM {reason}".encode())
                case Term():
                    pass
        self.give_up()

    async def _ack(self) -> None:
        if faults.ACK_ON:
            faults.reach("before-ack", self.subject)
            await self._requests.one(self._reply, b"+ACK")
            faults.reach("after-ack", self.subject)

    async def _nak(self, delay_seconds: float) -> None:
        delay = msgspec.json.encode({"delay": int(delay_seconds * 1_000_000_000)})
        await self._client.publish(self._reply, b"-NAK " + delay if delay_seconds > 0 else b"-NAK")


Result = TypeVar("Result")


async def while_leased(delivery: Delivery, act: Callable[[], Awaitable[Result]]) -> Result:
    """Act for a delivery, again and again while the broker is there but does not answer.

    A stream whose disk gave out answers nothing until its server starts again. Who gives up then burns a delivery with
    each try, and in the end the message: so it stays in hand for as long as its lease is heard. Raises
    `BrokerUnavailable` once it is not.
    """
    failures = 0
    health: LoopHealth | None = None
    while True:
        try:
            result = await act()
        except BrokerUnavailable as error:
            if not delivery.lease_held:
                raise
            failures += 1
            if health is None:
                health = LoopHealth(
                    log, "delivery.waiting_for_broker", stream=delivery.stream, message=delivery.sequence
                )
            health.failed(error)
        else:
            if health is not None:
                health.succeeded()
            return result
        await asyncio.sleep(BROKER_POLICY.delay_seconds(failures, random.random()))


class Awake:
    """Since when a process is known to have been awake, and so to have read what was sent to it.

    One that slept finds messages in its socket that were sent meanwhile. Their leases may be over, and they are with
    others by now: it can't tell when they were sent, but no earlier than it was seen awake last.
    """

    def __init__(self, interval_seconds: float) -> None:
        self.since = self._looked_at = lease_clock()
        self._interval_seconds = interval_seconds

    def look(self, at: float) -> None:
        """Called at each interval. After a gap what is read until the next look counts as sent in the gap."""
        if at - self._looked_at <= 2 * self._interval_seconds:
            self.since = at
        self._looked_at = at


class Leases:
    """Heartbeats for every delivery that this process works on; one clock for all of them."""

    def __init__(self, ack_wait_seconds: float) -> None:
        self._interval_seconds = ack_wait_seconds / HEARTBEATS_PER_LEASE
        self._awake = Awake(self._interval_seconds)
        self._held: dict[Delivery, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def add(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        """Keep the lease while `task` runs; cancel it if the lease is lost."""
        delivery.was_sent_since(self._awake.since)
        self._held[delivery] = task

    def remove(self, delivery: Delivery) -> None:
        """The delivery is answered."""
        self._held.pop(delivery, None)

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        self._awake = Awake(self._interval_seconds)
        while True:
            await asyncio.sleep(self._interval_seconds)
            self._awake.look(lease_clock())
            for delivery, task in list(self._held.items()):
                if delivery.lease_held:
                    try:
                        await delivery.heartbeat()
                    except (nats.errors.Error, OSError) as error:
                        # The others' leases must not end with this one's: it runs out, or the next one gets through.
                        log.warning("delivery.heartbeat_failed", message=delivery.sequence, error=str(error))
                else:
                    delivery.give_up()
                    self.remove(delivery)
                    log.warning("delivery.lease_lost", stream=delivery.stream, message=delivery.sequence)
                    task.cancel()
