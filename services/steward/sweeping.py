"""The sweeps of a steward, one after the other, a piece of each at a time: nothing here is urgent."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from mesh.background import repeatedly
from mesh.broker.provisioning import declared
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.loop_health import LoopHealth
from steward.retention import time_of_the_broker
from steward.sweeps.consumers import GoneConsumers
from steward.sweeps.kinds import sweeps
from steward.sweeps.sweep import Sweeping

log = structlog.get_logger("steward.sweeping")

ROUND_SECONDS = 5.0
CONSUMERS_EVERY = 120
"""Rounds between two looks at all consumers."""
LATE = timedelta(hours=1)
"""A record that is so much older than what is packed should have gone with its journal."""


class Sweeps:
    """All of them. `owner`: the name of this process."""

    def __init__(
        self,
        requests: Requests,
        settings: Settings,
        owner: str,
        clock: Callable[[], datetime | None] = time_of_the_broker,
    ) -> None:
        age = settings.pack_age
        late = min(LATE, age)
        self._clock = clock
        self._sweeping = [Sweeping(requests, sweep, owner) for sweep in sweeps(requests, age + late)]
        self._consumers = GoneConsumers(requests, {each.name for each in declared(settings).consumers})
        self._rounds = 0

    async def take(self, settings: Settings) -> None:
        """Leave alone what these settings ask for."""
        self._consumers.wanted = {each.name for each in declared(settings).consumers}

    async def run(self) -> None:
        """Keep sweeping until cancelled."""
        await repeatedly(self.round, ROUND_SECONDS, LoopHealth(log, "sweeps.unavailable"))

    async def round(self) -> None:
        """Sweep a piece of each kind. Raises `TaskmeshError`."""
        at = self._clock()
        if at is None:
            return
        for each in self._sweeping:
            await each.round(at)
        if self._rounds % CONSUMERS_EVERY == 0:
            await self._consumers.round()
        self._rounds += 1
