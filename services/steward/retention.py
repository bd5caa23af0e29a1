"""Retention: deltas go a day after their turn, tasks are packed a day after their end, packs go some weeks after that.

Three walks, which any number of stewards share. A round does a little of each, and costs what has become due, however
much is stored. How old a message is the broker says, who stamps each one as it stores it, whatever time its writers go
by.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

import structlog

from contracts.errors import TaskmeshError
from mesh.broker.requests import Requests
from mesh.clock import MESH_CLOCK, now
from mesh.configuration.settings import Settings
from mesh.loop_health import LoopHealth
from steward.archiving.deltas import Deltas
from steward.archiving.packing import Packing
from steward.archiving.packs import Packs

log = structlog.get_logger("steward.retention")

ROUND_SECONDS = 1.0
"""At least this long between rounds when nothing more is due."""
SHARE_MAX = 0.1
"""How much of the time rounds may take while more is due: what they do not use is for those who wait."""
LEAVE_SECONDS_MAX = 2.0
"""A lease that can't be given back ends by itself."""
REST_SECONDS_MAX = 30.0
"""A round that stalled with its broker says nothing of how long the next one takes."""


def time_of_the_broker() -> datetime | None:
    """The time, once the broker has told it: a purge can't be taken back, and this machine's clock may be wrong."""
    return now() if MESH_CLOCK.is_learnt else None


def pause_seconds(round_seconds: float, *, more: bool) -> float:
    """How long to rest after a round that took this long: the slower the broker answers, the longer."""
    rest = min(REST_SECONDS_MAX, round_seconds * (1 / SHARE_MAX - 1))
    return rest if more else max(ROUND_SECONDS, rest)


class Retention:
    """Does what is due, a little at a time. `owner`: the name of this process."""

    def __init__(
        self,
        requests: Requests,
        settings: Settings,
        owner: str,
        clock: Callable[[], datetime | None] = time_of_the_broker,
    ) -> None:
        self._clock = clock
        self._packing = Packing(requests, settings, owner)
        self._deltas = Deltas(requests, timedelta(hours=settings.delta_retention_hours), settings.pack_age, owner)
        self._packs = Packs(requests, settings.retention_age, owner)

    async def run(self) -> None:
        """Keep going round until cancelled."""
        try:
            await self._rounds()
        finally:
            await self._leave()

    async def _rounds(self) -> None:
        health = LoopHealth(log, "retention.unavailable")
        while True:
            began_at = time.monotonic()
            more = False
            try:
                more = await self.round()
                health.succeeded()
            except TaskmeshError as error:
                health.failed(error)
            await asyncio.sleep(pause_seconds(time.monotonic() - began_at, more=more))

    async def _leave(self) -> None:
        """So that nobody has to wait for the lease of one that was told to stop."""
        at = self._clock()
        with suppress(TaskmeshError, TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS_MAX):
                if at is not None:
                    await self._packing.leave(at)

    async def lags(self, at: datetime) -> dict[str, timedelta]:
        """How far each walk is behind. Raises `TaskmeshError`."""
        return {
            "packing": await self._packing.lag(at),
            "deltas": await self._deltas.lag(at),
            "packs": await self._packs.lag(at),
        }

    async def round(self) -> bool:
        """Do the next piece of each walk; whether more may be due. Raises `TaskmeshError`."""
        at = self._clock()
        if at is None:
            return False
        more = False
        failure: TaskmeshError | None = None
        # What makes room comes first, and one that fails keeps none of the others.
        for each in (self._packs, self._deltas, self._packing):
            try:
                more = await each.round(at) or more
            except TaskmeshError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return more
