"""When a task is told that it begins, held against when it does: in simulated time, and by tables."""

from __future__ import annotations

import random
import statistics
from typing import Any

import pytest

from contracts.records.backlog import LaneBacklog
from contracts.records.status import LaneStatistics, PoolCapacity, WorkerRecord
from mesh.fleet.eta import InTurns, PoolView, pool_view, queue_state, speed_of
from tests.unit.simulated_lane import Promise, SimulatedLane
from tests.unit.small_fleet import AT, lane

# Simulated time


def median_error(promises: list[Promise], since: float) -> float:
    """Of the tasks that came from then on and waited; every one of them was told a time."""
    errors = [promise.error for promise in promises if promise.at >= since and promise.waited > 1]
    assert len(errors) > 30
    assert None not in errors, "a task was told no time"
    return statistics.median(error for error in errors if error is not None)


def steady(rate: float, seconds: float, seed: int) -> list[float]:
    """A Poisson process with a head start that fills the places and a queue."""
    chance = random.Random(seed)
    at, arrivals = 0.0, [0.0] * 40
    while at < seconds:
        at += chance.expovariate(rate)
        arrivals.append(at)
    return arrivals


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("places", "mean_seconds"), [(4, 0.5), (16, 2.0), (64, 8.0)])
def test_on_a_steady_load_the_median_error_is_within_30_percent(seed: int, places: int, mean_seconds: float) -> None:
    chance = random.Random(seed)
    simulated = SimulatedLane(places, lambda: chance.uniform(0.5, 1.5) * mean_seconds)
    rate = places / mean_seconds
    promises = simulated.run(steady(rate, 200, seed), 400)
    assert median_error(promises, since=max(10, 4 * mean_seconds)) < 0.3


@pytest.mark.parametrize("seed", range(3))
def test_tasks_of_several_turns_are_counted_by_their_first(seed: int) -> None:
    chance = random.Random(seed)
    simulated = SimulatedLane(8, lambda: chance.uniform(0.5, 1.5), turns=4)
    assert median_error(simulated.run(steady(8 / 4, 200, seed), 500), since=30) < 0.3


def test_a_burst_upon_an_idle_lane_is_told_by_its_places_and_not_by_what_came_before() -> None:
    """Before, a task a second came, and each began at once: that one a second drained says nothing of the burst."""
    simulated = SimulatedLane(20, lambda: 1.0)
    before, burst = [float(second) for second in range(1, 60)], [60.5] * 300
    promises = simulated.run(before + burst, 100)
    assert {promise.told.basis for promise in promises if 5 < promise.at < 60} == {"free"}
    assert {promise.told.basis for promise in promises if promise.at > 60 and promise.waited > 2} == {"places"}
    assert median_error(promises, since=60) < 0.1


def places_change_after_a_minute(before: int, after: int) -> list[Promise]:
    """A long queue, behind which ten more come each second; and who comes before the change is told what is wrong."""
    chance = random.Random(1)
    simulated = SimulatedLane(before, lambda: chance.uniform(0.5, 1.5))
    simulated.places_at[60] = after
    promises = simulated.run([0.0] * 1_500 + [second / 10 for second in range(1_600)], 400)
    assert median_error([promise for promise in promises if 30 < promise.at < 59], since=0) > 0.3, "it had no effect"
    return promises


def test_when_workers_are_added_the_eta_is_right_again_within_a_minute() -> None:
    promises = places_change_after_a_minute(10, 20)
    assert median_error([promise for promise in promises if promise.at < 160], since=120) < 0.1


def test_when_workers_leave_the_eta_is_right_again_at_once() -> None:
    promises = places_change_after_a_minute(20, 8)
    assert median_error([promise for promise in promises if promise.at < 75], since=62) < 0.15


def test_a_growing_queue_is_told_as_well_as_a_steady_one() -> None:
    chance = random.Random(2)
    simulated = SimulatedLane(8, lambda: chance.uniform(0.5, 1.5))
    arrivals = [second / 12 for second in range(12 * 120)]
    assert median_error(simulated.run(arrivals, 400), since=20) < 0.15


# Tables


def view(places: int | None, *lanes: LaneStatistics, taken: float = 0.0) -> PoolView:
    return PoolView({each.priority: each for each in lanes}, places, taken)


def test_while_a_place_is_free_a_task_begins_at_once() -> None:
    told = queue_state(view(4, lane("normal", running=3, waiting_tasks=0)), "normal")
    assert (told.depth, told.position, told.eta_seconds, told.basis) == (0, 1, 0.0, "free")


