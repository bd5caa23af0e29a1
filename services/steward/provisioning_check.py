"""The provisioning check: streams, consumers and buckets are there, and as declared."""

from __future__ import annotations

import asyncio

import structlog

from contracts.errors import TaskmeshError
from contracts.records.status import HealthCheck
from mesh.broker.provisioning import apply, compare, find_declared
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.loop_health import LoopHealth

log = structlog.get_logger("steward.provisioning_check")

INTERVAL_SECONDS_MIN, INTERVAL_SECONDS_MAX = 10.0, 60.0
DECLARED_PER_SECOND = 4
"""Streams and consumers that are looked at in a second: a mesh of one pool is looked at each 10 s."""
NAMES_MAX = 4


class Provisioning:
    """Creates what is missing, and says what differs. Changes nothing that exists."""

    def __init__(self, requests: Requests, settings: Settings) -> None:
        self._requests = requests
        self._settings = settings
        self._said: set[str] = set()
        self._interval_seconds = INTERVAL_SECONDS_MIN

    async def run(self) -> None:
        """Look now and then until cancelled."""
        health = LoopHealth(log, "provisioning.unavailable")
        while True:
            try:
                await self._look()
                health.succeeded()
            except TaskmeshError as error:
                health.failed(error)
            await asyncio.sleep(self._interval_seconds)

    def check(self) -> list[HealthCheck]:
        """Whether all was as declared at the last look."""
        if not self._said:
            return [HealthCheck(name="streams", ok=True)]
        more = f" and {len(self._said) - NAMES_MAX} more" if len(self._said) > NAMES_MAX else ""
        detail = f"not as declared: {'; '.join(sorted(self._said)[:NAMES_MAX])}{more}"
        return [HealthCheck(name="streams", ok=False, detail=detail)]

    async def _look(self) -> None:
        wanted = await find_declared(self._requests, self._settings)
        count = len(wanted.streams) + len(wanted.consumers)
        self._interval_seconds = min(INTERVAL_SECONDS_MAX, max(INTERVAL_SECONDS_MIN, count / DECLARED_PER_SECOND))
        for created in await apply(self._requests, wanted, update=False):
            log.warning("provisioning.created", kind=created.kind, name=created.name)
        differences = {str(difference) for difference in await compare(self._requests, wanted)}
        for difference in sorted(differences - self._said):
            log.warning("provisioning.differs", difference=difference, remedy="meshctl streams apply")
        if not differences and self._said:
            log.info("provisioning.as_declared")
        self._said = differences
