"""What the steward knows of each lane, kept close at hand: a submission must not wait for it."""

from __future__ import annotations

import structlog

from contracts.codec import decode
from contracts.errors import TaskmeshError
from contracts.records.status import LaneStatistics, QueueState
from contracts.subjects import PRIORITIES, lane_key
from ingress.fleet_watch import FleetWatch
from mesh.background import repeatedly
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.fleet.statistics import old_after_seconds
from mesh.loop_health import LoopHealth

log = structlog.get_logger("ingress.lane_statistics")

REFRESH_SECONDS = 1.0
RETRY_AFTER_SECONDS_DEFAULT = 5.0
RETRY_AFTER_SECONDS_MAX = 60.0
FREED_FRACTION = 0.1
"""A refused client comes back when about this part of the lane has drained, not for the next free place."""


class Lanes:
    """The last statistics of each lane. Old ones say nothing: a frozen mesh would be promised no wait at all."""

    def __init__(self, requests: Requests, pools: tuple[str, ...], fleet: FleetWatch) -> None:
        self._requests = requests
        self.fleet = fleet
        self._keys = [lane_key(pool, priority) for pool in pools for priority in PRIORITIES]
        self._statistics: dict[str, LaneStatistics] = {}
        self._old_after_seconds = old_after_seconds(len(self._keys))

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

    def lane(self, pool: str, priority: str) -> LaneStatistics | None:
        """A lane's statistics; None if there are none, or they are old, or nobody keeps them."""
        known = self._statistics.get(lane_key(pool, priority))
        if known is None or not self.fleet.counts_lanes:
            return None
        return known if (now() - known.time).total_seconds() <= self._old_after_seconds else None

    def queue(self, pool: str, priority: str) -> QueueState:
        """Depth, and how long until a task that comes now begins; null while not known, or nobody works there."""
        known = self.lane(pool, priority)
        if known is None:
            return QueueState(depth=None, eta_seconds=None)
        if not self.fleet.serves(pool):
            return QueueState(depth=known.depth, eta_seconds=None)
        if known.depth == 0:
            return QueueState(depth=0, eta_seconds=0.0)
        eta = known.depth / known.drain_per_second if known.drain_per_second else None
        return QueueState(depth=known.depth, eta_seconds=round(eta, 3) if eta is not None else None)

    def is_idle(self, pool: str) -> bool:
        """Whether nothing of a pool waits for a worker, as far as is known."""
        known = (self.lane(pool, priority) for priority in PRIORITIES)
        return all(lane is None or lane.depth == 0 for lane in known)

    def retry_after_seconds(self, pool: str, priority: str) -> float:
        """When a refused client has a fair chance."""
        known = self.lane(pool, priority)
        if known is None or not known.drain_per_second:
            return RETRY_AFTER_SECONDS_DEFAULT
        seconds = known.depth * FREED_FRACTION / known.drain_per_second
        return min(max(1.0, seconds), RETRY_AFTER_SECONDS_MAX)
