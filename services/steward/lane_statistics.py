"""Lane statistics: consumers' depths and workers' reports, written into the bucket `lanes`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import structlog
from nats.aio.msg import Msg

from contracts import subjects
from contracts.codec import decode, encode
from contracts.errors import TaskmeshError
from contracts.records.status import LaneSample, LaneStatistics
from contracts.streams import lane_consumer
from mesh.admission.backlog import waiting_by_lane
from mesh.background import repeatedly
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.broker.consumer_lists import all_consumers
from mesh.clock import lease_clock, now
from mesh.fleet.statistics import look_seconds, unchanged_seconds_max
from mesh.loop_health import LoopHealth
from steward.statistics import LaneWindow

log = structlog.get_logger("steward.lane_statistics")

CROWDED_MIN = 64
CROWDED_ROUNDS = 2
"""A lane is crowded that has more waiting in TASKS than so many messages, and so many rounds of what runs there: more
than ingresses leave there, so that it was sub-tasks, an older ingress, or a fleet that has shrunk."""


class _Behind(NamedTuple):
    """What waits in BACKLOG of a lane, and how much of it gets no place at present."""

    waiting: int
    held: int


class LaneKeeper:
    """Keeps the statistics of all lanes."""

    def __init__(
        self,
        connection: Connection,
        pools: tuple[str, ...],
        on_crowded: Callable[[list[tuple[str, str]]], None] = lambda _: None,
        is_paused: Callable[[str, str], bool] = lambda _pool, _priority: False,
    ) -> None:
        """`on_crowded` is told, at each look, the lanes that have too much in TASKS for any order.

        `is_paused`: whether people have paused a pool, or its lane of a priority.
        """
        self._connection = connection
        self._on_crowded = on_crowded
        self._is_paused = is_paused
        self._windows = {
            subjects.lane_key(pool, priority): LaneWindow(pool, priority)  # type: ignore[arg-type]  # one of PRIORITIES
            for pool in pools
            for priority in subjects.PRIORITIES
        }
        self._written: dict[str, tuple[float, LaneStatistics]] = {}
        self._interval_seconds = look_seconds(len(self._windows))
        self._unchanged_seconds_max = unchanged_seconds_max(len(self._windows))

    async def run(self) -> None:
        """Keep statistics until cancelled."""
        await self._connection.client.subscribe("stats.lanes.*.*", cb=self._on_sample)
        await repeatedly(self.update, self._interval_seconds, LoopHealth(log, "lanes.unavailable"))

    async def update(self) -> None:
        """Look at all lanes once, and write what has changed. Raises `TaskmeshError`."""
        depths: Counter[str] = Counter()
        running: Counter[str] = Counter()
        waiting_tasks: Counter[str] = Counter()
        paused: set[str] = set()
        for stream in ("TASKS", "TURNS"):
            for consumer in await all_consumers(self._connection.requests, stream):
                depths[consumer["name"]] += int(consumer["num_pending"])
                running[consumer["name"]] += int(consumer["num_ack_pending"])
                if stream == "TASKS":
                    waiting_tasks[consumer["name"]] += int(consumer["num_pending"])
                    if consumer.get("paused"):
                        paused.add(consumer["name"])
        backlog, held = await self._backlog()
        crowded: list[tuple[str, str]] = []
        for key, window in self._windows.items():
            # Both streams name the consumer of a lane alike.
            name = lane_consumer("TASKS", window.pool, window.priority)
            if depths[name] > max(CROWDED_MIN, CROWDED_ROUNDS * running[name]):
                crowded.append((window.pool, window.priority))
            behind = _Behind(backlog[key], min(held[key], backlog[key]))
            stands = name in paused or self._is_paused(window.pool, window.priority)
            await self._update(key, window, depths[name], running[name], waiting_tasks[name], behind, stands=stands)
        self._on_crowded(crowded)

    async def _backlog(self) -> tuple[Counter[str], Counter[str]]:
        """How many messages wait in BACKLOG, by the keys of lanes; and how many of these get no place at present."""
        counts: Counter[str] = Counter()
        for lane, count in (await waiting_by_lane(self._connection.requests)).items():
            counts[subjects.lane_key(lane.pool, lane.priority)] += count
        if not counts:
            return counts, counts
        await self._connection.requests.backlog_lanes.refresh()
        record = self._connection.requests.backlog_lanes.record
        lanes = record.lanes if record is not None else ()
        return counts, Counter({subjects.lane_key(each.pool, each.priority): each.held_waiting for each in lanes})

    async def _update(
        self,
        key: str,
        window: LaneWindow,
        ready: int,
        running: int,
        ready_tasks: int,
        behind: _Behind,
        *,
        stands: bool,
    ) -> None:
        at = lease_clock()
        # Turns that were put off lie in BACKLOG, too, but few: all of it is taken for tasks that are to begin. What is
        # held waits for no place: a lane where only that waits drains no slower than it could.
        statistics = window.statistics(
            at,
            now(),
            ready + behind.waiting,
            running,
            behind.waiting,
            waiting_tasks=ready_tasks + behind.waiting - behind.held,
            held=behind.held,
            stands=stands,
        )
        written_at, before = self._written.get(key, (0.0, None))
        if before is not None and _same(before, statistics) and at - written_at < self._unchanged_seconds_max:
            return
        await key_value.put(self._connection.requests, "lanes", key, encode(statistics))
        self._written[key] = (at, statistics)

    async def _on_sample(self, message: Msg) -> None:
        try:
            sample = decode(message.data, LaneSample)
        except TaskmeshError as error:
            log.warning("lanes.sample_refused", subject=message.subject, error=str(error))
            return
        window = self._windows.get(message.subject.removeprefix("stats.lanes."))
        if window is not None:
            window.add(lease_clock(), sample)


_TELLING = (
    "depth", "running", "backlog", "held", "waiting_tasks", "wait_seconds_p95", "drain_per_second", "tasks_per_second"
)  # fmt: skip


def _same(one: LaneStatistics, other: LaneStatistics) -> bool:
    # Shares of tenants change with each second: they are told with the rest.
    return all(getattr(one, name) == getattr(other, name) for name in _TELLING)
