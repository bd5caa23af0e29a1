"""Whether there is room for more tasks: the ingress refuses before the disk is full.

What is full refuses in the middle of somebody's turn, and a full disk stops a stream for good until its server
is started again (measured). So new tasks are turned away at a mark below that, while those under way have room
to end, and retention to make more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import structlog

from contracts.records.status import HealthCheck
from contracts.streams import EVENTS, TASKS, TASKS_BUCKET
from mesh.background import repeatedly
from mesh.broker.requests import Requests
from mesh.loop_health import LoopHealth

log = structlog.get_logger("ingress.storage")

POLL_SECONDS = 1.0
RETRY_AFTER_SECONDS = 30.0
"""Room comes from retention, and from people: not at once."""
ACCOUNT = "account"
"""Stands for the storage of the whole JetStream account, beside names of streams."""
_WATCHED = (EVENTS.name, TASKS.name, TASKS_BUCKET.stream_name)


class Level(NamedTuple):
    """How much of its storage something uses, in bytes. A limit of 0 or below is none."""

    name: str
    used_bytes: int
    limit_bytes: int

    @property
    def percent(self) -> float:
        """Of the limit; 0 where there is none."""
        return 100 * self.used_bytes / self.limit_bytes if self.limit_bytes > 0 else 0.0


def above(levels: Iterable[Level], percent: float) -> list[Level]:
    """The levels at or above a mark, the fullest first."""
    return sorted((level for level in levels if level.percent >= percent), key=lambda level: -level.percent)


def describe(level: Level) -> str:
    """A level, for people."""
    return f"storage of {level.name} is {level.percent:.0f} % full"


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
        self._judge(await self._levels())

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
        before = bool(self._above)
        self._above = above(levels, self._percent)
        if self._above and not before:
            log.error("storage.high_water", full=[level.name for level in self._above], percent=self._percent)
        elif before and not self._above:
            log.info("storage.room_again")

    async def _levels(self) -> list[Level]:
        levels = []
        for stream in _WATCHED:
            info = await self._requests.api(f"STREAM.INFO.{stream}")
            levels.append(Level(stream, int(info["state"]["bytes"]), int(info["config"]["max_bytes"])))
        return [*levels, _account(await self._requests.api("INFO"))]


def _account(info: dict[str, Any]) -> Level:
    """The account's level. An account in tiers (R1, R3) is as full as its fullest tier."""
    tiers = list(info.get("tiers", {}).values()) or [info]
    levels = [Level(ACCOUNT, int(tier["storage"]), int(tier["limits"]["max_storage"])) for tier in tiers]
    return max(levels, key=lambda level: level.percent)