def test_where_all_places_are_taken_it_begins_with_the_next_that_ends() -> None:
    told = queue_state(view(4, lane("normal", running=4, waiting_tasks=0, task_seconds=8.0)), "normal")
    assert (told.position, told.eta_seconds, told.basis) == (1, 2.0, "places")


def test_places_that_other_pools_have_are_not_free() -> None:
    told = queue_state(view(4, lane("normal", running=1, waiting_tasks=0, task_seconds=8.0), taken=3), "normal")
    assert told.basis == "places"


def test_what_a_lane_began_a_second_outranks_what_its_places_could() -> None:
    """Providers may be the bottleneck, whatever places there are."""
    stands = lane("normal", depth=30, running=4, waiting_tasks=29, task_seconds=1.0, tasks_per_second=0.5)
    told = queue_state(view(100, stands), "normal")
    assert (told.depth, told.position, told.eta_seconds, told.basis) == (30, 30, 60.0, "drain")


def test_measured_with_more_places_than_there_are_left_a_lane_goes_slower() -> None:
    stands = {"running": 4, "task_seconds": 2.0}
    normal = lane("normal", depth=30, waiting_tasks=30, tasks_per_second=8.0, **stands)
    low = lane("low", depth=30, waiting_tasks=30, tasks_per_second=2.0, **stands)
    # All of them took 20 places.
    for places, factor in ((None, 1.0), (0, 1.0), (24, 1.0), (17, 1.0), (10, 0.5), (4, 0.2)):
        told = [speed_of(view(places, normal, low), each).per_second for each in ("normal", "low")]
        assert told == [pytest.approx(8.0 * factor), pytest.approx(2.0 * factor)]


def test_what_is_held_waits_for_no_place() -> None:
    """A paused tenant's thousands in BACKLOG are before nobody, and no place is taken by them."""
    held = lane("normal", depth=5_000, backlog=5_000, held=5_000, running=1, waiting_tasks=0, tasks_per_second=0.5)
    told = queue_state(view(4, held), "normal")
    assert (told.depth, told.position, told.eta_seconds, told.basis) == (5_000, 1, 0.0, "free")
    assert queue_state(view(4, held, lane("low")), "low").basis == "free"


def test_an_idle_lane_beside_one_that_is_backed_up_gets_its_share_by_weight() -> None:
    busy = lane("low", depth=500, running=4, waiting_tasks=500, tasks_per_second=9.0)
    told = queue_state(view(4, lane("high", waiting_tasks=0), busy), "high")
    assert (told.position, told.basis) == (1, "pool")
    assert told.eta_seconds == pytest.approx(1 / (9.0 * 16 / 18), rel=0.01)


def test_a_known_number_before_it_outranks_what_was_counted() -> None:
    stands = lane("normal", depth=500, running=4, waiting_tasks=500, tasks_per_second=2.0)
    told = queue_state(view(4, stands), "normal", more=50, before=9)
    assert (told.position, told.eta_seconds) == (10, 5.0)


@pytest.mark.parametrize(
    ("fields", "basis", "eta_seconds"),
    [
        ({"depth": 4, "drain_per_second": 0.5}, "drain", 10.0),
        ({"depth": 4}, "unknown", None),
        ({"depth": 4, "waiting_tasks": 3}, "unknown", None),
    ],
)
def test_what_an_older_steward_writes_is_enough(fields: dict[str, Any], basis: str, eta_seconds: float | None) -> None:
    told = queue_state(view(None, lane("normal", **fields)), "normal")
    assert (told.basis, told.eta_seconds) == (basis, eta_seconds)


def test_of_a_lane_without_statistics_nothing_is_told() -> None:
    told = queue_state(view(4), "normal")
    assert (told.depth, told.position, told.eta_seconds, told.basis) == (None, None, None, "unknown")


def test_a_lane_without_workers_has_no_speed_by_its_places() -> None:
    assert speed_of(view(0, lane("normal", depth=2, waiting_tasks=2, task_seconds=2.0)), "normal").per_second is None


@pytest.mark.parametrize(
    ("own", "tenant", "before"),
    [
        (0, "new", 3),  # One of each tenant that waits.
        (9, "new", 9 + 10 + 10 + 3),
        (9, "heavy", 9 + 5 + 5 + 3),
        (5_000, "new", 5_000 + 5_000 + 100 + 3),
    ],
)
def test_in_a_backlog_tenants_take_turns_by_their_weights(own: int, tenant: str, before: int) -> None:
    waits = LaneBacklog(
        pool="default",
        priority="normal",
        waiting=5_103,
        tenants_waiting=3,
        tenants={"flood": 5_000, "some": 100, "few": 3},
    )
    weights = {"heavy": 2.0}
    assert InTurns(waits, lambda name: weights.get(name, 1.0)).before(own, tenant) == before


