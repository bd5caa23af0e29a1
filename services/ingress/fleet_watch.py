"""What is not well with the mesh, as the ingress sees it: for readiness, the log, metrics, and what it promises.

A mesh that has no worker still accepts tasks, and they wait: so what is found here takes no ingress away from its load
balancer. It is told beside what does, with `ok: true` and a detail. A stream that takes nothing is another matter.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Final

import structlog

from contracts.records.status import HealthCheck
from contracts.subjects import PRIORITIES
from mesh.background import repeatedly
from mesh.broker.connection import Connection
from mesh.broker.dead_streams import DeadStream, dead_streams
from mesh.clock import lease_clock
from mesh.fleet.findings import CHECKS, Finding, Fleet, findings
from mesh.fleet.looking import read_fleet
from mesh.fleet.statistics import age_seconds
from mesh.loop_health import LoopHealth
from mesh.telemetry import metrics

log = structlog.get_logger("ingress.fleet_watch")

PAUSE_SECONDS: Final = 5.0
PAUSE_PER_MEMBER_SECONDS: Final = 0.01
"""A hundred answers a second, however many processes there are."""
PAUSE_PER_LANE_SECONDS: Final = 0.05
OLD_SECONDS: Final = 30.0
"""Longer ago than that, and some pauses, a look says nothing any more."""


class FleetWatch:
    """The mesh as it was a moment ago."""

    def __init__(self, connection: Connection, pools: tuple[str, ...]) -> None:
        self._connection = connection
        self._pools = pools
        self._fleet: Fleet | None = None
        self._dead: list[DeadStream] = []
        self._looked_at = float("-inf")
        self._pause_seconds = max(PAUSE_SECONDS, PAUSE_PER_LANE_SECONDS * len(pools) * len(PRIORITIES))
        self._found: dict[str, Finding] = {}
        self._said: set[str] = set()
        # Each acceptance asks: counted with each look, however many processes there are.
        self._counts_lanes = True
        self._ingresses = 1

    async def run(self) -> None:
        """Look again and again until cancelled."""
        await repeatedly(self._round, 0, LoopHealth(log, "fleet.unavailable"))

    @property
    def fleet(self) -> Fleet | None:
        """What the last look saw; None if there was none lately."""
        is_old = lease_clock() - self._looked_at > OLD_SECONDS + self._pause_seconds
        return None if is_old else self._fleet

    @property
    def counts_lanes(self) -> bool:
        """Whether somebody keeps the statistics of lanes; True while nobody knows."""
        return self._counts_lanes or self.fleet is None

    def serves(self, pool: str) -> bool:
        """Whether a worker of a pool lives; True while nobody knows."""
        fleet = self.fleet
        return fleet is None or fleet.serves_pool(pool)

    @property
    def ingresses(self) -> int:
        """How many ingresses share the clients; 1 while nobody knows."""
        return 1 if self.fleet is None else self._ingresses

    def marked(self, checks: list[HealthCheck]) -> list[HealthCheck]:
        """Readiness checks: red for streams that take nothing; and one more for each thing that is not well."""
        dead = {each.stream: _dead(each) for each in self._dead}
        marked = [dead.pop(check.name, check) if check.ok else check for check in checks]
        names = {check.name for check in marked}
        return [
            *marked,
            *(check for name, check in dead.items() if name not in names),
            # Whoever reaches the port reads it.
            *(HealthCheck(name=each.check, ok=True, detail=each.for_all or each.detail) for each in self._findings()),
        ]

    def dead(self) -> list[HealthCheck]:
        """The streams that take nothing."""
        return [_dead(each) for each in self._dead]

    def _findings(self) -> Iterable[Finding]:
        return self._found.values() if self.fleet is not None else ()

    async def _round(self) -> None:
        try:
            await self._look()
        finally:
            await asyncio.sleep(self._pause_seconds)

    async def _look(self) -> None:
        fleet, self._dead = await asyncio.gather(
            read_fleet(self._connection, self._pools), dead_streams(self._connection.requests, self._connection.rights)
        )
        self._fleet, self._looked_at = fleet, lease_clock()
        services = Counter(member.service for member in fleet.alive)
        self._counts_lanes, self._ingresses = services["steward"] > 0, max(1, services["ingress"])
        self._pause_seconds = max(self._pause_seconds, PAUSE_PER_MEMBER_SECONDS * len(fleet.members))
        before, self._found = self._found, {each.check: each for each in findings(fleet)}
        self._say(before)
        age = age_seconds((each for each in fleet.statistics if each.pool in self._pools), fleet.at)
        metrics.found({"stored": bool(self._dead)} | {check: check in self._found for check in CHECKS}, age)

    def _say(self, before: dict[str, Finding]) -> None:
        """Say once what is grave, and was so in two looks in a row: a mesh that just starts is not complete."""
        for check in sorted((self._found.keys() & before.keys()) - self._said):
            found = self._found[check]
            if not found.grave:
                continue
            log.warning("mesh.unwell", check=check, detail=found.detail, remedy=found.remedy)
            self._said.add(check)
        for check in sorted(self._said - self._found.keys()):
            log.info("mesh.well_again", check=check)
            self._said.discard(check)


def _dead(dead: DeadStream) -> HealthCheck:
    detail = f"takes nothing any more: {dead.reason}; make room, and restart nats-server"
    return HealthCheck(name=dead.stream, ok=False, detail=detail)
