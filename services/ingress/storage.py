"""Whether there is room for more tasks: the ingress refuses before the disk is full.

What is full refuses in the middle of somebody's turn, and a full disk stops a stream for good until its server
is started again (measured). So new tasks are turned away at a mark below that, while those under way have room
to end, and retention to make more.
"""

from __future__ import annotations

import structlog

from contracts.records.status import HealthCheck
from mesh.background import repeatedly
from mesh.broker.levels import Level, above, describe, read_levels
from mesh.broker.requests import Requests
from mesh.loop_health import LoopHealth
from mesh.telemetry import metrics

log = structlog.get_logger("ingress.storage")

POLL_SECONDS = 1.0
RETRY_AFTER_SECONDS = 30.0
"""Room comes from retention, and from people: not at once."""


class Storage:
    """The levels, as they were a moment ago."""

    def __init__(self, requests: Requests, high_water_percent: float) -> None:
        self._requests = requests
        self._percent = high_water_percent
        self._above: list[Level] = []

    async def run(self) -> None:
        """Look about once a second until cancelled. Each look is bounded by the time of its requests."""
        await repeatedly(self._look, POLL_SECONDS, LoopHealth(log, "storage.unavailable"))

    async def _look(self) -> None:
        self._judge(await read_levels(self._requests))

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

    def _judge(self, levels: list[Level]) -> None:
        before = {level.name for level in self._above}
        self._above = above(levels, self._percent)
        full = [level.name for level in self._above]
        if set(full) - before:
            log.error("storage.high_water", full=full, percent=self._percent)
        elif before and not full:
            log.info("storage.room_again")
        for level in levels:
            metrics.storage_level(level.name, level.percent / 100)
