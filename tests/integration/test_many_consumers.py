"""Hundreds of pools and a thousand tools: every consumer is there, looked at, and served."""

from __future__ import annotations

import asyncio

import pytest

from contracts.codec import decode
from contracts.records.status import LaneStatistics
from contracts.streams import consumers, lane_consumer
from contracts.subjects import PRIORITIES
from mesh.background import background
from mesh.broker import key_value
from mesh.broker.answers import Ack, Answer
from mesh.broker.connection import Connection
from mesh.broker.consumer_lists import all_consumer_names
from mesh.broker.consumption import Consumption
from mesh.broker.deliveries import Delivery
from mesh.broker.gates import Permit
from mesh.broker.lanes import ConsumerSpec
from mesh.broker.provisioning import Declared, apply, compare
from mesh.broker.shares import LANE_WEIGHTS, Share
from mesh.configuration.settings import Settings
from steward.lane_statistics import LaneKeeper
from tests.support.waiting import until

pytestmark = pytest.mark.integration

POOLS = tuple(f"pool-{number}" for number in range(300))
TOOLS = tuple(f"tool_{number}" for number in range(1000))


async def test_300_pools_and_1000_tools_at_once(connection: Connection, settings: Settings) -> None:
    wanted = Declared(streams=[], consumers=consumers(POOLS, TOOLS, settings.ack_wait_seconds))
    await apply(connection.requests, wanted, update=False)
    assert await compare(connection.requests, wanted) == []
    assert len(await all_consumer_names(connection.requests, "TOOLS")) >= len(TOOLS)

    handled: set[str] = set()

    async def handle(delivery: Delivery, permit: Permit) -> Answer:
        handled.add(delivery.subject)
        return Ack()

    lanes = [
        ConsumerSpec(stream, lane_consumer(stream, pool, priority), Share(pool, priority, LANE_WEIGHTS[priority]))
        for pool in POOLS
        for priority in PRIORITIES
        for stream in ("TURNS", "TASKS")
    ]
    tools = [ConsumerSpec("TOOLS", f"tool-{tool}") for tool in TOOLS]
    lane_keeper = LaneKeeper(connection, POOLS)
    await connection.requests.publish(f"tasks.{POOLS[-1]}.low.acme", b"{}")
    await lane_keeper.update()
    entry = await key_value.get(connection.requests, "lanes", f"{POOLS[-1]}.low")
    assert entry is not None
    assert entry.value is not None
    assert decode(entry.value, LaneStatistics).depth == 1

    worker = Consumption(connection, settings, lanes, handle, 4)
    runner = Consumption(connection, settings, tools, handle, 4)
    async with background(worker.run(), runner.run()):
        await until(lambda: f"tasks.{POOLS[-1]}.low.acme" in handled, seconds=60)
        subjects = {f"turns.{pool}.high.acme" for pool in POOLS} | {f"tools.{tool}" for tool in TOOLS}
        await asyncio.gather(*(connection.requests.publish(subject, b"{}") for subject in subjects))
        await until(lambda: handled >= subjects, seconds=120)
