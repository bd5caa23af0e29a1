"""Schedules at a fixed local time: once on the day when the clock goes back, whenever the broker gets to fire."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.triggers.local_times import comes_again

BERLIN = "Europe/Berlin"
FIRST, SECOND = "2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"
"""The clock goes from 03:00 back to 02:00 between them."""


def left_out(schedule: str, fired_at: str, zone: str | None = BERLIN, late_seconds: float = 0.01) -> bool:
    return comes_again(schedule, zone, datetime.fromisoformat(fired_at) + timedelta(seconds=late_seconds))


@pytest.mark.parametrize(
    ("schedule", "first", "second", "zone"),
    [
        ("0 30 2 * * *", FIRST, SECOND, BERLIN),
        ("0 0,30 2 * * SUN", FIRST, SECOND, BERLIN),
        ("0 30 1-3 25 10 ?", FIRST, SECOND, BERLIN),
        ("0 30 2/5 * Oct *", FIRST, SECOND, BERLIN),
        ("0 30 2 1 * sun", FIRST, SECOND, BERLIN),
        ("0 0 0 * * *", "2026-11-01T00:00:00-04:00", "2026-11-01T00:00:00-05:00", "America/Havana"),
        ("0 45 1 * * *", "2026-04-05T01:45:00+11:00", "2026-04-05T01:45:00+10:30", "Australia/Lord_Howe"),
    ],
)
def test_of_two_times_with_one_name_the_second_fires(schedule: str, first: str, second: str, zone: str) -> None:
    assert left_out(schedule, first, zone)
    assert not left_out(schedule, second, zone)


def test_a_firing_that_comes_late_is_left_out_only_while_its_namesake_is_to_come() -> None:
    assert left_out("0 30 2 * * *", FIRST, late_seconds=59 * 60)
    assert not left_out("0 30 2 * * *", FIRST, late_seconds=61 * 60)
    assert not left_out("0 30 2 * * *", FIRST, late_seconds=150 * 60)
    # Of the hour before, or of last Monday: neither comes again.
    assert not left_out("59 59 1 * * *", "2026-10-25T02:00:00+02:00")
    assert not left_out("0 30 2 * * MON", FIRST)


@pytest.mark.parametrize(
    ("schedule", "zone", "fired_at"),
    [
        ("0 30 * * * *", BERLIN, FIRST),
        ("0 30 */2 * * *", BERLIN, FIRST),
        ("0 30 2 * * *", None, "2026-10-25T02:30:00+00:00"),
        ("@daily", None, FIRST),
        ("0 30 3 * * *", BERLIN, "2026-10-25T03:30:00+01:00"),
        ("0 30 2 * * *", BERLIN, "2026-10-24T02:30:00+02:00"),
        # The clock goes forward: from 02:00 to 03:00.
        ("0 0 3 * * *", BERLIN, "2026-03-29T03:00:00+02:00"),
        ("0 30 1 * * *", BERLIN, "2026-03-29T01:30:00+01:00"),
        # What the broker reads otherwise, or not at all.
        ("0 30 2 * * *", "Mars/Olympus", FIRST),
        ("0 99 2 * * *", BERLIN, FIRST),
        ("0 30 two * * *", BERLIN, FIRST),
        ("0 30 2/0 * * *", BERLIN, FIRST),
    ],
)
def test_what_comes_once_is_never_left_out(schedule: str, zone: str | None, fired_at: str) -> None:
    assert not left_out(schedule, fired_at, zone)


@given(st.text(alphabet="0123456789*?,/-SUNmon ", max_size=40), st.text(max_size=30))
def test_no_schedule_and_no_zone_is_an_exception(schedule: str, zone: str) -> None:
    for each in (zone, BERLIN):
        assert left_out(schedule, FIRST, each) in (True, False)
