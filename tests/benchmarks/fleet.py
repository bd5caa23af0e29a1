"""A thousand workers at one broker: each is served, and what all of them say while there is nothing to do."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import replace

from mesh.broker.connection import connect
from mesh.broker.lanes import IDLE_SECONDS_MAX
from mesh.broker.provisioning import apply, declared
from mesh.configuration.settings import Settings
from tests.benchmarks.bench import Run
from tests.benchmarks.figures import Figure
from tests.support import children
from tests.support.broker import Broker
from tests.support.patience import within

PROCESSES = 4
LANES = 6
"""Of each worker: pulls that wait."""
MESSAGES_PER_SECOND_MAX = 200.0
SERVED_SECONDS_MAX = 60.0
SETTLE_SECONDS = 5.0
"""Until each has answered its message, and waits again."""
LOOK_SECONDS = 90.0
"""More than the longest of the other pauses."""


async def measure(run: Run) -> list[Figure]:
    """Start them, serve each, then listen while they are idle."""
    workers = run.scale(1000, 100)
    broker = Broker(run.folder / "broker")
    await broker.start()
    settings = replace(Settings(), nats_url=broker.url)
    try:
        async with connect(settings, "bench") as connection, AsyncExitStack() as stack:
            await apply(connection.requests, declared(settings), update=False)
            each = workers // PROCESSES
            fleets = [await _Fleet.started(broker.url, number * each, each) for number in range(PROCESSES)]
            for fleet in fleets:
                stack.callback(fleet.end)
            await asyncio.gather(*(fleet.ready() for fleet in fleets))
            began_at = time.perf_counter()
            publishes = (connection.requests.publish("tasks.default.normal.bench", b"{}") for _ in range(workers))
            await asyncio.gather(*publishes)
            async with within(SERVED_SECONDS_MAX):
                served = [
                    number for numbers in await asyncio.gather(*(f.served(each) for f in fleets)) for number in numbers
                ]
            took = time.perf_counter() - began_at
            for fleet in fleets:
                fleet.release()
            await asyncio.sleep(SETTLE_SECONDS)
            before = await broker.messages()
            seconds = run.scale(int(LOOK_SECONDS), 20)
            await asyncio.sleep(seconds)
            # Pulls that ended meanwhile are few, or none: all wait longer than this looks.
            idle = (await broker.messages() - before) / seconds + 2 * LANES * workers / IDLE_SECONDS_MAX
    finally:
        await broker.stop()
    allowed = MESSAGES_PER_SECOND_MAX * workers / 1000
    return [
        Figure(
            "workers that were served",
            "workers",
            len(set(served)),
            target=f"{workers}",
            met=len(served) == len(set(served)) == workers,
            note=f"a message for each in one lane, and no worker let go of its own: {took:.1f} s for all",
        ),
        Figure(
            "idle load of the fleet",
            "messages/s",
            idle,
            target=f"≤ {allowed:.0f}",
            met=idle <= allowed or run.quick,
            note=f"{workers} workers, in and out at the broker, over {seconds} s; with what their "
            f"pulls add, which last {IDLE_SECONDS_MAX:.0f} s and ended outside of that time",
        ),
    ]


class _Fleet:
    """A process of so many workers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def started(cls, url: str, first: int, count: int) -> _Fleet:
        command = [sys.executable, "-m", "tests.support.fleet", url, str(first), str(count)]
        return cls(await children.begin(command, stdin=children.PIPE, stdout=children.PIPE))

    async def ready(self) -> None:
        while await self._line() != "ready":
            pass

    async def served(self, count: int) -> list[int]:
        """The numbers of the workers that got a message, for so many messages."""
        numbers: list[int] = []
        while len(numbers) < count:
            line = await self._line()
            if line.isdigit():
                numbers.append(int(line))
        return numbers

    def release(self) -> None:
        """Have them answer what they hold."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    def end(self) -> None:
        """End the process."""
        self._process.kill()

    async def _line(self) -> str:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the fleet has ended")
        return line.decode().strip()
