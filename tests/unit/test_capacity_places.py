"""Which pools a worker's places go to, and what their servers leave of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from contracts.records.backlog import BacklogRecord, LaneBacklog
from inference_worker.capacity.pool_places import PoolPlaces, check_places_of
from inference_worker.capacity.server import ServerCapacity
from inference_worker.capacity.shifting import CHANGE_PART, allotted, shares_of, shifted
from mesh.broker.shares import Share, Shares
from mesh.configuration.capacity_table import CapacitySettings
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.settings import Settings
from mesh.errors import SettingsError
from tests.unit.journals import START

SERVERS = """
[providers.a]
kind = "openai"
base_url = "http://127.0.0.1:1/v1"
[providers.b]
kind = "openai"
base_url = "http://127.0.0.1:2/v1"
[pools.default]
provider = "a"
model = "m"
fallbacks = [{ provider = "b", model = "m" }]
[pools.other]
provider = "a"
model = "n"
[pools.third]
"""


def settings(text: str = SERVERS, concurrency: int = 64) -> Settings:
    configuration = parse_configuration(text.encode())
    return replace(Settings(), configuration=configuration, worker_concurrency=concurrency)


def bears(provider: str, turns: int) -> ServerCapacity:
    """A server of so many places, as it is known."""
    return ServerCapacity(provider, CapacitySettings(signals="none", min=turns, max=turns), lambda: None)


def test_most_places_go_to_where_most_waits_and_half_of_a_fair_part_to_each() -> None:
    shares = shares_of({"a": 1.0, "b": 1.0}, {"a": 990, "b": 10})
    assert shares["a"] == pytest.approx(0.25 + 0.5 * 0.99)
    assert shares["b"] >= 0.25
    assert shares_of({"a": 1.0, "b": 1.0}, {"a": 0, "b": 10}) == {"b": pytest.approx(1.0)}
    assert shares_of({"a": 3.0, "b": 1.0}, {}) == {"a": pytest.approx(0.75), "b": pytest.approx(0.25)}
    weighted = shares_of({"a": 1.0, "b": 9.0}, {"a": 90, "b": 10})
    assert weighted["a"] == pytest.approx(0.05 + 0.25)


def test_shares_that_change_by_little_stay_and_those_of_other_pools_do_not() -> None:
    before = {"a": 0.5, "b": 0.5}
    near = {"a": 0.5 * (1 + 0.9 * CHANGE_PART), "b": 0.5 * (1 - 0.9 * CHANGE_PART)}
    assert shifted(before, near) == before
    assert shifted(before, {"a": 0.7, "b": 0.3}) == {"a": 0.7, "b": 0.3}
    assert shifted(before, {"a": 1.0}) == {"a": 1.0}


def test_whole_places_follow_shares_and_what_one_cant_take_goes_to_the_others() -> None:
    assert allotted(10, {"a": 0.8, "b": 0.2}, {"a": 10, "b": 10}) == {"a": 8, "b": 2}
    assert allotted(10, {"a": 0.8, "b": 0.2}, {"a": 3, "b": 10}) == {"a": 3, "b": 7}
    assert allotted(10, {"a": 1.0}, {"a": 4, "b": 10}) == {"a": 4, "b": 6}
    assert allotted(10, {}, {"a": 2}) == {"a": 2}


def test_free_places_go_by_the_weights_that_hold_and_to_none_without_room() -> None:
    weights = {"a": 3.0, "b": 1.0}
    shares, lanes = Shares(weights.__getitem__), [Share("a", "normal"), Share("b", "normal")]

    def given(turns: int, room: int = 1_000) -> Counter[str]:
        picked = Counter[str]()
        for _ in range(turns):
            for share in shares.picks(lanes, 1, lambda pool, _: pool != "a" or picked["a"] < room):
                shares.give(share)
                picked[share.pool] += 1
        return picked

    assert given(40) == {"a": 30, "b": 10}
    weights["b"] = 3.0
    assert given(40) == {"a": 20, "b": 20}
    assert given(40, room=5) == {"a": 5, "b": 35}


async def test_pools_of_one_server_share_what_it_bears_and_another_one_takes_over_when_it_is_down() -> None:
    servers = {"a": bears("a", 4), "b": bears("b", 2)}
    down: set[str] = set()
    places = PoolPlaces(settings(), lambda: servers, lambda provider: provider not in down)
    assert places.has_room("default", {"default": 3})
    assert not places.has_room("default", {"default": 3, "other": 1})
    assert not places.has_room("other", {"default": 4})
    assert places.has_room("third", {"default": 4, "third": 60})
    down.add("a")
    assert places.has_room("default", {"default": 1, "other": 4})
    assert not places.has_room("default", {"default": 2})
    # A probe of `a` needs a place.
    assert places.has_room("other", {})
    told = places.capacity()
    assert (told["default"].limit, told["other"].limit, "third" in told) == (2, 4, False)


async def test_places_that_are_kept_free_for_a_pool_are_nobody_elses() -> None:
    text = "[pools.default]\n[pools.urgent.places]\nmin = 3\n[pools.slow.places]\nmax = 2\n"
    places = PoolPlaces(settings(text, concurrency=8), dict, lambda _: True)
    assert places.has_room("default", {"default": 4})
    assert not places.has_room("default", {"default": 5})
    assert places.has_room("urgent", {"urgent": 7})
    assert not places.has_room("slow", {"slow": 2})


async def test_a_worker_that_serves_one_pool_of_servers_without_capacity_has_all_places_and_says_nothing() -> None:
    places = PoolPlaces(settings("[pools.default]\n", concurrency=8), dict, lambda _: True)
    assert places.has_room("default", {"default": 7})
    assert (places.places(), places.capacity()) == ({}, {})
    assert places.weight("default") == pytest.approx(1.0)


async def test_weights_follow_what_the_lanes_say_waits() -> None:
    places = PoolPlaces(settings("[pools.default]\n[pools.other]\n"), dict, lambda _: True)
    places.waiting("default", "TASKS/default-normal", 300)
    places.waiting("other", "TASKS/other-normal", 60)
    places.waiting("other", "TURNS/other-normal", 40)
    assert places.weight("default") / places.weight("other") == pytest.approx((0.25 + 0.375) / (0.25 + 0.125))
    assert sum(places.places().values()) == 64
    assert places.places()["default"] == 40


async def test_what_waits_behind_a_lane_counts_too() -> None:
    """A lane that the stewards order has some messages in TASKS, and thousands in BACKLOG."""
    lanes = [
        LaneBacklog(pool="default", priority="normal", waiting=290),
        LaneBacklog(pool="gone", priority="low", waiting=9),
    ]
    record = BacklogRecord(mover="s", time=START, lanes=tuple(lanes))
    places = PoolPlaces(settings("[pools.default]\n[pools.other]\n"), dict, lambda _: True, lambda: record)
    places.waiting("default", "TASKS/default-normal", 10)
    places.waiting("other", "TASKS/other-normal", 100)
    assert places.weight("default") / places.weight("other") == pytest.approx((0.25 + 0.375) / (0.25 + 0.125))


async def test_workers_share_a_server_alike_and_each_has_one_place_at_least() -> None:
    server = bears("a", 7)
    for workers, expected in ((1, [7]), (2, [4, 3]), (3, [3, 2, 2]), (9, [1] * 9)):
        limits = []
        for place in range(workers):
            server.shared(workers, place)
            limits.append(server.limit)
        assert limits == expected
    await asyncio.sleep(0)


async def test_few_places_beside_those_of_other_workers_hold_nothing_back() -> None:
    servers = {"a": bears("a", 4), "b": bears("b", 40)}
    places = PoolPlaces(settings(), lambda: servers, lambda _: True)
    assert places.holds("default")
    servers["a"].shared(2, 0)
    assert not places.holds("default")
    assert not places.holds("other")
    assert places.holds("third")
    servers["a"] = bears("a", 40)
    servers["a"].shared(2, 0)
    assert places.holds("default")


def test_more_kept_places_than_a_worker_has_are_refused_with_one_line() -> None:
    text = "[pools.default.places]\nmin = 3\n[pools.other.places]\nmin = 3\n"
    check_places_of(settings(text, concurrency=6))
    with pytest.raises(SettingsError, match=r"places\.min: 6 together, and MESH_WORKER_CONCURRENCY is 5"):
        check_places_of(settings(text, concurrency=5))
