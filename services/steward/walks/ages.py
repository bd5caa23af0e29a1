"""How old a message is for a walk: old enough, too young, or from a future that the broker's clock was in. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

FUTURE = timedelta(minutes=5)
"""What is stamped so far ahead was stored while the broker's clock was wrong. It is passed over: nobody may wait for
that time, and it must not keep those behind it."""


class Ages(NamedTuple):
    """Seen at `at`, what was stored by `cutoff` is old enough."""

    at: datetime
    cutoff: datetime

    def is_from_the_future(self, time: datetime) -> bool:
        """Whether it is passed over for the stamp that it has."""
        return time > self.at + FUTURE

    def overdue(self, time: datetime) -> timedelta:
        """For how long something has been old enough; nothing of what is too young."""
        return max(timedelta(), self.cutoff - time)

    def is_young(self, time: datetime) -> bool:
        """Whether a walk ends there, until later."""
        return time > self.cutoff and not self.is_from_the_future(time)


def ages(at: datetime, age: timedelta) -> Ages:
    """For a walk along what is at least so old."""
    return Ages(at, at - age)
