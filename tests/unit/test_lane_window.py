"""Statistics of a lane: what a steward makes of workers' reports, and of what waits."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from contracts.records.status import TENANTS_TOLD_MAX, LaneSample, LaneStatistics
from steward.statistics import (
    FORGOTTEN_SECONDS,
    TENANTS_MAX,
    TOLD_FROM_EVENTS,
    Drain,
    LaneWindow,
    TaskSeconds,
    TenantRates,
)

AT = datetime(2026, 1, 1, tzinfo=UTC)


def sample(**fields: Any) -> LaneSample:
    return LaneSample(**{"worker": "w", "finished": 0, "wait_seconds": [], **fields})


def drained(per_second: int, seconds: int, *, waits: bool, drain: Drain | None = None, since: float = 0.0) -> Drain:
    drain = drain or Drain()
    for second in range(seconds):
        drain.look(since + second, waits=waits)
        drain.add(per_second)
    drain.look(since + seconds, waits=waits)
    return drain


def test_a_drain_is_what_goes_while_something_waits() -> None:
    assert drained(4, 30, waits=True).per_second == pytest.approx(4)


def test_what_goes_while_nothing_waits_is_no_drain() -> None:
    assert drained(4, 30, waits=False).per_second is None
    busy = drained(9, 30, waits=True)
    assert drained(1, 60, waits=False, drain=busy, since=31).per_second == pytest.approx(9)


def test_a_drain_follows_a_change_within_a_minute() -> None:
    drain = drained(20, 120, waits=True)
    assert drained(5, 60, waits=True, drain=drain, since=121).per_second == pytest.approx(5, rel=0.15)


def test_of_few_events_no_drain_is_told() -> None:
    assert drained(1, TOLD_FROM_EVENTS - 1, waits=True).per_second is None
    assert drained(1, TOLD_FROM_EVENTS, waits=True).per_second == pytest.approx(1)


def test_a_drain_of_long_ago_is_forgotten() -> None:
    drain = drained(5, 60, waits=True)
    drain.look(61 + FORGOTTEN_SECONDS, waits=False)
    assert drain.per_second is None


def test_a_task_has_a_place_for_all_of_its_turns() -> None:
    seconds = TaskSeconds()
    assert seconds.seconds is None
    for _ in range(100):
        seconds.add(sample(finished=8, begun={"a": 2}, busy_seconds=16.0))
    assert seconds.seconds == pytest.approx(8.0)


def test_tenants_are_told_by_the_tokens_that_they_used_of_late() -> None:
    rates = TenantRates()
    for second in range(900):
        # The one begins more tasks, and the other one uses more tokens.
        rates.add(float(second), {"acme": 3, "globex": 1}, {"acme": 30, "globex": 90})
    told, of_all = rates.told(900.0)
    assert [each.tenant for each in told] == ["globex", "acme"]
    assert told[0].tokens_per_second == pytest.approx(90, rel=0.05)
    assert told[1].tasks_per_second == pytest.approx(3, rel=0.05)
    assert of_all == pytest.approx(120, rel=0.05)
    assert rates.told(900.0 + 3_600) == ([], 0.0)


def test_what_tenants_used_follows_a_change_within_minutes() -> None:
    rates = TenantRates()
    for second in range(1_200):
        rates.add(float(second), {}, {"acme" if second < 900 else "globex": 10})
    told, _ = rates.told(1_200.0)
    assert [each.tenant for each in told] == ["globex", "acme"]
    assert told[1].tokens_per_second < 0.1


def test_a_flood_of_tenants_is_bounded_and_all_of_them_count() -> None:
    rates = TenantRates()
    tenants = {f"t{number}": number + 1 for number in range(3 * TENANTS_MAX)}
    rates.add(0.0, {}, tenants)
    told, of_all = rates.told(1.0)
    assert len(told) == TENANTS_TOLD_MAX
    assert told[0].tenant == f"t{3 * TENANTS_MAX - 1}"
    assert of_all == pytest.approx(sum(tenants.values()), rel=0.02)
    assert len(rates._tokens) == TENANTS_MAX


def test_a_lane_that_stands_is_as_fast_as_it_was_once_it_goes_on() -> None:
    lane = LaneWindow("default", "normal")
    for second in range(30):
        lane.add(float(second), sample(finished=5, begun={"a": 5}, busy_seconds=5.0))
        lane.statistics(float(second), AT, depth=50, running=5, waiting_tasks=50)
    for second in range(30, 90):
        told = lane.statistics(float(second), AT, depth=50, running=0, waiting_tasks=50, stands=True)
        assert told.tasks_per_second == pytest.approx(5, rel=0.1)


def window(*samples: LaneSample) -> LaneStatistics:
    lane = LaneWindow("default", "normal")
    for each in samples:
        lane.add(0.0, each)
    return lane.statistics(1.0, AT, depth=5, running=2, waiting_tasks=3)


def test_where_nothing_ends_though_much_could_that_is_told() -> None:
    """All places have tasks that hang: by how long tasks took before, one would begin every few milliseconds."""
    lane = LaneWindow("default", "normal")
    lane.add(0.0, sample(finished=10, begun={"a": 10}, busy_seconds=0.1))
    told = [
        lane.statistics(float(second), AT, depth=5, running=2, waiting_tasks=5).tasks_per_second for second in range(21)
    ]
    assert told[3] is None
    assert told[10] is not None
    assert told[20] == pytest.approx(1 / 20, rel=0.1)


def test_waits_have_three_percentiles() -> None:
    told = window(sample(finished=1, wait_seconds=[float(number) for number in range(1, 101)]))
    assert (told.wait_seconds_p50, told.wait_seconds_p95, told.wait_seconds_p99) == (50.0, 95.0, 99.0)


def test_what_an_older_worker_reports_is_enough() -> None:
    told = window(sample(finished=4, wait_seconds=[1.0]))
    assert (told.depth, told.waiting_tasks, told.drain_per_second) == (5, 3, 4.0)
    assert (told.tasks_per_second, told.task_seconds, told.tenants) == (None, None, [])
    assert told.tokens_per_second == 0.0
