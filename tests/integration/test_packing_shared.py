"""Several stewards pack against a real broker: each does a part, and nothing is packed twice."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from mesh.broker.connection import Connection
from mesh.configuration.settings import Settings
from steward.archiving import packing
from steward.archiving.packing import Packing
from steward.retention import Retention
from tests.support.packed import left_of, packed_ids, tomorrow
from tests.support.past import PastTask, store
from tests.support.waiting import until

pytestmark = pytest.mark.integration


async def test_one_that_was_taken_for_dead_and_comes_back_packs_nothing_twice(
    connection: Connection, settings: Settings
) -> None:
    ids = await store(connection.requests, [PastTask(ended=True)] * 700)
    slow, other = (Packing(connection.requests, settings, name) for name in ("slow", "other"))
    assert await slow.round(tomorrow())
    while await other.round(tomorrow() + timedelta(minutes=5)):
        pass
    while await slow.round(tomorrow() + timedelta(minutes=5)):
        pass
    packed = await packed_ids(connection)
    assert sorted(packed) == sorted(ids)
    assert await left_of(connection, *ids) == set()


async def test_what_a_steward_leaves_that_is_told_to_stop_is_gone_on_with_at_once(
    connection: Connection, settings: Settings
) -> None:
    requests, at = connection.requests, tomorrow()
    ids = await store(requests, [PastTask(ended=True)] * (2 * packing.BATCH_TASKS_MAX))
    retaining = asyncio.create_task(Retention(requests, settings, "first", lambda: at).run())

    async def is_between_batches() -> bool:
        return 0 < len(await packed_ids(connection)) < len(ids)

    await until(is_between_batches)
    retaining.cancel()
    await asyncio.gather(retaining, return_exceptions=True)
    assert await left_of(connection, *ids) != set()
    second = Packing(requests, settings, "second")
    while await second.round(at):
        pass
    assert sorted(await packed_ids(connection)) == sorted(ids)
    assert await left_of(connection, *ids) == set()


async def test_three_stewards_share_what_is_due(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "PIECE_SEQUENCES", 200)
    ids = await store(connection.requests, [PastTask(ended=True)] * 400)
    stewards = [Packing(connection.requests, settings, f"steward-{number}") for number in range(3)]
    rounds = [0, 0, 0]

    async def work(number: int) -> None:
        while await stewards[number].round(tomorrow()):
            rounds[number] += 1

    await asyncio.gather(*(work(number) for number in range(3)))
    assert await left_of(connection, *ids) == set()
    assert min(rounds) > 0
    state = (await connection.requests.api("STREAM.INFO.ARCHIVE"))["state"]
    assert state["num_subjects"] > 3
