"""A small fleet of idle workers, as `make bench` measures a large one."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from mesh.broker import lanes
from mesh.broker.connection import Connection
from mesh.configuration.settings import Settings
from tests.support.broker import Broker
from tests.support.fleet import fleet
from tests.support.waiting import until

pytestmark = pytest.mark.integration

WORKERS = 30
MESSAGES_PER_SECOND_MAX = 200 / 1000
"""Of an idle worker."""
LOOK_SECONDS = 5.0


async def test_each_worker_of_a_fleet_is_served_and_an_idle_one_says_little(
    broker: Broker, connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "IDLE_SECONDS_MIN", lanes.IDLE_SECONDS_MAX)
    released, got = asyncio.Event(), Counter[int]()
    settings = replace(settings, drain_seconds=0.0)
    async with AsyncExitStack() as stack:
        await fleet(settings, range(WORKERS), released, stack, lambda number: got.update([number]))

        async def wait_for_each() -> bool:
            info = await connection.requests.api("CONSUMER.INFO.TASKS.default-normal")
            return int(info["num_waiting"]) == WORKERS

        await until(wait_for_each)
        for _ in range(WORKERS):
            await connection.requests.publish("tasks.default.normal.acme", b"{}")
        await until(lambda: sum(got.values()) == WORKERS)
        assert got == Counter(range(WORKERS)), "one each, while nobody lets go of its own"
        released.set()
        await until(wait_for_each)
        before = await broker.messages()
        await asyncio.sleep(LOOK_SECONDS)
        # And the second heartbeat of each, which is due now on a busy machine, with its answer.
        assert await broker.messages() - before <= WORKERS * (MESSAGES_PER_SECOND_MAX * LOOK_SECONDS + 2)
