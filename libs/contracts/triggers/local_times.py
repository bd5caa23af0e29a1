"""Schedules at a fixed local time, on the days when clocks are set. Pure.

The broker evaluates schedules (nats-server 2.15, `cron.go`): where the clock goes back it fires at both of the two
times with one name, where it goes forward it leaves out what the clock leaves out. After an outage it fires once, late.
Of two firings with one name the first is left out here, and only while the second is still to come: so nothing has to
be remembered, and one that is late is not lost.
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

LATE_MAX: Final = timedelta(hours=3)
"""No clock is set by more: what has fired longer ago has no namesake to come."""
_FIELDS: Final = 6
_MONTHS: Final = {name.lower(): number for number, name in enumerate(calendar.month_abbr) if name}
_WEEKDAYS: Final = {name: number for number, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}


class _Cron(NamedTuple):
    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    """Whether the day of the month or that of the week will do: neither is a star."""

    def matches(self, time: datetime) -> bool:
        day = time.day in self.days, (time.isoweekday() % 7) in self.weekdays
        return (
            time.second in self.seconds
            and time.minute in self.minutes
            and time.hour in self.hours
            and time.month in self.months
            and (any(day) if self.either_day else all(day))
        )


def comes_again(schedule: str, time_zone: str | None, fired_at: datetime) -> bool:
    """Whether a firing is the first of two with one local time, and the second is still to come.

    `fired_at` is when the broker stored it. Only of six fields whose hour is fixed: `*` and `*/2` go on through the
    hour that comes twice, as intervals do. False for a schedule or a zone that can't be read here.
    """
    fields = schedule.split()
    if time_zone is None or len(fields) != _FIELDS or fields[2].startswith(("*", "?")):
        return False
    try:
        zone = ZoneInfo(time_zone)
        cron = _parse(fields)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        return False
    second = fired_at.astimezone(UTC).replace(microsecond=0)
    if not _is_near_a_repeat(second, zone):
        return False
    for back in range(int(LATE_MAX.total_seconds())):
        local = (second - timedelta(seconds=back)).astimezone(zone)
        if cron.matches(local):
            again = local.replace(fold=1).astimezone(UTC)
            return local.fold == 0 and again > local.astimezone(UTC) and again > fired_at
    return False


def _is_near_a_repeat(time: datetime, zone: ZoneInfo) -> bool:
    """Whether the clock is set back soon, or has been: on all other days there is nothing to look for."""
    offsets = [(time + timedelta(hours=hours)).astimezone(zone).utcoffset() for hours in (-4, 4)]
    return offsets[0] != offsets[1]


def _parse(fields: list[str]) -> _Cron:
    """The fields as the broker reads them. Raises `ValueError`."""
    days, weekdays = fields[3], fields[5]
    return _Cron(
        _field(fields[0], 0, 59),
        _field(fields[1], 0, 59),
        _field(fields[2], 0, 23),
        _field(days, 1, 31),
        _field(fields[4], 1, 12, _MONTHS),
        _field(weekdays, 0, 6, _WEEKDAYS),
        either_day=not (_is_star(days) or _is_star(weekdays)),
    )


def _field(text: str, least: int, most: int, names: dict[str, int] | None = None) -> frozenset[int]:
    """`*`, `5`, `1-3`, `*/15`, `2/3` (to the end), several with commas between them."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        span, slash, step = part.partition("/")
        low, dash, high = span.partition("-")
        if low in ("*", "?"):
            first, last = least, most
        else:
            first = _number(low, names)
            last = _number(high, names) if dash else (most if slash else first)
        if not least <= first <= last <= most:
            raise ValueError(part)
        found |= set(range(first, last + 1, int(step) if slash else 1))
    return frozenset(found)


def _is_star(text: str) -> bool:
    """Whether a field of days leaves the other one alone: `*`, but no `*/2`."""
    parts = (part.partition("/") for part in text.split(","))
    return any(span[:1] in ("*", "?") and step in ("", "1") for span, _, step in parts)


def _number(text: str, names: dict[str, int] | None) -> int:
    number = (names or {}).get(text.lower())
    return int(text) if number is None else number
