"""The load of a pool, for whoever starts and stops its workers."""

from __future__ import annotations

import msgspec

from contracts.fields import Count, LaneName, Time
from contracts.tasks import Priority


class LaneLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A lane of a pool: `waiting` turns that no worker ever had, `running` ones that one has or has given back."""

    priority: Priority
    waiting: Count
    running: Count


class PoolLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The load of a pool at `time`. `waiting` and `running` are those of its lanes together.

    `workers` live and do not drain, and have `places` for turns between them. So many as `wanted_workers` would have a
    place for each turn that waits or runs: 0 while there is none.
    """

    pool: LaneName
    time: Time
    waiting: Count
    running: Count
    workers: Count
    places: Count
    wanted_workers: Count
    lanes: list[LaneLoad]
