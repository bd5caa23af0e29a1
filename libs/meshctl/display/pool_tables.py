"""What `meshctl pools` and `meshctl top` show people: pools, their lanes, and tenants' shares. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from msgspec.structs import replace
from rich.console import Group
from rich.table import Table
from rich.text import Text

from contracts.api.pools import LaneState, PoolState, ProviderState
from contracts.records.providers import ProviderRecord
from contracts.records.status import EtaBasis, WorkerRecord
from contracts.records.valves import Valve
from mesh.wording import first_few
from meshctl.display.tables import cell, plain_table, providers_table, workers_table

TENANTS_SHOWN_MAX: Final = 5
_BASIS: Final[dict[EtaBasis, str]] = {
    "free": "a place is free",
    "drain": "by its drain",
    "pool": "by its share of the pool",
    "places": "by the pool's places",
    "no-worker": "no worker",
    "no-provider": "no provider",
    "paused": "paused",
    "begun": "",
    "unknown": "not measured",
}
_BREAKER_STYLES: Final = {"open": "red", "half_open": "yellow", "closed": "green"}
_HELD: Final = ("no-worker", "no-provider", "paused")


def pools_table(pools: Sequence[PoolState]) -> Table:
    """One line for each pool."""
    table = plain_table("POOL", "WAITING", "RUNNING", "WORKERS", "PLACES", "FREE", "CAPACITY", "PROVIDERS", "TENANTS")
    for pool in pools:
        table.add_row(
            cell(pool.pool),
            _count(pool.depth),
            _count(pool.running),
            _count(pool.workers),
            _count(pool.places),
            _count(pool.free),
            _count(pool.capacity),
            Text(", ").join(_provider(each) for each in pool.providers),
            cell(_shares(pool)),
        )
    return table


def lane_states_table(pools: Sequence[PoolState]) -> Table:
    """One line for each lane where something waits or runs, or ran of late."""
    table = plain_table("LANE", "WAITING", "RUNNING", "TASKS/S", "WAIT P50", "P95", "P99", "BEGINS IN")
    for pool in pools:
        for lane in pool.lanes:
            table.add_row(
                cell(f"{pool.pool}, {lane.priority}"),
                _count(lane.depth),
                _count(lane.running),
                _rate(lane.tasks_per_second),
                seconds_text(lane.wait_seconds_p50),
                seconds_text(lane.wait_seconds_p95),
                seconds_text(lane.wait_seconds_p99),
                cell(_begins(lane), "yellow" if lane.basis in _HELD else ""),
            )
    return table


def tenants_table(pools: Sequence[PoolState], rows_max: int | None = None) -> Table:
    """One line for each tenant of each pool, those that used the most tokens first; so many lines at most."""
    table = plain_table("TENANT", "POOL", "SHARE", "TOKENS/S", "TASKS/S")
    shares = [(tenant, pool.pool) for pool in pools for tenant in pool.tenants]
    shares.sort(key=lambda each: (-each[0].tokens_per_second, -each[0].tasks_per_second, each[1], each[0].tenant))
    for tenant, pool in shares[:rows_max]:
        table.add_row(
            cell(tenant.tenant),
            cell(pool),
            f"{tenant.share:.0%}",
            _rate(tenant.tokens_per_second),
            _rate(tenant.tasks_per_second),
        )
    if rows_max is not None and len(shares) > rows_max:
        table.add_row(cell(f"{len(shares) - rows_max:,} more"), "", "", "", "")
    return table


def frame(
    pools: Sequence[PoolState],
    providers: Sequence[ProviderRecord],
    workers: Sequence[WorkerRecord],
    at: datetime,
    *,
    valves: Sequence[Valve] = (),
    tenants_max: int | None = None,
) -> Group:
    """The whole mesh on one screen. `valves`: what people have paused. `tenants_max`: lines for tenants, at most."""
    waiting, running = sum(pool.depth or 0 for pool in pools), sum(pool.running or 0 for pool in pools)
    places = sum(worker.concurrency or 0 for worker in workers if worker.pools and not worker.draining)
    said = f"{at:%Y-%m-%d %H:%M:%S} UTC   {waiting:,} waiting, {running:,} running, {places:,} places"
    parts: list[Text | Table] = [cell(said, "bold")]
    if valves:
        parts.append(cell(f"paused: {first_few([f'{valve.kind} {valve.name}' for valve in valves])}", "red"))
    parts.append(Text())
    for table, is_there in (
        (pools_table(pools), bool(pools)),
        (lane_states_table(_moving(pools)), bool(_moving(pools))),
        (providers_table(providers, at), bool(providers)),
        (tenants_table(pools, tenants_max), any(pool.tenants for pool in pools)),
        (workers_table(workers, at), bool(workers)),
    ):
        if is_there:
            parts += [table, Text()]
    return Group(*parts[:-1])


def seconds_text(value: float | None) -> str:
    """Seconds, with as many digits as say something; `-` where nobody knows."""
    if value is None:
        return "-"
    return f"{value:.2f} s" if value < 10 else f"{value:,.0f} s"  # noqa: PLR2004 - a digit less from here on


def basis_text(basis: EtaBasis) -> str:
    """What an ETA was worked out from, for people; or why there is none."""
    return _BASIS[basis]


def _moving(pools: Sequence[PoolState]) -> list[PoolState]:
    """Pools with those lanes alone where there is something to see."""
    with_lanes = [replace(pool, lanes=[lane for lane in pool.lanes if _moves(lane)]) for pool in pools]
    return [pool for pool in with_lanes if pool.lanes]


def _moves(lane: LaneState) -> bool:
    return bool(lane.depth or lane.running or lane.wait_seconds_p50)


def _begins(lane: LaneState) -> str:
    why = _BASIS[lane.basis]
    if lane.eta_seconds is None:
        return why
    return "at once" if lane.basis == "free" else f"{seconds_text(lane.eta_seconds)}, {why}"


def _provider(provider: ProviderState) -> Text:
    room = "" if provider.room is None else f" {provider.room:.0%}"
    breaker = "" if provider.breaker == "closed" else f" {provider.breaker.replace('_', '-')}"
    return cell(f"{provider.provider}{breaker}{room}", _BREAKER_STYLES[provider.breaker])


def _shares(pool: PoolState) -> str:
    told = [f"{each.tenant} {each.share:.0%}" for each in pool.tenants[:TENANTS_SHOWN_MAX]]
    more = len(pool.tenants) - len(told)
    return ", ".join([*told, *([f"{more} more"] if more else [])]) or "-"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
