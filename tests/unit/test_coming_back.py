"""Clients that are refused and obey Retry-After: whether they are accepted when they come again, in simulated time."""

from __future__ import annotations

import heapq
import math
import random
from typing import NamedTuple

import pytest

from ingress.refusals import FULL_SECONDS, SECONDS_MAX, UNKNOWN_SECONDS, ComeBack
from mesh.access.limits import COME_BACK_SECONDS_MAX, Rates


class Came(NamedTuple):
    """How often those who came again, at the time that they were told, were accepted."""

    accepted: int
    of: int

    @property
    def part(self) -> float:
        return self.accepted / self.of


def crowd(
    clients: int,
    *,
    lane_max: int,
    per_second: float,
    measured: float = 1.0,
    ingresses: int = 1,
    fresh_per_second: float = 0.0,
    seed: int = 0,
) -> Came:
    """So many clients at once, at a lane that holds `lane_max` and frees `per_second`; others come while these wait.

    `measured`: what the drain is thought to be, as a part of what it is.
    """
    chance = random.Random(seed)
    doors = [ComeBack(chance.random) for _ in range(ingresses)]
    full_until = [0.0] * ingresses
    rate = per_second * measured / ingresses
    coming = [(chance.uniform(0, 2), number, False) for number in range(clients)]
    coming += [(chance.uniform(0, 120), clients + number, False) for number in range(round(120 * fresh_per_second))]
    heapq.heapify(coming)
    held, freed_at, accepted, again = 0, 0.0, 0, 0
    while coming:
        at, number, is_back = heapq.heappop(coming)
        freed = int((at - freed_at) * per_second)
        held, freed_at = max(0, held - freed), freed_at + freed / per_second
        if held == 0:
            freed_at = at
        again += is_back
        door = chance.randrange(ingresses)
        if doors[door].came("lane", at) or at >= full_until[door]:
            if held < lane_max:
                held += 1
                accepted += is_back
                continue
            full_until[door] = at + FULL_SECONDS
        told = doors[door].take("lane", at, rate)
        # As the header says it: whole seconds, and no sooner.
        heapq.heappush(coming, (at + max(1, math.ceil(told.seconds)), number, True))
    return Came(accepted, again)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ingresses", [1, 4])
@pytest.mark.parametrize("per_second", [2.0, 20.0, 200.0])
def test_who_obeys_retry_after_is_accepted(per_second: float, ingresses: int, seed: int) -> None:
    # Retry-After has whole seconds: of a lane that is emptied within one they come too many at once.
    lane_max = max(50, round(1.5 * per_second))
    came = crowd(1_000, lane_max=lane_max, per_second=per_second, ingresses=ingresses, seed=seed)
    assert came.of > 100
    # Where clients come back to whichever ingress, some find that one's part taken, and some of another's is left.
    assert came.part >= (0.95 if ingresses == 1 else 0.85), came


@pytest.mark.parametrize("seed", range(5))
def test_so_it_is_beside_others_who_take_a_twentieth_of_the_room(seed: int) -> None:
    came = crowd(500, lane_max=50, per_second=20, fresh_per_second=1, seed=seed)
    assert came.part >= 0.95, came


def test_without_times_of_their_own_most_would_be_refused_again() -> None:
    """What the test above is worth: a drain that is thought to be ten times as fast sends them back too soon."""
    assert crowd(1_000, lane_max=50, per_second=20, measured=10).part < 0.5


def test_each_is_told_a_later_time_and_how_many_come_before() -> None:
    line = ComeBack()
    told = [line.take("a", 100.0, 1.0) for _ in range(5)]
    assert [each.seconds for each in told] == [3, 4, 5, 6, 8]
    assert [each.before for each in told] == [0, 1, 2, 3, 4]
    assert line.take("b", 100.0, 1.0).before == 0


def test_a_line_that_has_passed_is_over() -> None:
    line = ComeBack()
    for _ in range(10):
        line.take("a", 0.0, 1.0)
    assert not line.came("a", 1.0)
    assert [line.came("a", 1_000.0) for _ in range(11)] == [True] * 10 + [False]
    assert line.take("a", 1_000.0, 1.0).before == 0


def test_while_nothing_is_measured_they_come_back_spread() -> None:
    line = ComeBack()
    told = {line.take("a", 0.0, None).seconds for _ in range(100)}
    assert len(told) > 90
    assert min(told) >= UNKNOWN_SECONDS
    assert max(told) <= 2 * UNKNOWN_SECONDS


def test_nobody_is_sent_away_for_more_than_ten_minutes() -> None:
    line = ComeBack()
    told = [line.take("a", 0.0, 0.1).seconds for _ in range(500)]
    assert max(told) <= SECONDS_MAX
    assert len({round(seconds) for seconds in told[-300:]}) > 100, "the last of them come together"


def test_who_sends_too_many_requests_is_told_times_as_far_apart_as_it_may_send_them() -> None:
    """Of one hundred at once that one caller may send ten a second of, each comes again when it may."""
    rates, chance = Rates(10.0, 10.0), random.Random(0)
    coming = [(chance.uniform(0, 0.1), number, False) for number in range(100)]
    heapq.heapify(coming)
    again = accepted = 0
    while coming:
        at, number, is_back = heapq.heappop(coming)
        again += is_back
        wait_seconds = rates.take("caller", at)
        if not wait_seconds:
            accepted += is_back
            continue
        told, _ = rates.come_back("caller", at, wait_seconds)
        heapq.heappush(coming, (at + math.ceil(told), number, True))
    assert accepted / again >= 0.95


def test_who_goes_on_though_it_was_refused_is_not_sent_away_for_ever() -> None:
    rates = Rates(1.0, 1.0)
    rates.take("caller", 0.0)
    told = [rates.come_back("caller", 0.0, rates.take("caller", 0.0)) for _ in range(1_000)]
    assert max(seconds for seconds, _ in told) <= COME_BACK_SECONDS_MAX + 1
    assert told[-1][1] <= COME_BACK_SECONDS_MAX
