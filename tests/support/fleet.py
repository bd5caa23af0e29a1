"""Many workers in one process: each has a connection of its own, and all that an idle worker says to the broker.

    python -m tests.support.fleet <broker's URL> <first number> <count>

Each pulls the lanes of the pool `default`, keeps the breaker of its provider and tells that it lives. It has one place,
and what it gets it holds until a line comes on stdin; then it acks it. On stdout is a line with `ready` once all are
connected, and one with a worker's number for each message that it gets.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from inference_worker.__main__ import lanes
from inference_worker.models.breakers import Breakers
from mesh.background import background
from mesh.broker import lanes as lane_module
from mesh.broker.answers import Ack, Answer
from mesh.broker.connection import connect
from mesh.broker.consumption import Consumption
from mesh.broker.deliveries import Delivery
from mesh.broker.gates import Permit
from mesh.configuration.breaker_table import BreakerSettings
from mesh.configuration.settings import Settings
from mesh.serving.heartbeats import heartbeats
from mesh.serving.service import Service

PROVIDER = "scripted"


@asynccontextmanager
async def worker(
    settings: Settings, number: int, released: asyncio.Event, on_message: Callable[[int], None]
) -> AsyncIterator[None]:
    """One worker, until the end of the block."""

    async def hold(delivery: Delivery, permit: Permit) -> Answer:
        on_message(number)
        await released.wait()
        return Ack()

    async with connect(settings, "inference_worker") as connection:
        service = Service("inference_worker", settings, connection)
        service.worker = f"fleet-{number}"
        breakers = Breakers(connection.requests, {PROVIDER: BreakerSettings()}, service.worker)
        consumption = Consumption(connection, settings, lanes(settings, breakers, service.valves), hold, 1)
        await service.valves.open()
        async with (
            background(breakers.run(service.stopping), service.valves.run(), consumption.run()),
            heartbeats(service, lambda: consumption.in_hand, pools=settings.pools),
        ):
            yield


async def fleet(
    settings: Settings,
    numbers: range,
    released: asyncio.Event,
    stack: AsyncExitStack,
    on_message: Callable[[int], None],
) -> None:
    """Start these workers; they run until the end of the stack."""
    for number in numbers:
        await stack.enter_async_context(worker(settings, number, released, on_message))


async def _main(url: str, first: int, count: int) -> None:
    # As those who have been idle for minutes, so that nobody has to wait until they have.
    lane_module.IDLE_SECONDS_MIN = lane_module.IDLE_SECONDS_MAX
    released = asyncio.Event()
    settings = replace(Settings(), nats_url=url, drain_seconds=0.0)

    def say(line: object) -> None:
        print(line, flush=True)  # noqa: T201 - to whoever started it

    async with AsyncExitStack() as stack:
        await fleet(settings, range(first, first + count), released, stack, say)
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)
        released.set()
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
