"""A stream that takes nothing since the disk was full is told from one that is well, and nothing is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.streams import STREAMS
from mesh.broker.connection import connect
from mesh.broker.dead_streams import dead_streams
from mesh.broker.levels import NEEDED
from mesh.broker.provisioning import apply, declared
from mesh.broker.stream_states import read_state
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable
from tests.support.broker import Broker
from tests.support.small_disk import fill, small_disk

pytestmark = pytest.mark.integration

DISK_BYTES = 24 * 1024 * 1024
SUBJECT = "tasks.default.normal.default"


async def test_a_stream_that_is_dead_after_the_disk_was_full_says_so_and_the_others_stay_as_they_are(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "broker" / "jetstream", DISK_BYTES) as disk:
        broker = Broker(tmp_path / "broker")
        await broker.start()
        settings = Settings(nats_url=broker.url, home=tmp_path)
        try:
            async with connect(settings, "test") as connection:
                requests = connection.requests
                await apply(requests, declared(settings), update=False)
                await requests.publish("control.cancel.default", b"{}")
                assert await dead_streams(requests) == []
                filler = fill(disk)
                with pytest.raises(BrokerUnavailable):
                    await requests.publish(SUBJECT, b"x" * 60_000, timeout_seconds=1)
                filler.unlink()
                with pytest.raises(BrokerUnavailable):
                    await requests.publish(SUBJECT, b"x", timeout_seconds=1)
                states = [await read_state(requests, stream.name) for stream in STREAMS]
                [dead] = await dead_streams(requests)
                assert dead == ("TASKS", "no space left on device")
                assert [await read_state(requests, stream.name) for stream in STREAMS] == states
        finally:
            await broker.stop()


async def test_streams_that_are_not_there_are_not_dead(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "broker")
    await broker.start()
    try:
        async with connect(Settings(nats_url=broker.url, home=tmp_path), "test") as connection:
            assert NEEDED
            assert await dead_streams(connection.requests) == []
    finally:
        await broker.stop()
