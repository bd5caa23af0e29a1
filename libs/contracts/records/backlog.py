"""What the stewards say of the backlog, in the bucket `lanes`: which lanes they order, and who moves messages."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from contracts.fields import Count, LaneName, Tenant, Time
from contracts.tasks import Priority

TENANTS_TOLD_MAX: Final = 256
"""Tenants of a lane that are named, those with the most first."""


class LaneBacklog(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A lane of which something waits in BACKLOG. Its order is the stewards': new tasks go by BACKLOG.

    `waiting`: messages of the lane in BACKLOG, of `tenants_waiting` tenants. `tenants`: how many each of them has, of
    at most 256, those with the most. `held_tenants`: those of them that get no place at present, however many are free:
    they are paused, have used up a budget, or as much of theirs runs as may; `held_waiting`: messages of all such
    tenants. `held`: only tenants have something there that may not go on at present; new tasks of others need not wait
    behind that, and go into TASKS.
    """

    pool: LaneName
    priority: Priority
    waiting: Count = 0
    tenants_waiting: Count = 0
    tenants: Annotated[dict[Tenant, Count], Meta(max_length=TENANTS_TOLD_MAX)] = {}
    held: bool = False
    held_tenants: Annotated[tuple[Tenant, ...], Meta(max_length=TENANTS_TOLD_MAX)] = ()
    held_waiting: Count = 0


class BacklogRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The lanes that the stewards order, in the bucket `lanes` under `_backlog`; none are left out.

    `mover`: the steward that moves messages. It writes the record once a second while there is any lane, by compare
    and set: one that stays as it is for 5 s is for another steward to take, and of 10 s says nothing to those who
    submit. Empty: it has stopped, and the record is for the next to take. `used_percent`: how much of BACKLOG is taken,
    of its messages or its bytes.
    """

    mover: str
    time: Time
    lanes: tuple[LaneBacklog, ...] = ()
    used_percent: Annotated[int, Meta(ge=0, le=100)] = 0
