"""How often the statistics of lanes are written, and from when on they are old: they promise nothing then."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from contracts.records.status import LaneStatistics

LOOK_SECONDS_MIN: Final = 1.0
LANES_PER_SECOND: Final = 90
"""Lanes that are looked at in a second, so that many do not keep the broker busy: 900 are looked at each 10 s."""
UNCHANGED_SECONDS_MIN: Final = 15.0
"""A lane where nothing happens is written this often, so that an idle mesh does not wear out its disk; many lanes, once
in ten looks."""


def look_seconds(lanes: int) -> float:
    """How far apart a steward's looks at all lanes are."""
    return max(LOOK_SECONDS_MIN, lanes / LANES_PER_SECOND)


def unchanged_seconds_max(lanes: int) -> float:
    """How long the statistics of a lane may stand as they are while a steward looks after them."""
    return max(UNCHANGED_SECONDS_MIN, 10 * look_seconds(lanes))


def old_after_seconds(lanes: int) -> float:
    """From when on statistics are old: a steward that is only slow is given as long again, and some seconds."""
    return 2 * unchanged_seconds_max(lanes) + 5.0


def age_seconds(statistics: Iterable[LaneStatistics], at: datetime) -> float | None:
    """The age of the oldest statistics; None if there are none."""
    return max((max(0.0, (at - each.time).total_seconds()) for each in statistics), default=None)
