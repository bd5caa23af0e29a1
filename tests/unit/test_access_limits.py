"""Callers are held to their limits, wrong credentials are slowed down, and the right ones get in all the same."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from litestar.types import HTTPScope

from contracts.errors import TaskmeshError
from mesh.access.callers import ANYBODY, Door, Identity, open_door
from mesh.access.limits import (
    CALLERS_MAX,
    FAILURES_PER_MINUTE,
    KNOWN_MAX,
    REQUESTS_PER_SECOND,
    Limits,
    Rates,
    Remembered,
    limited,
    limits_of,
)
from mesh.configuration.access_tables import AuthConfiguration
from mesh.errors import BrokerUnavailable
from mesh.serving.http import RequestRefused

HOME = "203.0.113.7"


class Clock:
    """A time that stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


class Keys:
    """A door that lets in who shows `right…`, and counts what it had to look at."""

    def __init__(self) -> None:
        self.looked_at = 0
        self.right = {b"right"}
        self.is_away = False

    async def __call__(self, scope: HTTPScope) -> Identity:
        self.looked_at += 1
        shown = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        if self.is_away:
            raise BrokerUnavailable("it is away")
        if shown not in self.right:
            raise RequestRefused("unauthorized", "not right")
        return Identity(f"key:{shown.decode()}", "acme", frozenset())


def asked(shown: bytes | None, source: str = HOME, query: bytes = b"") -> HTTPScope:
    """The head of a request."""
    headers = [(b"authorization", shown)] if shown is not None else []
    scope: dict[str, Any] = {"client": (source, 1), "headers": headers, "query_string": query}
    return cast("HTTPScope", scope)


def auth(**keys: object) -> AuthConfiguration:
    """A table `[auth]`."""
    return AuthConfiguration(**keys)  # type: ignore[arg-type]  # of any type, by name


async def code_of(door: Door, scope: HTTPScope) -> str:
    """What a door says to a request: `ok`, or the code of the refusal."""
    try:
        await door(scope)
    except TaskmeshError as error:
        return error.code
    return "ok"


