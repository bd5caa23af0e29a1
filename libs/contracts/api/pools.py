"""The load of a pool, for whoever starts and stops its workers; and how all pools stand, for whoever uses them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.fields import Count, LaneName, Seconds, Tenant, Time
from contracts.records.providers import BreakerState
from contracts.records.status import EtaBasis, Rate
from contracts.tasks import Priority


class LaneLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A lane of a pool: `waiting` turns that no worker ever had, `running` ones that one has or has given back.

    `held`: so many of those that wait get no place, however many are free, and want no worker: people have paused them,
    or their tenant has used up a budget, or has as many running as may.
    """

    priority: Priority
    waiting: Count
    running: Count
    held: Count


class PoolLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The load of a pool at `time`. `waiting` and `running` are those of its lanes together.

    `workers` live and do not drain, and have `places` for turns between them, as far as the pool's model servers bear
    them. So many as `wanted_workers` would have a place for each turn that waits or runs, but for those that are held,
    if the servers bear it: 0 while there is none.
    """

    pool: LaneName
    time: Time
    waiting: Count
    running: Count
    workers: Count
    places: Count
    wanted_workers: Count
    lanes: list[LaneLoad]


class LaneState(msgspec.Struct, frozen=True, kw_only=True):
    """A lane of a pool: what waits and runs there, how fast it goes, and when a task that comes now begins.

    Rates and waits are those of the lane's statistics, `eta_seconds` and `basis` as in the answer to a submission. What
    was not measured, or is old, is null.
    """

    priority: Priority
    depth: Count | None
    waiting_tasks: Count | None
    running: Count | None
    drain_per_second: Rate | None
    tasks_per_second: Rate | None
    wait_seconds_p50: Seconds | None
    wait_seconds_p95: Seconds | None
    wait_seconds_p99: Seconds | None
    eta_seconds: Seconds | None
    basis: EtaBasis


class ProviderState(msgspec.Struct, frozen=True, kw_only=True):
    """A provider of a pool: its breaker, since when that stands so, and when it is tried next.

    `room`: the part of its pace that is left now; null of one without a pace, unless it has said to come later.
    """

    provider: str
    breaker: BreakerState
    since: Time | None
    retry_at: Time | None
    room: Annotated[float, Meta(ge=0, le=1)] | None


class TenantShare(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's part, from 0 to 1, of the tokens that were used in a pool of late, by all tenants, named or not.

    And how many tasks of it began a second, and how many tokens its turns used. While the steward counts no tokens the
    share is of the tasks that began, of the tenants that are named.
    """

    tenant: Tenant
    share: Annotated[float, Meta(ge=0, le=1)]
    tasks_per_second: Rate
    tokens_per_second: Rate


class PoolState(msgspec.Struct, frozen=True, kw_only=True):
    """How a pool stands. `depth` and `running` are those of its lanes together.

    `workers` live and do not drain, and have `places` between them, of which `free` ones would take a task at once.
    `capacity`: how many turns at once the pool's servers bear, of all workers; null where nobody measures it.
    `tenants`: those that used the most tokens, the most first; who may see one tenant alone gets that one.
    """

    pool: LaneName
    depth: Count | None
    running: Count | None
    workers: Count | None
    places: Count | None
    free: Count | None
    capacity: Count | None
    lanes: list[LaneState]
    providers: list[ProviderState]
    tenants: list[TenantShare]


class PoolList(msgspec.Struct, frozen=True, kw_only=True):
    """All pools that the caller may use, by name, as they were known to stand at `time`."""

    time: Time
    pools: list[PoolState]
