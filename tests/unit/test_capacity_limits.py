"""Limits that follow a model server, and those that are found by trying, against queues in simulated time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from inference_worker.capacity.followed_limit import CACHE_TARGET, CUT_SECONDS, START, FollowedLimit
from inference_worker.capacity.probed_limit import ProbedLimit
from inference_worker.capacity.signals import ServerLoad
from tests.unit.model_queues import batching, follow, probe, shared_beyond

LIMIT_MAX = 64
SERVERS: dict[str, Callable[[int], dict[str, Any]]] = {
    "slots, and a queue": lambda room: {"slots": room},
    "all at once, ever slower": lambda room: {"speed": shared_beyond(room)},
    "refuses what is too much": lambda room: {"refuses_beyond": room},
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("room", [1, 3, 8, 20, 40])
def test_without_signals_the_limit_of_a_server_is_found_within_a_fifth(server: str, room: int) -> None:
    # Half of the time is for finding it: a server of one place takes its time for each turn.
    seconds = max(300.0, 4_000.0 / room)
    tried = probe(ProbedLimit(1, LIMIT_MAX), seconds, **SERVERS[server](room))
    assert abs(tried.limit_from(seconds / 2) - room) <= 0.2 * room, tried.limits[-1]


def test_a_server_that_refuses_is_asked_in_vain_a_few_times_and_no_more() -> None:
    tried = probe(ProbedLimit(1, LIMIT_MAX), 300.0, refuses_beyond=20)
    assert tried.refused <= 10


@pytest.mark.parametrize("noise", [0.0, 0.6])
def test_a_server_without_a_limit_gets_as_many_as_there_may_be_however_its_times_vary(noise: float) -> None:
    tried = probe(ProbedLimit(1, LIMIT_MAX), 300.0, noise=noise)
    assert tried.limit_from(150.0) >= 0.8 * LIMIT_MAX


def test_a_batching_server_that_slows_down_a_little_gets_its_whole_batch() -> None:
    tried = probe(ProbedLimit(1, 256), 300.0, speed=batching(64, part_lost_each_doubling=0.1))
    assert tried.limit_from(150.0) >= 0.8 * LIMIT_MAX


def test_little_to_do_shows_nothing_and_moves_nothing() -> None:
    limit = ProbedLimit(1, LIMIT_MAX)
    tried = probe(limit, 300.0, slots=2, demand=lambda _: 2)
    assert {at for _, at in tried.limits} == {limit.limit}


def test_one_refusal_halves_at_most_and_a_reason_against_growth_holds_it() -> None:
    limit = ProbedLimit(1, LIMIT_MAX)
    limit.may_grow = False
    assert max(at for _, at in probe(limit, 60.0).limits) == limit.limit
    before = limit.limit
    limit.refused(0, 100.0)
    limit.refused(0, 100.5)
    assert limit.limit == before // 2


LOADS: dict[str, dict[str, Any]] = {
    "all alike": {"cache_tokens": 20_000, "prompt_tokens": (200, 200), "output_tokens": (300, 300)},
    "long answers": {"cache_tokens": 20_000, "prompt_tokens": (50, 50), "output_tokens": (600, 600)},
    "mixed": {"cache_tokens": 20_000, "prompt_tokens": (20, 1000), "output_tokens": (20, 1000)},
}


class Constant(FollowedLimit):
    """As a worker without capacity: so many places, whatever the server says."""

    def read(self, load: ServerLoad, in_flight: int, at: float) -> None:
        """Nothing follows."""
        self._limit = float(LIMIT_MAX)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("load", LOADS)
def test_a_cache_that_fills_is_used_and_nothing_is_taken_back(load: str, workers: int) -> None:
    tried = follow([FollowedLimit(1, LIMIT_MAX) for _ in range(workers)], 200.0, **LOADS[load])
    assert tried.taken_back == 0
    assert tried.waiting_mean < 1
    # In turns that begin and grow together it is full at their end alone.
    assert tried.cache_most >= CACHE_TARGET - 0.1


@pytest.mark.parametrize("load", LOADS)
def test_a_constant_number_of_places_has_much_taken_back_there(load: str) -> None:
    assert follow([Constant(1, LIMIT_MAX)], 200.0, **LOADS[load]).taken_back > 100


def test_a_cache_that_cant_hold_two_of_the_longest_gets_few_and_least_is_taken_back() -> None:
    small: dict[str, Any] = {"cache_tokens": 3_000, "prompt_tokens": (100, 900), "output_tokens": (20, 1000)}
    mine, constant = follow([FollowedLimit(1, LIMIT_MAX)], 200.0, **small), follow([Constant(1, 64)], 200.0, **small)
    assert mine.taken_back < constant.taken_back / 2


def test_slots_are_the_limit_within_what_is_set_and_it_does_not_grow_beyond() -> None:
    limit = FollowedLimit(2, 6)
    assert limit.limit == 6  # START, bounded
    for slots, expected in ((32, 6), (1, 2), (4, 4)):
        limit.read(ServerLoad(running=1, slots=slots), 1, 0.0)
        assert limit.limit == expected
    limit.began(4, 1)
    limit.ended(1)
    assert limit.limit == 4


def test_what_waits_for_a_moment_is_no_queue_and_what_goes_on_waiting_is() -> None:
    limit = FollowedLimit(1, LIMIT_MAX)
    limit.read(ServerLoad(running=5, waiting=3), 8, 0.0)
    limit.read(ServerLoad(running=8), 8, 1.0)
    assert limit.limit == START
    limit.read(ServerLoad(running=5, waiting=3), 8, 2.0)
    limit.read(ServerLoad(running=5, waiting=3), 8, 3.0)
    assert (limit.limit, limit.why) == (5, "3 wait at the server")


def test_a_full_cache_cuts_once_until_turns_have_had_time_to_end() -> None:
    limit = FollowedLimit(1, LIMIT_MAX)
    limit.read(ServerLoad(running=8, cache=0.96), 8, 0.0)
    assert limit.limit == 6
    limit.read(ServerLoad(running=8, cache=0.99), 8, CUT_SECONDS / 2)
    assert limit.limit == 6
    limit.read(ServerLoad(running=6, cache=0.92), 6, CUT_SECONDS)
    assert limit.limit == 5


def test_a_cut_is_a_part_of_what_this_mesh_has_whatever_others_have_there() -> None:
    limit = FollowedLimit(1, LIMIT_MAX)
    limit.read(ServerLoad(running=100, waiting=100, cache=1.0), 8, 0.0)
    assert limit.limit == 4
    # What was begun before has yet to end.
    limit.read(ServerLoad(running=100, waiting=100, cache=1.0), 8, CUT_SECONDS)
    assert limit.limit == 4
    limit.read(ServerLoad(running=100, waiting=100, cache=1.0), 4, CUT_SECONDS)
    assert limit.limit <= 2
    limit.read(ServerLoad(running=60, cache=0.6), 2, 4.0)
    # 80 fit, and 58 of others are there: what is left is the ceiling.
    for _ in range(200):
        limit.began(64, 1)
        limit.ended(1)
    assert limit.limit <= 22


def test_what_nobody_sees_does_not_grow() -> None:
    limit = FollowedLimit(1, LIMIT_MAX)
    limit.read(ServerLoad(running=START), START, 0.0)
    limit.began(START, 1)
    limit.silent()
    limit.began(START, 1)
    limit.ended(1)
    assert limit.limit == START
    limit.read(ServerLoad(running=START), START, 1.0)
    limit.began(START, 1)
    limit.ended(1)
    assert limit.limit == START + 1


@pytest.mark.parametrize("load", LOADS)
def test_one_that_begins_with_all_places_comes_down_to_what_the_cache_bears(load: str) -> None:
    """Its first wave is as it would be without a limit; from then on nothing is taken back."""
    limit = FollowedLimit(1, 10_000)
    limit.widen(LIMIT_MAX)
    assert limit.limit == LIMIT_MAX
    tried = follow([limit], 200.0, **LOADS[load])
    assert tried.taken_back <= follow([Constant(1, LIMIT_MAX)], 200.0, **LOADS[load]).taken_back / 3
    again = FollowedLimit(1, 10_000)
    again.widen(LIMIT_MAX)
    assert follow([again], 400.0, **LOADS[load]).taken_back == tried.taken_back
    assert tried.cache_most >= CACHE_TARGET - 0.1
    limit.widen(2 * LIMIT_MAX)
    assert limit.limit < LIMIT_MAX  # Another worker makes no more room.


def test_one_that_begins_with_all_places_never_has_more() -> None:
    limit = FollowedLimit(1, 10_000)
    limit.widen(LIMIT_MAX)
    limit.read(ServerLoad(running=8), 8, 0.0)
    for _ in range(100):
        limit.began(LIMIT_MAX, 1)
        limit.ended(1)
    assert limit.limit == LIMIT_MAX
    limit.widen(2 * LIMIT_MAX)
    assert limit.limit == 2 * LIMIT_MAX
    limit.read(ServerLoad(running=8, waiting=8), 16, 1.0)
    limit.read(ServerLoad(running=8, waiting=8), 16, 2.0)
    assert limit.limit == 8


def test_it_grows_only_by_turns_that_end_with_all_places_taken() -> None:
    limit = FollowedLimit(1, LIMIT_MAX)
    limit.began(2, 1)
    limit.ended(1)
    assert limit.limit == START
    limit.began(START, 1)
    for _ in range(3 * START):
        limit.ended(1)
    assert limit.limit == 2 * START
