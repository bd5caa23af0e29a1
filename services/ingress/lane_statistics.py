"""What the steward knows of each lane, kept close at hand: a submission must not wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

import structlog

from contracts.codec import decode
from contracts.errors import TaskmeshError
from contracts.records.status import EtaBasis, LaneStatistics, QueueState
from contracts.subjects import PRIORITIES, lane_key
from ingress.fleet_watch import FleetWatch
from mesh.background import repeatedly
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.clock import lease_clock, now
from mesh.fleet.eta import PoolView, pool_view, queue_state, speed_of, without_eta
from mesh.fleet.pool_states import standing
from mesh.fleet.statistics import look_seconds, old_after_seconds
from mesh.loop_health import LoopHealth

log = structlog.get_logger("ingress.lane_statistics")

REFRESH_SECONDS = 1.0
COUNTED_SECONDS: Final = 0.1
"""Acceptances are counted together for so long."""
KNOWN_SECONDS: Final = 0.25
"""So long what is known of a pool is good: it is put together of all lanes, and asked for with each acceptance."""


class Accepted:
    """How many tasks of a lane were accepted here of late. Times are seconds on any clock."""

    def __init__(self, kept_seconds: float) -> None:
        self._kept_seconds = kept_seconds
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, at: float) -> None:
        """One more."""
        counts = self._counts
        if counts and at - counts[-1][0] < COUNTED_SECONDS:
            counts[-1] = (counts[-1][0], counts[-1][1] + 1)
            return
        counts.append((at, 1))
        while counts[0][0] < at - self._kept_seconds:
            counts.popleft()

    def since(self, at: float) -> int:
        """So many since then."""
        return sum(count for counted_at, count in self._counts if counted_at >= at)


class _Known(NamedTuple):
    """A pool, as it was put together at a time; `stands`: lanes that do not move, and why."""

    at: float
    view: PoolView
    stands: Mapping[str, EtaBasis]


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
        self._accepted: dict[str, Accepted] = {}
        self._pools: dict[str, _Known] = {}

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
        if failure is not None:
            raise failure

    def accepted(self, pool: str, priority: str) -> None:
        """A task was accepted here: it stands in its lane before the next look at that."""
        key = lane_key(pool, priority)
        if key not in self._accepted:
            self._accepted[key] = Accepted(self._behind_seconds)
        self._accepted[key].add(now().timestamp())

    def lane(self, pool: str, priority: str) -> LaneStatistics | None:
        """A lane's statistics; None if there are none, or they are old, or nobody keeps them."""
        known = self._statistics.get(lane_key(pool, priority))
        if known is None or not self.fleet.counts_lanes:
            return None
        return known if (now() - known.time).total_seconds() <= self._old_after_seconds else None

    def view(self, pool: str) -> PoolView:
        """A pool as it is known to be."""
        return self._known(pool).view

    def queue(self, pool: str, priority: str, before: int | None = None) -> QueueState:
        """Where a task that comes now stands, and when it begins; or one before which so many others stand.

        There is no time while it is not known, or nobody works there. Costs no request, and little time: each
        acceptance asks.
        """
        known = self._known(pool)
        state = queue_state(known.view, priority, more=self._since(known.view, pool, priority), before=before)
        stands = known.stands.get(priority)
        return state if stands is None or state.depth is None else without_eta(state, stands)

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
        return _Known(lease_clock(), view, {} if fleet is None else standing(fleet, pool))

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
        """Whether nothing of a pool waits for a worker, as far as is known."""
        known = (self.lane(pool, priority) for priority in PRIORITIES)
        return all(lane is None or lane.depth == 0 for lane in known)

    def depth(self, pool: str, priority: str) -> int | None:
        """Turns that wait in a lane; None while nobody has counted."""
        known = self.lane(pool, priority)
        return None if known is None else known.depth

    def tasks_per_second(self, pool: str, priority: str, tenant: str | None = None) -> float | None:
        """How many tasks of a lane begin a second, or of a tenant's there; None while nothing was measured."""
        view = self.view(pool)
        speed = speed_of(view, priority).per_second
        lane = view.lanes.get(priority)
        if tenant is None or speed is None or lane is None or not lane.tenants:
            return speed
        # Whose share is not told has less than any that is.
        known = {each.tenant: each.tasks_per_second for each in lane.tenants}
        rate = known.get(tenant, min(known.values()))
        return speed * rate / max(sum(known.values()), rate) if rate else speed
