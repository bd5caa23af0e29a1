"""When an ingress leaves the order of a lane to the stewards, by what it knows, against a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from contracts.records.backlog import BacklogRecord, LaneBacklog
from contracts.records.status import LaneStatistics
from contracts.subjects import BACKLOG_KEY
from contracts.tasks import Priority
from ingress.crowding import ROOM_MIN, Crowding
from ingress.fleet_watch import FleetWatch
from ingress.lane_statistics import Lanes
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.clock import now
from mesh.fleet.members import Member
from tests.support.waiting import until

pytestmark = pytest.mark.integration

POOL = "default"
LANE: Priority = "normal"


async def known(connection: Connection, **statistics: object) -> Crowding:
    """An ingress that has read these statistics of the lane, and knows of no worker."""
    told = {"pool": POOL, "priority": LANE, "time": now(), "depth": 0, "running": 0, **statistics}
    await key_value.put_json(connection.requests, "lanes", f"{POOL}.{LANE}", LaneStatistics(**told))  # type: ignore[arg-type]
    lanes = Lanes(connection.requests, (POOL,), FleetWatch(connection, (POOL,)))
    await lanes._refresh()
    return Crowding(connection.requests, lanes)


def let_in(crowding: Crowding, tries: int = 100) -> int:
    """How many of so many tasks at once go straight into their lane."""
    return [crowding.goes_by_backlog(POOL, LANE) for _ in range(tries)].count(False)


async def test_a_lane_takes_about_as_many_as_its_pool_has_places(connection: Connection) -> None:
    assert let_in(await known(connection)) == ROOM_MIN


async def test_what_lies_there_already_counts_and_what_waits_in_the_backlog_does_not(connection: Connection) -> None:
    assert let_in(await known(connection, depth=10)) == ROOM_MIN - 10
    assert let_in(await known(connection, depth=5_000)) == 0
    assert let_in(await known(connection, depth=5_000, backlog=4_990)) == ROOM_MIN - 10


async def test_who_has_each_task_worked_on_at_once_is_no_crowd(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has measured yet how fast they go: the broker tells that nothing of them lies there."""
    monkeypatch.setattr("ingress.crowding.LOOK_GOOD_SECONDS", 60.0)
    monkeypatch.setattr("ingress.crowding.LOOK_SECONDS", 0.0)
    crowding = await known(connection)
    for _ in range(5):
        assert let_in(crowding, ROOM_MIN - 1) == ROOM_MIN - 1
        await until(lambda: not crowding._looking)
    assert let_in(crowding) == ROOM_MIN


async def test_who_knows_nothing_of_a_lane_or_only_what_is_old_goes_by_it(connection: Connection) -> None:
    old = await known(connection, depth=5_000, time=now() - timedelta(seconds=3_600))
    assert let_in(old) == 100
    nothing = Lanes(connection.requests, (POOL,), FleetWatch(connection, (POOL,)))
    assert let_in(Crowding(connection.requests, nothing)) == 100


async def test_a_lane_that_the_stewards_order_takes_none_and_another_does(connection: Connection) -> None:
    crowding = await known(connection)
    record = BacklogRecord(mover="steward", time=now(), lanes=(LaneBacklog(pool=POOL, priority=LANE, waiting=1),))
    await key_value.put_json(connection.requests, "lanes", BACKLOG_KEY, record)
    await connection.requests.backlog_lanes.refresh()
    assert let_in(crowding) == 0
    assert not crowding.goes_by_backlog(POOL, "high")


async def test_a_record_that_nobody_writes_any_more_says_nothing(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowding = await known(connection)
    record = BacklogRecord(mover="steward", time=now(), lanes=(LaneBacklog(pool=POOL, priority=LANE),))
    await key_value.put_json(connection.requests, "lanes", BACKLOG_KEY, record)
    await connection.requests.backlog_lanes.refresh()
    monkeypatch.setattr("mesh.broker.backlog_lanes.OLD_SECONDS", 0.0)
    await connection.requests.backlog_lanes.refresh()  # It has not changed.
    assert let_in(crowding) == ROOM_MIN


class Members(list[Member]):
    """Processes of a fleet, and how often they were looked through."""

    looks = 0

    def __iter__(self) -> Iterator[Member]:
        self.looks += 1
        return super().__iter__()


async def test_an_acceptance_looks_through_no_fleet(connection: Connection) -> None:
    """A thousand processes are looked through with each look at the mesh, and some times a second: not by each task."""
    crowding = await known(connection)
    watch = crowding._lanes.fleet
    await watch._look()
    assert watch._fleet is not None
    members = Members(watch._fleet.members)
    watch._fleet = watch._fleet._replace(members=members)
    for _ in range(1_000):
        crowding.goes_by_backlog(POOL, LANE)
        crowding.median_output(POOL)
        watch.counts_lanes, watch.ingresses  # noqa: B018 - what is asked with each
    assert members.looks < 200


async def test_the_median_of_what_turns_put_out_is_that_of_the_lane_that_ends_most(connection: Connection) -> None:
    crowding = await known(connection, output_tokens_p50=321)
    assert crowding.median_output(POOL) == 321
    assert crowding.median_output("another") is None


async def test_what_may_not_go_on_stands_before_nobody_else(connection: Connection) -> None:
    crowding = await known(connection, depth=104, backlog=100, waiting_tasks=104)
    told = LaneBacklog(pool=POOL, priority=LANE, waiting=100, tenants_waiting=1, tenants={"paused": 100}, held=True)
    record = BacklogRecord(mover="steward", time=now(), lanes=(told,))
    await key_value.put_json(connection.requests, "lanes", BACKLOG_KEY, record)
    await connection.requests.backlog_lanes.refresh()
    assert let_in(crowding) == ROOM_MIN - 4
    position = {tenant: crowding._lanes.queue(POOL, LANE, tenant=tenant).position for tenant in ("other", "paused")}
    assert position == {"other": 5, "paused": 105}
