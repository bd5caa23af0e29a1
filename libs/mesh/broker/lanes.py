"""A lane: one durable consumer that a process pulls, and whether it may have messages, or waits for one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from mesh.broker.connection import Connection
from mesh.broker.deliveries import Delivery
from mesh.broker.gates import AlwaysOpen, Gate
from mesh.broker.pull_consumer import ConsumerUnavailable, PullConsumer
from mesh.broker.shares import Share
from mesh.loop_health import LoopHealth

log = structlog.get_logger("mesh.broker.lanes")

IDLE_SECONDS_MIN, IDLE_SECONDS_MAX = 5.0, 300.0
"""How long a lane waits for its next message before it asks again: longer each time in vain, up to this."""
IDLE_GROWTH = 4.0
UNAVAILABLE_SECONDS_MIN, UNAVAILABLE_SECONDS_MAX = 0.5, 5.0
"""Pause after a consumer that does not answer pulls: longer each time, up to this."""
LIMITED_SECONDS = 0.25
"""How often a lane is looked at whose gate lets single messages through: no pull is left open there."""


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A durable consumer to pull while its gate is open, and whose share of the free places it takes part in.

    Of those of one share the first that has messages goes first. Without a share it is one among equals.
    """

    stream: str
    consumer: str
    of_share: Share | None = None
    gate: Gate = field(default_factory=AlwaysOpen)

    @property
    def share(self) -> Share:
        """Whose places it gets."""
        return self.of_share or Share(f"{self.stream}/{self.consumer}", "")


class Lane:
    """A consumer in one of these states: it is empty, and waits for its next message; or it may have some."""

    def __init__(
        self,
        connection: Connection,
        spec: ConsumerSpec,
        ack_wait_seconds: float,
        on_delivery: Callable[[Delivery], None],
        on_changed: Callable[[], None],
        may_wait: Callable[[], bool] = lambda: True,
    ) -> None:
        self.spec = spec
        self.is_empty = False
        self.is_unknown = True
        """Nobody has looked yet."""
        self._on_changed = on_changed
        self._may_wait = may_wait
        self._consumer = PullConsumer(connection, spec.stream, spec.consumer, ack_wait_seconds, on_delivery)
        self._look_at = 0.0
        self._idle_seconds = IDLE_SECONDS_MIN
        self._health = LoopHealth(log, "consumer.unavailable", stream=spec.stream, consumer=spec.consumer)
        self._closed = False
        spec.gate.on_changed(self._gate_changed)

    @property
    def is_limited(self) -> bool:
        """Whether its gate lets single messages through, or none, so that no pull is left open."""
        return not self.spec.gate.leaves_pulls_open

    @property
    def seconds_to_next_look(self) -> float:
        """How long a limited lane that had nothing is left alone."""
        return max(0.0, self._look_at - _now())

    def may_be_asked(self) -> bool:
        """Whether a take could bring something now. Its gate learns that there may be something, if it has no room."""
        if self.is_empty or self.seconds_to_next_look > 0:
            return False
        if self.spec.gate.room() > 0:
            return True
        self.spec.gate.ask()
        return False

    async def take(self, places: int) -> None:
        """Ask for what is there. Less than asked for: it is empty, and must be waited for."""
        try:
            taken = await self._consumer.take(places)
            self._health.succeeded()
        except ConsumerUnavailable as error:
            self._health.failed(error)
            taken = 0
        self.is_unknown = False
        if taken >= places:
            return
        if self.is_limited:
            self._look_at = _now() + LIMITED_SECONDS
        else:
            self.is_empty = True

    async def wait(self) -> None:
        """Wait for the next message; from then on there may be more. Ends, too, once it must wait no longer: the gate
        is not wide open, or there is no room for what would come."""
        self._idle_seconds, failures = IDLE_SECONDS_MIN, 0
        while not self.is_limited and self._may_wait():
            try:
                # Not quite as long each time: workers that were started together shall not ask together for ever.
                if await self._consumer.wait(self._idle_seconds * random.uniform(0.9, 1.0)):
                    break
                failures = 0
                self._health.succeeded()
                self._idle_seconds = min(self._idle_seconds * IDLE_GROWTH, IDLE_SECONDS_MAX)
            except ConsumerUnavailable as error:
                self._health.failed(error)
                await asyncio.sleep(min(UNAVAILABLE_SECONDS_MIN * 2**failures, UNAVAILABLE_SECONDS_MAX))
                failures = min(failures + 1, 8)
        self.is_empty = False

    def look_again(self) -> None:
        """There is a message that nobody has asked for: the pull that is open may be one that the broker has lost."""
        if self.is_empty:
            self._idle_seconds = IDLE_SECONDS_MIN / IDLE_GROWTH
            self._consumer.end_pull()

    def stop_waiting(self) -> None:
        """Have no pull open: there is no room for what it would bring."""
        if self.is_empty:
            self._consumer.end_pull()

    async def close(self) -> None:
        """Take no more deliveries."""
        self._closed = True
        await self._consumer.close()

    def _gate_changed(self) -> None:
        if self._closed:
            return
        if self.is_limited:
            self._consumer.end_pull()
        self._on_changed()


def _now() -> float:
    return asyncio.get_running_loop().time()
