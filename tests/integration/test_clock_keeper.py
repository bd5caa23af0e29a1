"""The broker's time, asked of a real broker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import structlog.testing

from mesh import clock, faults
from mesh.broker import clock_keeper
from mesh.broker.clock_keeper import ClockKeeper
from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import apply, declared
from mesh.clock import MeshClock
from mesh.configuration.settings import Settings
from tests.support.broker import Broker
from tests.support.waiting import until

pytestmark = pytest.mark.integration

NEAR = timedelta(seconds=1)


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> MeshClock:
    """A clock that has learnt nothing, in a process whose wall clock is an hour ahead."""
    fresh = MeshClock()
    monkeypatch.setattr(clock, "MESH_CLOCK", fresh)
    monkeypatch.setattr(clock_keeper, "MESH_CLOCK", fresh)
    monkeypatch.setattr(faults, "CLOCK_OFF", "3600")
    return fresh


def is_the_brokers() -> bool:
    """Whether the mesh's time is that of the broker, whose machine is this one."""
    return abs(clock.now() - datetime.now(UTC)) < NEAR


async def test_a_process_goes_by_the_brokers_clock_from_its_connection_on(
    connection: Connection, settings: Settings, learning: MeshClock
) -> None:
    assert not is_the_brokers()
    async with connect(settings, "test"):
        assert learning.is_learnt
        assert is_the_brokers()


async def test_it_stands_in_for_a_stream_that_is_not_there_and_is_asked_again_soon(
    broker: Broker, settings: Settings, learning: MeshClock
) -> None:
    async with connect(settings, "test") as opened:
        assert not learning.is_learnt
        assert not is_the_brokers()
        await apply(opened.requests, declared(settings), update=False)
        await until(lambda: learning.is_learnt)
        assert is_the_brokers()


async def test_after_a_reconnect_it_asks_again(
    connection: Connection, settings: Settings, broker: Broker, learning: MeshClock
) -> None:
    async with connect(settings, "test"):
        # As if the broker that comes back had another clock.
        learning.learn(datetime.now(UTC) + timedelta(days=1), clock.lease_clock(), clock.lease_clock())
        assert not is_the_brokers()
        await broker.kill()
        await broker.start()
        await until(is_the_brokers)


async def test_a_clock_that_is_off_is_said_once_and_again_when_that_changes(
    connection: Connection, settings: Settings, learning: MeshClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = ClockKeeper(connection.requests)
    with structlog.testing.capture_logs() as logs:
        for off_seconds in ("3600", "3600", "3600.5", "-3600", "0.2", "0.2"):
            monkeypatch.setattr(faults, "CLOCK_OFF", off_seconds)
            assert await keeper.learn()
    assert {each["event"] for each in logs} == {"clock.off"}
    assert [round(each["ahead_seconds"]) for each in logs] == [3600, -3600, 0]


async def test_an_idle_process_asks_seldom(connection: Connection, settings: Settings, learning: MeshClock) -> None:
    asked = 0

    async def count(_: object) -> None:
        nonlocal asked
        asked += 1

    await connection.client.subscribe("$JS.API.STREAM.INFO.EVENTS", cb=count)
    await connection.client.flush()
    async with connect(settings, "idle"):
        await connection.client.flush()
        assert 1 <= asked <= clock_keeper.TRIES_MAX
    assert 1000 / (clock_keeper.AGAIN_SECONDS * (1 - clock_keeper.AGAIN_SPREAD)) < 12, "of a thousand, in a second"
