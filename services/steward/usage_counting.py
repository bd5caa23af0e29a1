"""Counts what journals say was used, one steward at a time, and lets go of counters that are old.

It goes behind the writers by a second or so, and keeps none of them: what it has not counted yet is in EVENTS, and is
packed only after that.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

import structlog

from contracts.errors import TaskmeshError
from contracts.records.usage import counters_of, day_of
from contracts.streams import EVENTS, USAGE
from mesh.background import repeatedly
from mesh.broker.direct_get import read_next
from mesh.broker.requests import Requests
from mesh.broker.scanning import ALL
from mesh.clock import now
from mesh.ledger.counters import DAYS_KEPT
from mesh.ledger.counting import Counting, LeaseLost, counted_up_to
from mesh.loop_health import LoopHealth

log = structlog.get_logger("steward.usage_counting")

ROUND_SECONDS: Final = 1.0
"""Between two looks for more, and so about how far counters are behind."""
OTHERS_ROUNDS: Final = 5
"""A steward that does not count looks that seldom whether it is to."""
BATCHES_PER_ROUND_MAX: Final = 20
LEAVE_SECONDS_MAX: Final = 2.0
DAYS_SWEPT: Final = 45
"""So many of the days before that are purged at once: a mesh whose stewards were away for longer keeps some."""
SWEEP_EVERY: Final = timedelta(hours=6)


class UsageCounting:
    """Keeps the counters. `owner`: the name of this process."""

    def __init__(self, requests: Requests, owner: str) -> None:
        self._requests = requests
        self._counting = Counting(requests, owner)
        self._rounds_off = 0
        self._swept_at: datetime | None = None

    async def run(self) -> None:
        """Keep counting until cancelled."""
        try:
            await repeatedly(self.round, ROUND_SECONDS, LoopHealth(log, "usage.unavailable"))
        finally:
            with suppress(TaskmeshError, TimeoutError):
                async with asyncio.timeout(LEAVE_SECONDS_MAX):
                    await self._counting.leave()

    async def lag(self, at: datetime) -> timedelta:
        """How long the first message that is not counted has been there. Raises `TaskmeshError`."""
        counted = await counted_up_to(self._requests)
        first = await read_next(self._requests, EVENTS.name, ALL, counted) if counted is not None else None
        return max(timedelta(), at - first.stored_at) if first is not None else timedelta()

    async def round(self) -> None:
        """Count what is there, if that is this steward's to do. Raises `TaskmeshError`."""
        if self._rounds_off > 0:
            self._rounds_off -= 1
            return
        try:
            if not await self._counting.take():
                raise LeaseLost("another process counts")
            for _ in range(BATCHES_PER_ROUND_MAX):
                if not await self._counting.count():
                    break
        except LeaseLost:
            # Another steward was sooner, or somebody holds the counters against the journals.
            self._rounds_off = OTHERS_ROUNDS
            return
        await self._sweep()

    async def _sweep(self) -> None:
        at = now()
        if self._swept_at is not None and timedelta() < at - self._swept_at < SWEEP_EVERY:
            return
        for days in range(DAYS_KEPT, DAYS_KEPT + DAYS_SWEPT):
            await self._requests.purge(USAGE.name, counters_of(None, day_of(at - timedelta(days=days))))
        self._swept_at = at
