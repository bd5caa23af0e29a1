"""The provisioning check: streams, consumers and buckets are there, and as declared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from contracts.errors import TaskmeshError
from contracts.records.status import HealthCheck
from mesh.broker.provisioning import apply, compare, find_declared
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.loop_health import LoopHealth
from mesh.wording import first_few

log = structlog.get_logger("steward.provisioning_check")

INTERVAL_SECONDS_MIN, INTERVAL_SECONDS_MAX = 10.0, 60.0
DECLARED_PER_SECOND = 4
"""Streams and consumers that are looked at in a second: a mesh of one pool is looked at each 10 s."""


async def create_missing(requests: Requests, settings: Settings) -> None:
    """Create what is missing, and give streams of an earlier version what they lack. Raises `TaskmeshError`."""
    wanted = await find_declared(requests, settings)
    for done in await apply(requests, wanted, update=False, widen=settings.upgrade_streams):
        if done.missing:
            log.warning("provisioning.created", kind=done.kind, name=done.name)
        else:
            log.warning("provisioning.upgraded", difference=str(done))


class Provisioning:
    """Creates what is missing, gives streams of an earlier version what they lack, and says what differs."""

    def __init__(self, requests: Requests, settings_now: Callable[[], Settings]) -> None:
        self._requests = requests
        self._settings_now = settings_now
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
        detail = f"not as declared: {first_few(sorted(self._said), separator='; ')}"
        return [HealthCheck(name="streams", ok=False, detail=detail)]

    async def _look(self) -> None:
        settings = self._settings_now()
        wanted = await find_declared(self._requests, settings)
        count = len(wanted.streams) + len(wanted.consumers)
        self._interval_seconds = min(INTERVAL_SECONDS_MAX, max(INTERVAL_SECONDS_MIN, count / DECLARED_PER_SECOND))
        await create_missing(self._requests, settings)
        differences = {str(difference) for difference in await compare(self._requests, wanted)}
        for difference in sorted(differences - self._said):
            log.warning("provisioning.differs", difference=difference, remedy="meshctl streams apply")
        if not differences and self._said:
            log.info("provisioning.as_declared")
        self._said = differences
