"""A worker of several pools hears of what waits in BACKLOG, against a real broker."""

from __future__ import annotations

import pytest

from contracts.records.backlog import BacklogRecord, LaneBacklog
from contracts.subjects import BACKLOG_KEY
from inference_worker.capacity.backlog_watch import watch_backlog
from mesh.background import background
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.clock import now
from tests.support.waiting import until

pytestmark = pytest.mark.integration


async def say(connection: Connection, waiting: int) -> None:
    """As the steward that moves messages does, once a second."""
    lane = LaneBacklog(pool="default", priority="normal", waiting=waiting)
    record = BacklogRecord(mover="steward", time=now(), lanes=(lane,))
    await key_value.put_json(connection.requests, "lanes", BACKLOG_KEY, record)


async def test_what_was_there_before_is_read_and_what_comes_is_heard_of(connection: Connection) -> None:
    await say(connection, 100)

    def heard(waiting: int) -> bool:
        record = connection.requests.backlog_lanes.record
        return record is not None and [lane.waiting for lane in record.lanes] == [waiting]

    async with background(watch_backlog(connection.requests, ("default", "other"))):
        await until(lambda: heard(100))
        await say(connection, 7)
        await until(lambda: heard(7))
        await say(connection, 5_000)
        await until(lambda: heard(5_000))


async def test_a_worker_of_one_pool_asks_for_nothing(connection: Connection) -> None:
    await say(connection, 100)
    async with background(watch_backlog(connection.requests, ("default",))):
        await connection.client.flush()
    assert connection.requests.backlog_lanes.record is None