def test_so_many_come_at_once_and_then_at_their_pace() -> None:
    rates = Rates(10.0, 3)
    assert [rates.take("a", 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    wait_seconds = rates.take("a", 0.0)
    assert wait_seconds == pytest.approx(0.1)
    assert rates.take("a", 0.09) > 0
    # What was told is true, and who comes too early is not punished for it.
    assert rates.take("a", wait_seconds) == 0.0
    assert rates.take("b", 0.0) == 0.0
    assert [rates.take("a", 100.0) for _ in range(4)][-2:] == [0.0, pytest.approx(0.1)]


def test_the_tables_do_not_grow_beyond_their_size() -> None:
    rates = Rates(1.0, 1)
    for number in range(CALLERS_MAX + 100):
        rates.take(str(number), 0.0)
        if number % 100 == 0:
            rates.take("busy", 0.0)
    assert len(rates) == CALLERS_MAX
    # Whoever is at it all the time is not forgotten for those that come once.
    assert rates.take("busy", 0.0) > 0
    known = Remembered()
    digests = [known.digest(str(number).encode()) for number in range(KNOWN_MAX + 1)]
    for digest in digests:
        known.add(digest)
    assert not known.has(digests[0])
    assert known.has(digests[1])


async def test_nothing_holds_in_mode_open_that_was_not_asked_for() -> None:
    clock = Clock()
    door = limited(open_door, limits_of(open_door, auth()))
    assert {await code_of(door, asked(None)) for _ in range(10_000)} == {"ok"}
    asked_for = Limits(auth(requests_per_second=1, burst=2), is_open=True, clock=clock)
    door = limited(open_door, asked_for)
    assert [await code_of(door, asked(None)) for _ in range(3)] == ["ok", "ok", "rate-limited"]
    # Nobody is known by name there: it goes by the source.
    assert await code_of(door, asked(None, "203.0.113.8")) == "ok"


async def test_known_callers_are_counted_by_name_wherever_they_come_from() -> None:
    keys, clock = Keys(), Clock()
    keys.right = {b"one", b"two"}
    door = limited(keys, Limits(auth(requests_per_second=1, burst=2), is_open=False, clock=clock))
    assert [await code_of(door, asked(b"one")) for _ in range(2)] == ["ok", "ok"]
    assert await code_of(door, asked(b"one", "203.0.113.8")) == "rate-limited"
    assert await code_of(door, asked(b"two")) == "ok"
    clock.at += 1
    assert await code_of(door, asked(b"one", "203.0.113.8")) == "ok"


async def test_a_refusal_says_when_to_come_again_and_that_is_true() -> None:
    keys, clock = Keys(), Clock()
    door = limited(keys, Limits(auth(requests_per_second=0.5, burst=1), is_open=False, clock=clock))
    await door(asked(b"right"))
    with pytest.raises(RequestRefused) as refused:
        await door(asked(b"right"))
    assert refused.value.retry_after_seconds == pytest.approx(2.0)
    clock.at += refused.value.retry_after_seconds or 0
    await door(asked(b"right"))


async def test_wrong_credentials_are_refused_unseen_after_so_many() -> None:
    keys, clock = Keys(), Clock()
    door = limited(keys, Limits(auth(failures_per_minute=6), is_open=False, clock=clock))
    codes = [await code_of(door, asked(b"wrong %d" % number)) for number in range(10)]
    assert codes == ["unauthorized"] * 6 + ["rate-limited"] * 4
    assert keys.looked_at == 6
    # From elsewhere they are as they were.
    assert await code_of(door, asked(b"wrong", "203.0.113.8")) == "unauthorized"
    clock.at += 10
    codes = [await code_of(door, asked(b"wrong %d" % number)) for number in range(10)]
    assert codes == ["unauthorized"] + ["rate-limited"] * 9


async def test_addresses_of_one_network_share_their_tries() -> None:
    door = limited(Keys(), Limits(auth(failures_per_minute=2), is_open=False, clock=Clock()))
    codes = [await code_of(door, asked(b"wrong", f"2001:db8::{number}")) for number in range(1, 5)]
    assert codes == ["unauthorized", "unauthorized", "rate-limited", "rate-limited"]
    assert await code_of(door, asked(b"wrong", "2001:db8:0:1::1")) == "unauthorized"


async def test_a_neighbour_with_the_right_key_is_not_locked_out() -> None:
    keys, clock = Keys(), Clock()
    keys.right = {b"right", b"new"}
    door = limited(keys, Limits(auth(failures_per_minute=6), is_open=False, clock=clock))
    assert await code_of(door, asked(b"right")) == "ok"
    for number in range(100):
        await code_of(door, asked(b"wrong %d" % number))
    # The one that was right before: at any time.
    assert {await code_of(door, asked(b"right")) for _ in range(100)} == {"ok"}
    # One that was not seen yet: when it comes again after the time that it is told.
    with pytest.raises(RequestRefused) as refused:
        await door(asked(b"new"))
    clock.at += refused.value.retry_after_seconds or 0
    assert await code_of(door, asked(b"new")) == "ok"
    assert {await code_of(door, asked(b"new")) for _ in range(100)} == {"ok"}


async def test_a_key_that_is_not_right_any_more_is_one_of_the_wrong() -> None:
    keys, clock = Keys(), Clock()
    door = limited(keys, Limits(auth(failures_per_minute=2), is_open=False, clock=clock))
    await door(asked(b"right"))
    keys.right = set()
    assert [await code_of(door, asked(b"right")) for _ in range(4)] == [*["unauthorized"] * 2, *["rate-limited"] * 2]


async def test_right_credentials_and_none_and_a_broker_that_is_away_cost_no_try() -> None:
    keys = Keys()
    door = limited(keys, Limits(auth(failures_per_minute=2, requests_per_second=0), is_open=False, clock=Clock()))
    assert {await code_of(door, asked(b"right")) for _ in range(50)} == {"ok"}
    assert {await code_of(door, asked(None)) for _ in range(50)} == {"unauthorized"}
    keys.is_away = True
    assert {await code_of(door, asked(b"other")) for _ in range(50)} == {"broker-unavailable"}
    keys.is_away = False
    assert await code_of(door, asked(b"wrong")) == "unauthorized"


async def test_many_at_once_have_no_more_tries_than_one_after_another() -> None:
    keys = Keys()
    looking = asyncio.Event()

    async def slow(scope: HTTPScope) -> Identity:
        await looking.wait()
        return await keys(scope)

    door = limited(slow, Limits(auth(failures_per_minute=5), is_open=False, clock=Clock()))
    tries = [asyncio.create_task(code_of(door, asked(b"wrong %d" % number))) for number in range(50)]
    await asyncio.sleep(0)
    looking.set()
    codes = await asyncio.gather(*tries)
    assert (codes.count("unauthorized"), codes.count("rate-limited")) == (5, 45)


async def test_many_clients_of_one_key_come_at_once_to_a_service_that_has_just_started() -> None:
    keys, looking = Keys(), asyncio.Event()

    async def slow(scope: HTTPScope) -> Identity:
        await looking.wait()
        return await keys(scope)

    door = limited(slow, Limits(auth(), is_open=False))
    asking = [asyncio.create_task(code_of(door, asked(b"right"))) for _ in range(int(3 * FAILURES_PER_MINUTE))]
    await asyncio.sleep(0)
    looking.set()
    assert {*await asyncio.gather(*asking)} == {"ok"}


async def test_many_clients_of_one_new_key_wait_once_for_a_broker_that_is_away() -> None:
    """Each for itself, and one after the other, they would wait for as long as the broker is away."""
    keys, looking = Keys(), asyncio.Event()
    keys.is_away = True

    async def slow(scope: HTTPScope) -> Identity:
        await looking.wait()
        return await keys(scope)

    door = limited(slow, Limits(auth(), is_open=False))
    asking = [asyncio.create_task(code_of(door, asked(b"right"))) for _ in range(20)]
    await asyncio.sleep(0)
    looking.set()
    assert ({*await asyncio.gather(*asking)}, keys.looked_at) == ({"broker-unavailable"}, 1)
    keys.is_away = False
    assert await code_of(door, asked(b"right")) == "ok"


async def test_a_link_is_one_of_the_credentials() -> None:
    door = limited(Keys(), Limits(auth(failures_per_minute=2), is_open=False, clock=Clock()))
    codes = [await code_of(door, asked(None, query=b"after=%d&link=x%d" % (each, each))) for each in range(4)]
    assert codes == ["unauthorized", "unauthorized", "rate-limited", "rate-limited"]


async def test_limits_change_while_a_process_runs_and_counts_go_on() -> None:
    keys, clock = Keys(), Clock()
    limits = Limits(auth(requests_per_second=1, burst=1, failures_per_minute=1), is_open=False, clock=clock)
    door = limited(keys, limits)
    assert [await code_of(door, asked(b"right")) for _ in range(2)] == ["ok", "rate-limited"]
    limits.configure(auth(requests_per_second=1, burst=1, failures_per_minute=9))
    assert await code_of(door, asked(b"right")) == "rate-limited"
    limits.configure(auth(requests_per_second=0))
    assert {await code_of(door, asked(b"right")) for _ in range(50)} == {"ok"}


async def test_there_are_limits_where_nobody_has_set_any() -> None:
    keys, clock = Keys(), Clock()
    door = limited(keys, Limits(auth(), is_open=False, clock=clock))
    codes = [await code_of(door, asked(b"right")) for _ in range(int(REQUESTS_PER_SECOND * 5) + 1)]
    assert codes.count("rate-limited") == 1
    wrong = [await code_of(door, asked(b"wrong %d" % number)) for number in range(int(FAILURES_PER_MINUTE) + 1)]
    assert wrong.count("rate-limited") == 1
    assert ANYBODY.name == "http"
