"""How many workers a pool is said to want, by what waits, what they take, and what its servers bear."""

from __future__ import annotations

import pytest

from contracts.api.pools import LaneLoad
from contracts.records.status import PoolCapacity, WorkerRecord
from ingress.pool_load import judge
from mesh.clock import now


def worker(
    name: str, concurrency: int, limit: int | None = None, of_all: int = 0, draining: bool = False
) -> WorkerRecord:
    at = now()
    bears = {} if limit is None else {"p": PoolCapacity(limit=limit, of_all=of_all, workers=1, why="")}
    return WorkerRecord(
        worker=name,
        service="inference_worker",
        version="0.2.0",
        pid=1,
        host="h",
        pools=("p",),
        concurrency=concurrency,
        capacity=bears,
        running=0,
        started_at=at,
        time=at,
        draining=draining,
    )


@pytest.mark.parametrize(
    ("workers", "turns", "places", "wanted"),
    [
        ([], 100, 0, 4),
        ([worker("a", 32)], 100, 32, 4),
        ([worker("a", 32), worker("b", 8)], 100, 40, 5),
        # A server of 40 slots: two workers of 32 can use them all, and more would help nobody.
        ([worker("a", 32, 32, 40)], 1_000, 32, 2),
        ([worker("a", 32, 20, 40), worker("b", 32, 20, 40)], 1_000, 40, 2),
        ([worker("a", 32, 4, 4)], 1_000, 4, 1),
        ([worker("a", 32, 4, 4)], 0, 4, 0),
        ([worker("a", 32, 4, 4, draining=True)], 100, 0, 4),
    ],
)
def test_workers_are_wanted_for_what_waits_as_far_as_the_servers_bear_it(
    workers: list[WorkerRecord], turns: int, places: int, wanted: int
) -> None:
    lanes = [LaneLoad(priority="normal", waiting=turns, running=0, held=0)]
    load = judge("p", lanes, workers, 32, now())
    assert (load.waiting, load.places, load.wanted_workers) == (turns, places, wanted)
    # What is held up beside it wants nobody.
    held = LaneLoad(priority="low", waiting=5_000, running=0, held=5_000)
    assert judge("p", [*lanes, held], workers, 32, now()).wanted_workers == wanted
