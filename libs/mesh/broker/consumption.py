"""Pulling a durable consumer whose messages are no steps: each is handled under its lease, a bounded number at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from mesh.background import background
from mesh.broker.connection import Connection
from mesh.broker.deliveries import Delivery, Leases, handle_while_leased
from mesh.broker.pull_consumer import Lane, LaneUnavailable
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable, StepLost

log = structlog.get_logger("mesh.broker.consumption")

AT_ONCE_MAX = 32
LANE_RETRY_SECONDS = 0.5


class Consumption:
    """Hands each delivery of a consumer to `handle`, which answers it. What is not answered comes back."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        stream: str,
        consumer: str,
        handle: Callable[[Delivery], Awaitable[None]],
        at_once_max: int = AT_ONCE_MAX,
    ) -> None:
        self._drain_seconds = settings.drain_seconds
        self._handle = handle
        self._at_once_max = at_once_max
        self._leases = Leases(settings.ack_wait_seconds)
        self._running: set[asyncio.Task[None]] = set()
        self._lane = Lane(connection, stream, consumer, at_once_max, settings.ack_wait_seconds, self._start)

    async def run(self) -> None:
        """Handle deliveries until cancelled; then let those in hand end, within `MESH_DRAIN_SECONDS`."""
        async with background(self._leases.run()):
            try:
                await self._pull()
            finally:
                await self._lane.close()
                await self._drain()

    async def _drain(self) -> None:
        if not self._running:
            return
        # What does not end in time comes back after its lease, to any process.
        _, late = await asyncio.wait(self._running, timeout=self._drain_seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _pull(self) -> None:
        await self._lane.open()
        complained = False
        while True:
            room = self._at_once_max - len(self._running)
            if room <= 0:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                await self._lane.pull(room, wait=True)
                complained = False
            except LaneUnavailable as error:
                if not complained:
                    lane = self._lane
                    log.warning("lane.unavailable", stream=lane.stream, consumer=lane.consumer, error=str(error))
                complained = True
                await asyncio.sleep(LANE_RETRY_SECONDS)

    def _start(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._run(delivery))
        self._running.add(task)
        self._leases.add(delivery, task)
        task.add_done_callback(self._running.discard)

    async def _run(self, delivery: Delivery) -> None:
        """Handle a delivery, whatever happens."""
        try:
            await handle_while_leased(delivery, self._handle)
        except (BrokerUnavailable, StepLost) as error:
            log.warning("delivery.abandoned", stream=delivery.stream, message=delivery.sequence, error=str(error))
        except Exception:
            log.exception("delivery.crashed", stream=delivery.stream, message=delivery.sequence)
        finally:
            delivery.give_up()
            self._leases.remove(delivery)
