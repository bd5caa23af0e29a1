"""Whose messages the free places go to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from mesh.broker.shares import Share, Shares

HIGH, NORMAL, LOW = (Share("default", name, weight) for name, weight in (("high", 16), ("normal", 8), ("low", 2)))
OTHER = Share("other", "low", 2)


def served(
    shares: Shares, rounds: int, places: int, waiting: Callable[[int], list[Share]] = lambda _: [HIGH, NORMAL, LOW]
) -> Counter[Share]:
    """What each got of so many rounds, of so many places each."""
    got: Counter[Share] = Counter()
    for number in range(rounds):
        for share in shares.picks(waiting(number), places):
            shares.give(share)
            got[share] += 1
    return got


@pytest.mark.parametrize("places", [1, 2, 4, 26, 64])
def test_lanes_that_are_all_backed_up_share_by_weight(places: int) -> None:
    got = served(Shares(), 26 * 40 // places, places)
    for share in (HIGH, NORMAL, LOW):
        assert got[share] == pytest.approx(got.total() * share.weight / 26, abs=1.5)


def test_pools_share_alike_whatever_lanes_they_have() -> None:
    got = served(Shares(), 400, 1, lambda _: [HIGH, NORMAL, LOW, OTHER])
    assert got[OTHER] == 200
    assert got[HIGH] == pytest.approx(200 * 16 / 26, abs=2)
    assert got[NORMAL] == pytest.approx(200 * 8 / 26, abs=2)


def test_a_lane_alone_gets_every_place() -> None:
    assert Shares().picks([LOW], 5) == [LOW] * 5
    assert Shares().picks([], 5) == []


def test_a_lane_that_was_idle_has_saved_nothing_up() -> None:
    shares = Shares()
    served(shares, 500, 1, lambda _: [HIGH, NORMAL])
    assert served(shares, 26, 1)[LOW] in (2, 3)


def test_what_was_picked_and_not_there_is_not_counted() -> None:
    """A lane that had less than it was asked for does not pay for it."""
    shares = Shares()
    shares.picks([HIGH, NORMAL, LOW], 1000)
    assert served(shares, 26, 1) == {HIGH: 16, NORMAL: 8, LOW: 2}


def test_messages_that_come_in_another_order_than_picked_change_no_share() -> None:
    shares = Shares()
    got: Counter[Share] = Counter()
    for _ in range(40):
        for share in sorted(shares.picks([HIGH, NORMAL, LOW], 26), reverse=True):
            shares.give(share)
            got[share] += 1
    assert got == {HIGH: 640, NORMAL: 320, LOW: 80}


def test_many_pools_are_each_served() -> None:
    lanes = [Share(f"pool-{number}", "normal", 8) for number in range(300)]
    assert set(served(Shares(), 300, 1, lambda _: lanes).values()) == {1}
