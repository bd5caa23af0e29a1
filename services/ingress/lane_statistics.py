"""What the steward knows of each lane, kept close at hand: a submission must not wait for it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Final, NamedTuple

import structlog

from contracts.codec import decode
from contracts.errors import TaskmeshError
from contracts.records.backlog import LaneBacklog
from contracts.records.status import EtaBasis, LaneStatistics, QueueState
from contracts.subjects import PRIORITIES, lane_key
from ingress.fleet_watch import FleetWatch
from mesh.background import repeatedly
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.clock import lease_clock, now
from mesh.configuration.tenants_table import TenantOf, TenantsConfiguration
from mesh.fleet.eta import InTurns, PoolView, pool_view, queue_state, speed_of, without_eta
from mesh.fleet.pool_states import standing
from mesh.fleet.statistics import look_seconds, old_after_seconds
from mesh.loop_health import LoopHealth

log = structlog.get_logger("ingress.lane_statistics")

REFRESH_SECONDS = 1.0
COUNTED_SECONDS: Final = 0.1
"""Acceptances are counted together for so long."""
ACCEPTED_MAX: Final = 10_000
"""Lanes, and tenants in them, whose acceptances are counted. Those that had none for longest go."""
KNOWN_SECONDS: Final = 0.25
"""So long what is known of a pool is good: it is put together of all lanes, and asked for with each acceptance."""


class Accepted:
    """How many tasks of a lane were accepted here of late. Times are seconds on any clock."""

    def __init__(self, kept_seconds: float) -> None:
        self._kept_seconds = kept_seconds
        self._counts: deque[list[float]] = deque()
        """Each of a time, and of how many were accepted then."""
        self._begun_at = float("-inf")

    def add(self, at: float) -> None:
        """One more."""
        if at - self._begun_at < COUNTED_SECONDS:
            self._counts[-1][1] += 1
            return
        self._begun_at = at
        self._counts.append([at, 1])
        while self._counts[0][0] < at - self._kept_seconds:
            self._counts.popleft()

    def since(self, at: float) -> float:
        """So many since then."""
        if self._begun_at < at:
            return 0.0
        return sum(count for counted_at, count in self._counts if counted_at >= at)


class _Known(NamedTuple):
    """A pool, as it was put together at a time; `stands`: lanes that do not move, and why."""

    at: float
    view: PoolView
    stands: Mapping[str, EtaBasis]
    output_tokens: int | None
    """What its turns have put out lately: the median of the lane that has ended most."""


class Lanes:
    """The last statistics of each lane. Old ones say nothing: a frozen mesh would be promised no wait at all."""

    def __init__(self, requests: Requests, pools: tuple[str, ...], fleet: FleetWatch) -> None:
        self._requests = requests
        self.fleet = fleet
        self._keys = [lane_key(pool, priority) for pool in pools for priority in PRIORITIES]
        self._statistics: dict[str, LaneStatistics] = {}
        self._old_after_seconds = old_after_seconds(len(self._keys))
        self._behind_seconds = look_seconds(len(self._keys)) + REFRESH_SECONDS
        """So old may be what is known of a lane that changes: until the next look, and until that is read here."""
        self._accepted: OrderedDict[str, Accepted] = OrderedDict()
        """By lane, and by lane and tenant."""
        self._tenant_of: TenantOf = TenantsConfiguration().of
        self._pools: dict[str, _Known] = {}
        self._turns: dict[str, tuple[LaneBacklog, InTurns]] = {}
        """By lane, of the record that was read last: it is written again each second."""

    async def run(self) -> None:
        """Refresh until cancelled."""
        await repeatedly(self._refresh, REFRESH_SECONDS, LoopHealth(log, "lanes.unavailable"))

    async def _refresh(self) -> None:
        failure: TaskmeshError | None = None
        for key in self._keys:
            try:
                entry = await key_value.get(self._requests, "lanes", key)
                if entry is not None and entry.value is not None:
                    self._statistics[key] = decode(entry.value, LaneStatistics)
            except TaskmeshError as error:
                failure = error  # One lane that can't be read says nothing of the others.
        await self._requests.backlog_lanes.refresh()
        if failure is not None:
            raise failure

    def accepted(self, pool: str, priority: str, tenant: str) -> None:
        """A task was accepted here: it stands in its lane before the next look at that."""
        lane, at = lane_key(pool, priority), now().timestamp()
        for key in (lane, f"{lane}.{tenant}"):
            known = self._accepted.get(key)
            if known is None:
                known = self._accepted[key] = Accepted(self._behind_seconds)
            known.add(at)
            self._accepted.move_to_end(key)
        while len(self._accepted) > ACCEPTED_MAX:
            self._accepted.popitem(last=False)

    def lane(self, pool: str, priority: str) -> LaneStatistics | None:
        """A lane's statistics; None if there are none, or they are old, or nobody keeps them."""
        known = self._statistics.get(lane_key(pool, priority))
        if known is None or not self.fleet.counts_lanes:
            return None
        return known if (now() - known.time).total_seconds() <= self._old_after_seconds else None

    def view(self, pool: str) -> PoolView:
        """A pool as it is known to be."""
        return self._known(pool).view

    def median_output(self, pool: str) -> int | None:
        """What a turn of a pool puts out, in tokens; None while nobody has told."""
        return self._known(pool).output_tokens

    def go_by(self, tenant_of: TenantOf) -> None:
        """Go by these weights of tenants."""
        self._tenant_of = tenant_of

    def _weight(self, tenant: str) -> float:
        return self._tenant_of(tenant).weight

    def queue(self, pool: str, priority: str, before: float | None = None, *, tenant: str | None = None) -> QueueState:
        """Where a task that comes now stands, and when it begins; or one before which so many others stand.

        `tenant`: whose it is. Without one it is taken for the lane's last.

        There is no time while it is not known, or nobody works there. Costs no request, and little time: each
        acceptance asks.
        """
        known = self._known(pool)
        if before is None and tenant is not None:
            before = self._before_of_tenant(known.view, pool, priority, tenant)
        state = queue_state(known.view, priority, more=self._since(known.view, pool, priority), before=before)
        if tenant is not None:
            state = self._within_bound(state, known.view, pool, priority, tenant)
        stands = known.stands.get(priority)
        return state if stands is None or state.depth is None else without_eta(state, stands)

    def before_in_backlog(self, pool: str, priority: str, tenant: str, own: float) -> float | None:
        """How many go before one that waits in BACKLOG behind so many of its own tenant; None where nobody knows."""
        lane = self._known(pool).view.lanes.get(priority)
        backlog = self._backlog(pool, priority)
        if lane is None or backlog is None:
            return None
        # What is held lets others pass.
        return _ready(lane) + (own if backlog.held else self._in_turns(backlog).before(own, tenant))

    def _backlog(self, pool: str, priority: str) -> LaneBacklog | None:
        """What waits in BACKLOG of a lane; None of a lane of which nothing does, as far as the stewards have told."""
        return self._requests.backlog_lanes.told(pool, priority)

    def _in_turns(self, backlog: LaneBacklog) -> InTurns:
        key = lane_key(backlog.pool, backlog.priority)
        known = self._turns.get(key)
        if known is None or known[0] is not backlog:
            known = self._turns[key] = (backlog, InTurns(backlog, self._weight))
        return known[1]

    def _before_of_tenant(self, view: PoolView, pool: str, priority: str, tenant: str) -> float | None:
        """How many go before a tenant's next task of a lane that the stewards order; None of any other lane."""
        backlog, lane = self._backlog(pool, priority), view.lanes.get(priority)
        if backlog is None or lane is None:
            return None
        record = self._requests.backlog_lanes.record
        accepted = self._accepted.get(f"{lane_key(pool, priority)}.{tenant}")
        at = now().timestamp()
        since = max(record.time.timestamp() if record is not None else 0.0, at - self._behind_seconds)
        own = backlog.tenants.get(tenant, 0) + (accepted.since(since) if accepted is not None else 0)
        begun = (lane.tasks_per_second or 0.0) * max(0.0, at - since) if view.places != 0 else 0.0
        return _ready(lane) + (own if backlog.held else self._in_turns(backlog).behind_all(own, tenant, begun))

    def _within_bound(self, state: QueueState, view: PoolView, pool: str, priority: str, tenant: str) -> QueueState:
        """A place of a tenant of whose tasks only so many may run: they wait for one another."""
        running, lane = self._tenant_of(tenant).running, view.lanes.get(priority)
        backlog = self._backlog(pool, priority) if running is not None else None
        if running is None or backlog is None or lane is None or not lane.task_seconds or state.position is None:
            return state
        own = min(state.position, backlog.tenants.get(tenant, 0))
        eta_seconds = round(own * lane.task_seconds / running, 3)
        if eta_seconds <= (state.eta_seconds or 0.0):
            return state
        return QueueState(depth=state.depth, position=state.position, eta_seconds=eta_seconds, basis="places")

    def _known(self, pool: str) -> _Known:
        """What is known of a pool, put together anew when it may have changed."""
        known = self._pools.get(pool)
        if known is None or lease_clock() - known.at > KNOWN_SECONDS:
            known = self._pools[pool] = self._put_together(pool)
        return known

    def _put_together(self, pool: str) -> _Known:
        at, fleet = now(), self.fleet.fleet
        counted = self._statistics.values() if self.fleet.counts_lanes else ()
        fresh = [lane for lane in counted if (at - lane.time).total_seconds() <= self._old_after_seconds]
        workers = None if fleet is None else [each.record for each in fleet.alive if each.record is not None]
        view = pool_view(pool, fresh, workers)
        told = [lane for lane in view.lanes.values() if lane.output_tokens_p50 is not None]
        busiest = max(told, key=lambda lane: lane.drain_per_second or 0.0, default=None)
        stands = {} if fleet is None else standing(fleet, pool)
        return _Known(lease_clock(), view, stands, None if busiest is None else busiest.output_tokens_p50)

    def _since(self, view: PoolView, pool: str, priority: str) -> float:
        """How many more wait in a lane than when it was looked at: those accepted here, less those begun since."""
        lane = view.lanes.get(priority)
        accepted = self._accepted.get(lane_key(pool, priority))
        if lane is None or accepted is None:
            return 0.0
        at = now().timestamp()
        since = max(lane.time.timestamp(), at - self._behind_seconds)
        # Only of what was measured: what places could do says nothing of a moment in which they may not.
        per_second = (lane.tasks_per_second or 0.0) if view.places != 0 else 0.0
        return accepted.since(since) - per_second * max(0.0, at - since)

    def is_idle(self, pool: str) -> bool:
        """Whether nothing of a pool waits for a worker, and nothing else, as far as is known."""
        known = (self.lane(pool, priority) for priority in PRIORITIES)
        return all(lane is None or lane.depth <= lane.held for lane in known)

    def depth(self, pool: str, priority: str) -> int | None:
        """Turns that wait in a lane; None while nobody has counted."""
        known = self.lane(pool, priority)
        return None if known is None else known.depth

    def tasks_per_second(self, pool: str, priority: str, tenant: str | None = None) -> float | None:
        """How many tasks of a lane begin a second, or of a tenant's there; None while nothing was measured."""
        view = self._known(pool).view
        speed = speed_of(view, priority).per_second
        backlog = self._backlog(pool, priority)
        if tenant is None or not speed or backlog is None or backlog.held:
            return speed
        # Those who wait share the lane by weight. Who has little leaves the rest to others, as what was measured shows.
        part = self._in_turns(backlog).part(tenant)
        measured = [each.tasks_per_second for each in view.lanes[priority].tenants if each.tenant == tenant]
        return min(speed, max(speed * part, *measured, 0.0))


def _ready(lane: LaneStatistics) -> int:
    """How many tasks of a lane that the stewards order lie in TASKS: these go before all that waits in BACKLOG."""
    waiting = lane.depth - lane.held if lane.waiting_tasks is None else lane.waiting_tasks
    return max(0, waiting - (lane.backlog - lane.held))
