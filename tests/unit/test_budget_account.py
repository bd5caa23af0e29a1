"""A tenant's account: windows that end, reservations that end by themselves, and what is taken of a limit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.codec import decode, encode
from contracts.records.budgets import HELD_MAX, BudgetAccount
from mesh.budgets.account import (
    HELD_FOR,
    HELD_SLOT,
    REMEMBERED_FOR,
    RUNNING_FOR,
    at_least,
    empty,
    flush_of,
    hold,
    lacking,
    release,
    rolled,
    run,
    spend,
    taken_of,
    used_in,
)
from mesh.budgets.limits import Amount, Limit, begin_of, counted, end_of, limits_of, window_seconds
from mesh.configuration.mesh_toml import parse_configuration

AT = datetime(2026, 11, 27, 10, 2, 30, 500_000, tzinfo=UTC)
NIGHT = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
NEVER = AT + timedelta(days=60)


def tokens(account: BudgetAccount, at: datetime) -> tuple[int, int, int]:
    """Of the minute, the day and the month."""
    used = used_in(rolled(account, at))
    return used["minute"].tokens, used["day"].tokens, used["month"].tokens


def reserved(account: BudgetAccount, at: datetime) -> int:
    return taken_of(rolled(account, at))["minute"].tokens - tokens(account, at)[0]


def test_windows_are_those_of_the_calendar_by_utc() -> None:
    assert begin_of("minute", AT) == datetime(2026, 11, 27, 10, 2, tzinfo=UTC)
    assert [end_of(window, AT) for window in ("minute", "day", "month")] == [
        datetime(2026, 11, 27, 10, 3, tzinfo=UTC),
        datetime(2026, 11, 28, tzinfo=UTC),
        datetime(2026, 12, 1, tzinfo=UTC),
    ]
    assert {end_of(window, NIGHT) for window in ("minute", "day", "month")} == {datetime(2027, 1, 1, tzinfo=UTC)}
    assert [window_seconds("month", datetime(2026, month, 15, tzinfo=UTC)) // 86_400 for month in (2, 4, 12)] == [
        28,
        30,
        31,
    ]


def test_what_was_used_counts_until_its_window_ends() -> None:
    account = spend(spend(empty("acme", AT), AT, Amount(100, 7)), AT + timedelta(seconds=20), Amount(10))
    assert tokens(account, AT) == (110, 110, 110)
    assert tokens(account, AT + timedelta(minutes=1)) == (0, 110, 110)
    assert tokens(account, AT + timedelta(days=1)) == (0, 0, 110)
    assert tokens(account, NEVER) == (0, 0, 0)
    later = spend(account, AT + timedelta(days=1), Amount(5))
    assert tokens(later, AT + timedelta(days=1)) == (5, 5, 115)


def test_a_writer_whose_clock_is_ahead_does_not_empty_a_window() -> None:
    ahead = spend(empty("acme", AT), AT + timedelta(minutes=1), Amount(100))
    assert tokens(spend(ahead, AT, Amount(10)), AT) == (110, 110, 110)


def test_a_reservation_counts_until_it_is_released_and_no_longer_than_an_hour() -> None:
    account = hold(hold(empty("acme", AT), AT, Amount(100)), AT + timedelta(minutes=7), Amount(50))
    assert reserved(account, AT) == 150
    assert tokens(account, AT) == (0, 0, 0), "nothing of it is used"
    # Of the task of then, and not of the one that came later.
    assert reserved(release(account, AT, AT + timedelta(seconds=9), Amount(100)), AT) == 50
    assert reserved(release(account, AT, AT, Amount(10_000)), AT) == 50, "no more than there was"
    assert reserved(release(account, AT, AT + timedelta(minutes=9), Amount(120)), AT) == 30
    assert reserved(account, AT + HELD_FOR + timedelta(minutes=6)) == 0
    assert HELD_FOR / HELD_SLOT + 1 <= HELD_MAX, "there is room for all slots that count"


def test_what_turns_under_way_may_still_use_ends_by_itself_once_their_process_does_not_write_any_more() -> None:
    account = run(empty("acme", AT), AT, "a", Amount(20), 3)
    account = run(account, AT + timedelta(seconds=10), "b", Amount(1), 1)
    assert (tokens(account, AT)[0], reserved(account, AT)) == (0, 21)
    assert reserved(account, AT + RUNNING_FOR) == 1
    assert (flush_of(account, "a"), flush_of(account, "c")) == (3, 0)
    assert reserved(run(account, AT, "a", Amount(7), 4), AT) == 8, "what it says last holds"


def test_the_number_of_a_write_is_remembered_for_longer_than_its_turns_count() -> None:
    """Of a process that was not answered, and can't ask for minutes."""
    account = rolled(run(empty("acme", AT), AT, "a", Amount(20), 3), AT + 3 * RUNNING_FOR)
    assert (flush_of(account, "a"), reserved(account, AT)) == (3, 0)
    assert flush_of(rolled(account, AT + REMEMBERED_FOR), "a") == 0


