"""How the pools of a mesh stand, of what one process knows of them. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from contracts.api.pools import LaneState, PoolState, ProviderState, TenantShare
from contracts.records.providers import ProviderRecord
from contracts.records.status import EtaBasis, LaneStatistics, QueueState, WorkerRecord
from contracts.records.valves import Valve
from contracts.subjects import PRIORITIES
from mesh.fleet.eta import PoolView, pool_view, queue_state, without_eta
from mesh.fleet.findings import Fleet
from mesh.fleet.statistics import old_after_seconds

Place = Callable[[str, str], QueueState]
"""The place of a task that comes now, by pool and priority."""


def pool_state(
    pool: str,
    view: PoolView,
    place: Place,
    workers: Iterable[WorkerRecord] | None,
    providers: Iterable[ProviderState],
    tenant: str | None = None,
) -> PoolState:
    """A pool. `workers`: those that live; None where nobody knows. `tenant`: the only one that may be seen."""
    serving = None if workers is None else [each for each in workers if pool in each.pools and not each.draining]
    return PoolState(
        pool=pool,
        depth=view.depth if view.lanes else None,
        running=sum(lane.running for lane in view.lanes.values()) if view.lanes else None,
        workers=None if serving is None else len(serving),
        places=view.places,
        free=view.free,
        capacity=max((each.capacity[pool].of_all for each in serving or () if pool in each.capacity), default=None),
        lanes=[_lane(pool, priority, view, place) for priority in PRIORITIES],
        providers=list(providers),
        tenants=[each for each in _tenants(view) if tenant in (None, each.tenant)],
    )


def standing(fleet: Fleet, pool: str, valves: Iterable[Valve] = ()) -> dict[str, EtaBasis]:
    """The lanes of a pool, by priority, from which nobody takes anything at present, and why.

    `valves`: what is paused, of who does not look at that nearer by.
    """
    if not fleet.serves_pool(pool):
        return dict.fromkeys(PRIORITIES, "no-worker")
    queues = {priority: fleet.queue(pool, priority) for priority in PRIORITIES}
    paused = {priority for priority, queue in queues.items() if queue is not None and queue.paused_seconds}
    shut = {(valve.kind, valve.name) for valve in valves}
    paused |= {each for each in PRIORITIES if {("pool", pool), ("lane", f"{pool}.{each}")} & shut}
    return dict.fromkeys(paused, "paused")


def pools_of(fleet: Fleet, providers_of: Callable[[str], Iterable[str]]) -> list[PoolState]:
    """All pools of a mesh, by one look at it: those that are configured, and those that have lanes with statistics."""
    counts = fleet.statistics if fleet.has("steward") else ()
    old = old_after_seconds(max(1, len(fleet.pools)) * len(PRIORITIES))
    fresh = [lane for lane in counts if (fleet.at - lane.time).total_seconds() <= old]
    workers = [member.record for member in fleet.alive if member.record is not None]
    records = {record.provider: record for record in fleet.providers}
    names = sorted({*fleet.pools, *(lane.pool for lane in fresh)})
    return [_pool_of(fleet, name, fresh, workers, provider_states(providers_of(name), records)) for name in names]


def _pool_of(
    fleet: Fleet,
    pool: str,
    fresh: Iterable[LaneStatistics],
    workers: list[WorkerRecord],
    providers: list[ProviderState],
) -> PoolState:
    view, stands = pool_view(pool, fresh, workers), standing(fleet, pool, fleet.valves)
    paused = {valve.name for valve in fleet.valves if valve.kind == "provider"}
    if providers and all(provider.provider in paused for provider in providers):
        for priority in PRIORITIES:
            stands.setdefault(priority, "paused")
    if providers and all(provider.breaker != "closed" for provider in providers):
        for priority in PRIORITIES:
            stands.setdefault(priority, "no-provider")

    def place(_: str, priority: str) -> QueueState:
        state = queue_state(view, priority)
        return without_eta(state, stands[priority]) if priority in stands else state

    return pool_state(pool, view, place, workers, providers)


def provider_states(
    names: Iterable[str], records: Mapping[str, ProviderRecord], rooms: Mapping[str, float] | None = None
) -> list[ProviderState]:
    """Providers by name, in this order. One without a record is closed."""
    return [_provider(name, records.get(name), (rooms or {}).get(name)) for name in names]


def _lane(pool: str, priority: str, view: PoolView, place: Place) -> LaneState:
    lane, now = view.lanes.get(priority), place(pool, priority)
    return LaneState(
        priority=priority,  # type: ignore[arg-type]  # one of PRIORITIES
        depth=None if lane is None else lane.depth,
        waiting_tasks=None if lane is None else lane.waiting_tasks,
        running=None if lane is None else lane.running,
        drain_per_second=None if lane is None else lane.drain_per_second,
        tasks_per_second=None if lane is None else lane.tasks_per_second,
        wait_seconds_p50=None if lane is None else lane.wait_seconds_p50,
        wait_seconds_p95=None if lane is None else lane.wait_seconds_p95,
        wait_seconds_p99=None if lane is None else lane.wait_seconds_p99,
        eta_seconds=now.eta_seconds,
        basis=now.basis,
    )


def _provider(name: str, record: ProviderRecord | None, room: float | None) -> ProviderState:
    return ProviderState(
        provider=name,
        breaker="closed" if record is None else record.state,
        since=None if record is None else record.since,
        retry_at=None if record is None else record.retry_at,
        room=room,
    )


def _tenants(view: PoolView) -> list[TenantShare]:
    begun: dict[str, float] = defaultdict(float)
    used: dict[str, float] = defaultdict(float)
    for lane in view.lanes.values():
        for each in lane.tenants:
            begun[each.tenant] += each.tasks_per_second
            used[each.tenant] += each.tokens_per_second
    # Of all tenants: those that are named may be few of a thousand. They may be rounded to a little more than all.
    total = max(sum(lane.tokens_per_second or 0.0 for lane in view.lanes.values()), sum(used.values()))
    parts, whole = (used, total) if total else (begun, sum(begun.values()))
    most = sorted(begun, key=lambda tenant: (-parts[tenant], -begun[tenant], tenant))
    return [
        TenantShare(
            tenant=tenant,
            share=round(parts[tenant] / whole, 4) if whole else 0.0,
            tasks_per_second=round(begun[tenant], 4),
            tokens_per_second=round(used[tenant], 4),
        )
        for tenant in most
    ]