def test_of_tenants_that_are_not_named_each_gets_its_turn() -> None:
    waits = LaneBacklog(pool="default", priority="normal", waiting=1_100, tenants_waiting=101, tenants={"flood": 1_000})
    assert InTurns(waits, lambda _: 1.0).before(0, "new") == 1 + 100
    assert InTurns(waits, lambda _: 1.0).before(9, "new") == 9 + 10 + 100


def test_tenants_that_get_no_place_go_before_nobody() -> None:
    waits = LaneBacklog(
        pool="default",
        priority="normal",
        waiting=6_103,
        tenants_waiting=4,
        tenants={"flood": 5_000, "some": 100, "few": 3},
        held_tenants=("flood",),
        held_waiting=5_000,
    )
    # A fourth tenant is not named: it has 1,000.
    assert InTurns(waits, lambda _: 1.0).before(0, "new") == 1 + 1 + 1
    assert InTurns(waits, lambda _: 1.0).before(9, "new") == 9 + 10 + 3 + 10
    # One that is held is told where it stands once it is not.
    assert InTurns(waits, lambda _: 1.0).before(4_999, "flood") == 4_999 + 100 + 3 + 1_000


def test_what_goes_on_meanwhile_takes_little_from_before_who_has_little() -> None:
    waits = LaneBacklog(
        pool="default", priority="normal", waiting=520, tenants_waiting=2, tenants={"flood": 500, "few": 20}
    )
    line = InTurns(waits, lambda _: 1.0)
    # 14 have gone on: seven of each.
    assert line.behind_all(0, "new", 14) == line.before(0, "new") == 2
    assert line.behind_all(20, "few", 14) == line.before(13, "few")
    assert line.behind_all(500, "flood", 14) == pytest.approx(513 - 14 + 7)
    # All of it has.
    assert line.behind_all(0, "new", 1_000) == 0
    assert line.behind_all(500, "flood", 519) == pytest.approx(240.5)


@pytest.mark.parametrize("seed", range(20))
def test_a_place_among_many_is_the_sum_of_the_turns_of_each(seed: int) -> None:
    chance = random.Random(seed)
    tenants = {f"t{number}": chance.randrange(1, 300) for number in range(chance.randrange(1, 60))}
    weights = {name: chance.choice((0.5, 1.0, 2.0, 7.5)) for name in tenants}
    held = tuple(name for name in tenants if chance.random() < 0.2)
    waits = LaneBacklog(
        pool="default",
        priority="normal",
        waiting=sum(tenants.values()),
        tenants_waiting=len(tenants),
        tenants=tenants,
        held_tenants=held,
        held_waiting=sum(tenants[name] for name in held),
    )
    line = InTurns(waits, lambda name: weights.get(name, 1.0))
    for tenant in ("new", *tenants):
        own, weight = chance.randrange(400), weights.get(tenant, 1.0)
        others = [name for name in tenants if name not in (tenant, *held)]
        each = (min(tenants[name], (own + 1) / weight * weights[name]) for name in others)
        assert line.before(own, tenant) == pytest.approx(own + sum(each))
        assert line.part(tenant) == pytest.approx(weight / (weight + sum(weights[name] for name in others)))


def worker(*pools: str, concurrency: int | None = 4, **fields: Any) -> WorkerRecord:
    return WorkerRecord(
        worker="w", service="inference_worker", version="0.2.0", pid=1, host="h", pools=pools, concurrency=concurrency,
        running=0, started_at=AT, time=AT, **fields,
    )  # fmt: skip


def test_places_are_those_of_workers_that_live_and_do_not_drain() -> None:
    workers = [worker("default"), worker("default", draining=True), worker("other"), worker("default", concurrency=2)]
    assert pool_view("default", [], workers).places == 6
    assert pool_view("default", [], None).places is None


def test_what_a_worker_runs_of_its_other_pools_takes_its_places() -> None:
    other = LaneStatistics(pool="other", priority="normal", time=AT, depth=0, running=3)
    shared = pool_view("default", [lane("normal"), other], [worker("default", "other"), worker("other", concurrency=8)])
    assert (shared.places, shared.taken) == (4, 1.0)
    assert shared.free == 3


def test_places_are_no_more_than_the_servers_bear() -> None:
    bears = {"default": PoolCapacity(limit=3, of_all=6, workers=2, why="kv cache")}
    workers = [worker("default", concurrency=8, places={"default": 5}), worker("default", capacity=bears)]
    assert pool_view("default", [lane("normal")], workers).places == 8 + 3
