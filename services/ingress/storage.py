"""Whether there is room for more tasks: the ingress warns in time, and refuses before a stream or the disk is full.

What is full refuses in the middle of somebody's turn, and a full disk stops a stream for good until its server
is started again (measured). So new tasks are turned away at a mark below that, while those under way have room
to end, and retention to make more.
"""

from __future__ import annotations

import asyncio

import structlog

from contracts.errors import TaskmeshError
from contracts.records.status import HealthCheck
from mesh.background import repeatedly
from mesh.broker.levels import Level, above, describe, read_disk_level, read_levels, refusing
from mesh.broker.requests import Requests
from mesh.clock import lease_clock
from mesh.loop_health import LoopHealth
from mesh.telemetry import metrics

log = structlog.get_logger("ingress.storage")

POLL_SECONDS = 1.0
DISK_SECONDS_MAX = 30.0
"""How long the last word on the disk counts while there is no other."""
FALL_PERCENT = 5.0
"""A level that only trembles around its mark is said once."""


class Storage:
    """The levels, as they were a moment ago."""

    def __init__(self, requests: Requests, high_water_percent: float, filling_percent: float) -> None:
        self._requests = requests
        self._percent = high_water_percent
        self._filling_percent = filling_percent
        self._above: list[Level] = []
        self._filling: set[str] = set()
        self._disk: Level | None = None
        self._disk_at = float("-inf")

    async def run(self) -> None:
        """Look about once a second until cancelled. Each look is bounded by the time of its requests."""
        await repeatedly(self._look, POLL_SECONDS, LoopHealth(log, "storage.unavailable"))

    async def _look(self) -> None:
        levels, disk = await asyncio.gather(read_levels(self._requests), self._look_at_disk())
        self.judge([*levels, *([disk] if disk is not None else [])])

    async def _look_at_disk(self) -> Level | None:
        """The disk's level. Of a silent supervisor the last one counts for a while: the disk is no emptier for that."""
        try:
            self._disk, self._disk_at = await read_disk_level(self._requests), lease_clock()
        except TaskmeshError:
            if lease_clock() - self._disk_at > DISK_SECONDS_MAX:
                self._disk = None
        return self._disk

    @property
    def refusal(self) -> str | None:
        """Why no task is taken at present; None if there is room."""
        return describe(self._above[0]) if self._above else None

    def marked(self, checks: list[HealthCheck]) -> list[HealthCheck]:
        """Readiness checks, red where there is no room."""
        full = {level.name: HealthCheck(name=level.name, ok=False, detail=describe(level)) for level in self._above}
        marked = [full.pop(check.name, check) if check.ok else check for check in checks]
        known = {check.name for check in checks}
        return marked + [check for name, check in full.items() if name not in known]

    def judge(self, levels: list[Level]) -> None:
        """Take note of levels, and say once what has crossed a mark."""
        before = {level.name for level in self._above}
        self._above = refusing(levels, self._percent)
        full = [level.name for level in self._above]
        if set(full) - before:
            log.error("storage.high_water", full=full, percent=self._percent)
        elif before and not full:
            log.info("storage.room_again")
        self._warn(levels)
        for level in levels:
            metrics.storage_level(level.name, level.percent / 100)

    def _warn(self, levels: list[Level]) -> None:
        """Say once of each level that it is filling. It has to fall somewhat before it is said anew."""
        filling = above(levels, self._filling_percent)
        for level in filling:
            if level.name not in self._filling:
                log.warning(
                    "storage.filling",
                    name=level.name,
                    percent=round(level.percent, 1),
                    used_bytes=level.used_bytes,
                    limit_bytes=level.limit_bytes,
                    refused_from_percent=self._percent,
                )
        still = {level.name for level in above(levels, self._filling_percent - FALL_PERCENT)}
        self._filling = {level.name for level in filling} | (self._filling & still)
