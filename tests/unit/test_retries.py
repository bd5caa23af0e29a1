"""How long a retry waits."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.declarations import MAX_DELIVER
from contracts.retries import BROKER_POLICY, PROCESS_POLICY, STEP_POLICY, RetryPolicy

POLICY = RetryPolicy(tries_max=5, delay_seconds_first=0.5, delay_seconds_max=8.0)
LONGEST = 0.999_999


@pytest.mark.parametrize(
    ("tries", "ceiling"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 8.0), (1000, 8.0)]
)
def test_the_ceiling_doubles_with_each_try_up_to_the_longest_delay(tries: int, ceiling: float) -> None:
    assert POLICY.delay_seconds(tries, LONGEST) == pytest.approx(ceiling, rel=1e-5)
    assert POLICY.delay_seconds(tries, 0.5) == ceiling / 2
    assert POLICY.delay_seconds(tries, 0.0) == 0.0


@given(tries=st.integers(1, 10**9), fraction=st.floats(0, 1, exclude_max=True))
@pytest.mark.parametrize("policy", [STEP_POLICY, BROKER_POLICY, PROCESS_POLICY])
def test_a_delay_is_never_negative_and_never_too_long(policy: RetryPolicy, tries: int, fraction: float) -> None:
    assert 0.0 <= policy.delay_seconds(tries, fraction) <= policy.delay_seconds_max


@given(tries=st.integers(1, 100), fraction=st.floats(0, 1, exclude_max=True), named=st.floats(0, 86_400))
def test_a_delay_that_the_other_side_named_is_kept(tries: int, fraction: float, named: float) -> None:
    assert POLICY.delay_seconds(tries, fraction, named) == min(named, POLICY.retry_after_seconds_max)


def test_a_named_delay_in_the_past_is_none() -> None:
    assert POLICY.delay_seconds(1, 0.5, -3.0) == 0.0


def test_delays_are_spread_over_the_whole_range() -> None:
    """Full jitter: those who failed together don't come back together."""
    source = random.Random(7)
    delays = sorted(POLICY.delay_seconds(3, source.random()) for _ in range(1000))
    assert delays[0] < 0.05
    assert delays[-1] > 1.95
    assert delays[500] == pytest.approx(1.0, abs=0.15)


def test_the_net_under_crash_loops_is_wider_than_the_tries() -> None:
    assert STEP_POLICY.tries_max < MAX_DELIVER
