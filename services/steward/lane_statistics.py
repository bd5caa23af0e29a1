"""Lane statistics: consumers' depths and workers' reports, written into the bucket `lanes`."""

from __future__ import annotations

import structlog
from nats.aio.msg import Msg

from contracts import subjects
from contracts.codec import decode, encode
from contracts.errors import TaskmeshError
from contracts.records.status import LaneSample, LaneStatistics
from contracts.streams import lane_consumer
from mesh.background import repeatedly
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.clock import lease_clock, now
from mesh.loop_health import LoopHealth
from steward.statistics import LaneWindow

log = structlog.get_logger("steward.lane_statistics")

INTERVAL_SECONDS = 1.0
UNCHANGED_SECONDS_MAX = 15.0
"""A lane where nothing happens is written this often, so that an idle mesh does not wear out its disk."""


class LaneKeeper:
    """Keeps the statistics of all lanes."""

    def __init__(self, connection: Connection, pools: tuple[str, ...]) -> None:
        self._connection = connection
        self._windows = {
            subjects.lane_key(pool, priority): LaneWindow(pool, priority)  # type: ignore[arg-type]  # one of PRIORITIES
            for pool in pools
            for priority in subjects.PRIORITIES
        }
        self._written: dict[str, tuple[float, LaneStatistics]] = {}

    async def run(self) -> None:
        """Keep statistics until cancelled."""
        await self._connection.client.subscribe("stats.lanes.*.*", cb=self._on_sample)
        await repeatedly(self._update_all, INTERVAL_SECONDS, LoopHealth(log, "lanes.unavailable"))

    async def _update_all(self) -> None:
        for key, window in self._windows.items():
            await self._update(key, window)

    async def _update(self, key: str, window: LaneWindow) -> None:
        depth = running = 0
        consumer = lane_consumer("TASKS", window.pool, window.priority)
        for stream in ("TASKS", "TURNS"):
            info = await self._connection.requests.api(f"CONSUMER.INFO.{stream}.{consumer}")
            depth += int(info["num_pending"])
            running += int(info["num_ack_pending"])
        at = lease_clock()
        statistics = window.statistics(at, now(), depth, running)
        written_at, before = self._written.get(key, (-UNCHANGED_SECONDS_MAX, None))
        if before is not None and _same(before, statistics) and at - written_at < UNCHANGED_SECONDS_MAX:
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


def _same(one: LaneStatistics, other: LaneStatistics) -> bool:
    return (one.depth, one.running) == (other.depth, other.running) and (
        one.wait_seconds_p95 == other.wait_seconds_p95 and one.drain_per_second == other.drain_per_second
    )
