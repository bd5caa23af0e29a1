"""How long a drain waits for what runs, by how long such things have taken."""

from __future__ import annotations

import pytest

from mesh.broker.step_times import PATIENCE_SECONDS_MIN, RECENT_MAX, StepTimes

BOUND = 120.0


@pytest.mark.parametrize(
    ("taken", "running", "patience"),
    [
        pytest.param([], [], PATIENCE_SECONDS_MIN, id="nothing runs"),
        pytest.param([], [3.0], BOUND, id="nothing is known"),
        pytest.param([1.0, 2.0], [0.1], PATIENCE_SECONDS_MIN, id="all are short"),
        pytest.param([40.0, 1.0], [0.0], 50.0, id="the longest, and a quarter more"),
        pytest.param([40.0], [0.0, 45.0], 50.0, id="as the last of them may end"),
        pytest.param([40.0], [45.0], PATIENCE_SECONDS_MIN, id="it is about to end"),
        pytest.param([1.0], [30.0], 30.0, id="one that has outlived all others, as long again"),
        pytest.param([1.0], [300.0], BOUND, id="but never beyond the bound"),
        pytest.param([200.0], [1.0], BOUND, id="which is a bound for all"),
    ],
)
def test_a_drain_waits_as_long_as_steps_take(taken: list[float], running: list[float], patience: float) -> None:
    times = StepTimes()
    for seconds in taken:
        times.add("lane", seconds)
    assert times.patience_seconds([("lane", age) for age in running], BOUND) == patience


def test_each_consumer_has_times_of_its_own() -> None:
    times = StepTimes()
    times.add("quick", 0.1)
    times.add("slow", 40.0)
    assert times.patience_seconds([("quick", 0.05)], BOUND) == PATIENCE_SECONDS_MIN
    assert times.patience_seconds([("quick", 0.05), ("slow", 10.0)], BOUND) == 40.0


def test_what_took_long_is_forgotten_after_so_many_others() -> None:
    times = StepTimes()
    times.add("lane", 80.0)
    for _ in range(RECENT_MAX):
        times.add("lane", 8.0)
    assert times.patience_seconds([("lane", 0.0)], BOUND) == 10.0


def test_a_bound_below_the_least_holds() -> None:
    assert StepTimes().patience_seconds([("lane", 1.0)], 0.2) == 0.2
