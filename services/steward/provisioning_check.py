"""The provisioning check: streams, consumers and buckets are there, and as declared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from contracts.errors import TaskmeshError
from mesh.broker.provisioning import apply, compare, declared
from mesh.broker.requests import Requests
from mesh.broker.sizing import find_sizes
from mesh.configuration.settings import Settings
from mesh.loop_health import LoopHealth

log = structlog.get_logger("steward.provisioning_check")

INTERVAL_SECONDS = 60.0


async def create_missing(requests: Requests, settings: Settings) -> None:
    """Create what is missing, and give streams of an earlier version what they lack. Raises `TaskmeshError`."""
    wanted = declared(settings, sizes=await find_sizes(requests, settings.configuration))
    for done in await apply(requests, wanted, update=False, widen=settings.upgrade_streams):
        if done.missing:
            log.warning("provisioning.created", kind=done.kind, name=done.name)
        else:
            log.warning("provisioning.upgraded", difference=str(done))


async def check_provisioning(requests: Requests, settings_now: Callable[[], Settings]) -> None:
    """Create what is missing, and say what differs, now and then until cancelled. Takes nothing of what exists."""
    said: set[str] = set()
    health = LoopHealth(log, "provisioning.unavailable")
    while True:
        try:
            settings = settings_now()
            wanted = declared(settings, sizes=await find_sizes(requests, settings.configuration))
            await create_missing(requests, settings)
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
