"""The provisioning check: streams, consumers and buckets are there, and as declared."""

from __future__ import annotations

import asyncio

import structlog

from contracts.errors import TaskmeshError
from mesh.broker.provisioning import apply, compare, find_declared
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.loop_health import LoopHealth

log = structlog.get_logger("steward.provisioning_check")

INTERVAL_SECONDS = 60.0


async def check_provisioning(requests: Requests, settings: Settings) -> None:
    """Create what is missing, and say what differs, now and then until cancelled. Changes nothing that exists."""
    said: set[str] = set()
    health = LoopHealth(log, "provisioning.unavailable")
    while True:
        try:
            wanted = await find_declared(requests, settings)
            for created in await apply(requests, wanted, update=False):
                log.warning("provisioning.created", kind=created.kind, name=created.name)
            differences = {str(difference) for difference in await compare(requests, wanted)}
            for difference in sorted(differences - said):
                log.warning("provisioning.differs", difference=difference, remedy="meshctl streams apply")
            if not differences and said:
                log.info("provisioning.as_declared")
            said = differences
            health.succeeded()
        except TaskmeshError as error:
            health.failed(error)
        await asyncio.sleep(INTERVAL_SECONDS)
