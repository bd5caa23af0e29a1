"""When those come back whom a budget refused: no more in a minute than it has room for."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from mesh.budgets.limits import Limit, Window, begin_of, end_of
from mesh.budgets.returning import AHEAD_MAX, Returns

AT = datetime(2026, 11, 27, 10, 2, 30, tzinfo=UTC)
MINUTE = Limit("minute", "tokens", 1_000)


@pytest.mark.parametrize("sharers", [1, 2, 8])
def test_those_who_obey_are_all_accepted(sharers: int) -> None:
    """Many at once, refused by several processes that know nothing of each other."""
    processes = [Returns() for _ in range(sharers)]
    told = [processes[number % sharers].take("acme", MINUTE, 50, AT, sharers=sharers) for number in range(100)]
    by_minute = Counter(told)
    assert min(by_minute) == end_of("minute", AT)
    assert all(begin_of("minute", at) == at for at in by_minute)
    assert max(by_minute.values()) * 50 <= MINUTE.most
    assert max(by_minute.values()) * 50 > MINUTE.most * 0.7, "nor is much of it left"


def test_what_is_reserved_already_is_promised_to_nobody() -> None:
    returns = Returns()
    told = Counter(returns.take("acme", MINUTE, 100, AT, reserved=700) for _ in range(10))
    assert [told[end_of("minute", AT) + timedelta(minutes=later)] for later in (0, 1)] == [1, 8]


def test_one_who_wants_all_that_there_is_gets_a_minute_of_its_own() -> None:
    returns = Returns()
    told = [returns.take("acme", MINUTE, 1_000, AT) for _ in range(3)]
    assert told == [end_of("minute", AT) + timedelta(minutes=later) for later in range(3)]


def test_one_who_wants_more_than_a_process_may_promise_is_told_the_next_minute_and_others_leave_room() -> None:
    processes = [Returns(lambda: 0.99) for _ in range(4)]
    told = Counter(each.take("acme", MINUTE, 500, AT, sharers=4) for each in processes for _ in range(5))
    assert told[end_of("minute", AT)] == 4, "one of each: it may be the only one"
    assert max(told) >= end_of("minute", AT) + timedelta(minutes=9)


def test_nobody_is_sent_away_for_too_long() -> None:
    returns = Returns()
    latest = max(returns.take("acme", MINUTE, 1_000, AT) for _ in range(1_000))
    assert latest <= end_of("minute", AT) + AHEAD_MAX
    # A minute later nobody has to wait longer for what was promised then.
    later = AT + 2 * AHEAD_MAX
    assert returns.take("acme", MINUTE, 1_000, later) == end_of("minute", later)


@pytest.mark.parametrize("window", ["day", "month"])
def test_a_day_and_a_month_free_at_their_end_for_all(window: Window) -> None:
    returns = Returns()
    told = {returns.take("acme", Limit(window, "tokens", 10), 10, AT) for _ in range(5)}
    assert told == {end_of(window, AT)}


def test_tenants_and_limits_have_nothing_to_do_with_each_other() -> None:
    returns = Returns()
    cost = Limit("minute", "cost", 5)
    for tenant, limit in (("acme", MINUTE), ("beta", MINUTE), ("acme", cost)):
        assert returns.take(tenant, limit, limit.most, AT) == end_of("minute", AT)