def test_what_a_turn_was_seen_to_use_too_much_comes_off() -> None:
    account = spend(spend(empty("acme", AT), AT, Amount(100, 7)), AT, Amount(-30, -9))
    assert used_in(account)["day"] == Amount(70, 0), "never less than nothing"


def test_what_others_have_counted_raises_an_account_and_never_lowers_it() -> None:
    account = spend(empty("acme", AT), AT, Amount(100, 5))
    more = at_least(account, AT, {"day": Amount(90, 9), "month": Amount(500, 1)})
    assert tokens(more, AT) == (100, 100, 500)
    assert used_in(more)["day"].cost_micros == 9


def test_of_several_limits_without_room_the_one_that_frees_last_is_told() -> None:
    limits = (Limit("minute", "tokens", 100), Limit("day", "tokens", 1_000), Limit("day", "cost", 50))
    used = used_in(spend(empty("acme", AT), AT, Amount(100, 0)))
    assert lacking(limits, AT, used) == limits[0]
    assert lacking(limits, AT, used, Amount(0, 51)) == limits[2]
    assert lacking(limits, AT, used, Amount(901)) == limits[1]
    assert lacking(limits[1:], AT, used, Amount(900, 50)) is None, "the last token may be used"


def test_an_estimate_counts_in_limited_units_alone_and_for_no_more_than_a_limit() -> None:
    limits = (Limit("minute", "tokens", 100), Limit("day", "tokens", 1_000))
    assert counted(Amount(5_000, 7), limits) == Amount(100, 0)
    assert counted(Amount(50, 7), limits) == Amount(50, 0)
    assert counted(Amount(50, 7), ()) == Amount()


def test_limits_are_what_the_tenants_table_has() -> None:
    text = b'[tenants.default]\ntokens_per_day = 10\n[tenants.acme]\ncost_per_minute = 0.5\non_exhausted = "wait"\n'
    tenants = parse_configuration(text).tenants
    assert limits_of(tenants.of("other")) == (Limit("day", "tokens", 10),)
    assert [limit.name for limit in limits_of(tenants.of("acme"))] == ["cost-per-minute", "tokens-per-day"]
    assert limits_of(tenants.of("acme"))[0].most == 500_000
    assert limits_of(parse_configuration(b"").tenants.of("acme")) == ()


steps = st.lists(
    st.tuples(st.sampled_from(("hold", "release", "spend", "run")), st.integers(0, 100), st.integers(0, 3_000)),
    max_size=30,
)


@given(steps)
def test_no_account_is_ever_short_of_nothing_or_unreadable(taken: list[tuple[str, int, int]]) -> None:
    """Whatever is done, in whatever order and at whatever time: each part is at least 0, and the record is valid."""
    account = empty("acme", AT)
    for what, amount, seconds in taken:
        at = AT + timedelta(seconds=seconds)
        match what:
            case "hold":
                account = hold(rolled(account, at), at, Amount(amount, amount))
            case "release":
                account = release(rolled(account, at), at, at - timedelta(seconds=amount), Amount(amount, 2 * amount))
            case "spend":
                account = spend(rolled(account, at), at, Amount(amount - 50, 50 - amount))
            case _:
                account = run(rolled(account, at), at, f"w-{amount % 3}", Amount(amount), seconds)
        assert decode(encode(account), BudgetAccount) == account


@pytest.mark.parametrize("window", ["minute", "day", "month"])
def test_a_limit_says_how_it_is_called(window: str) -> None:
    assert Limit(window, "tokens", 5).told() == f"5 tokens in a {window}"  # type: ignore[arg-type]  # it is one
    assert Limit(window, "cost", 2_500_000).told() == f"a cost of 2.5 in a {window}"  # type: ignore[arg-type]
