"""A tenant's bound in a lane, without a question to the broker for each task."""

from __future__ import annotations

import random

import pytest

from contracts.subjects import LaneSubject
from mesh.admission.counted_rooms import COUNTED_SECONDS, SHARE, CountedRooms

LANE = LaneSubject("default", "normal", "acme")


@pytest.mark.parametrize("ingresses", [1, 3, 8])
@pytest.mark.parametrize("bound", [1, 7, 100, 4_000])
def test_one_ingress_keeps_to_the_bound_and_several_do_almost(ingresses: int, bound: int) -> None:
    chance = random.Random(bound * ingresses)
    rooms = [CountedRooms() for _ in range(ingresses)]
    waiting = asked = refused = 0
    while refused < 50:
        one = chance.choice(rooms)
        if not one.takes(LANE, bound, 0.0):
            asked += 1
            if not one.count(LANE, bound, waiting, 0.0):
                refused += 1
                continue
        waiting += 1
    assert bound <= waiting <= bound + (ingresses - 1) * bound / SHARE
    assert asked - refused <= min(bound, 8 * SHARE) * ingresses


def test_a_count_is_good_for_a_moment_and_for_its_lane_and_bound_alone() -> None:
    rooms = CountedRooms()
    assert not rooms.takes(LANE, 100, 0.0)
    assert rooms.count(LANE, 100, 0, 0.0)
    assert rooms.takes(LANE, 100, COUNTED_SECONDS / 2)
    assert not rooms.takes(LANE._replace(tenant="other"), 100, 0.0)
    assert not rooms.takes(LANE, 50, 0.0)
    assert not rooms.takes(LANE, 100, COUNTED_SECONDS)
