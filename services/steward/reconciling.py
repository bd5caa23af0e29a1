"""Looks for tasks that wait for a message which is gone, all the time and a little at a time.

The walk goes along the records, from the oldest, and begins anew at their end. `mesh.journal.reconciliation` says what
is gone; `steward.stranded` is about the opposite: messages that are there, and that nobody gets.
"""

from __future__ import annotations

import asyncio

import structlog

from contracts.errors import TaskmeshError
from mesh.background import repeatedly
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable
from mesh.journal.reconciliation import OpenTask, Reconciliation
from mesh.loop_health import LoopHealth

log = structlog.get_logger("steward.reconciling")

ROUND_SECONDS = 2.0
CIRCLE_SECONDS = 10.0
"""At least this long between two walks along all records."""
RECORDS_PER_ROUND_MAX = 200
OPEN_PER_ROUND_MAX = 20
"""Each costs some requests to the leaders: a mesh that waits for people must not feel it."""
LEASES_MIN = 3
"""A task that is quiet for less may be between two deliveries."""


class Reconciling:
    """Puts back what is gone."""

    def __init__(self, requests: Requests, settings: Settings) -> None:
        quiet_seconds = max(settings.reconcile_after_seconds, LEASES_MIN * settings.ack_wait_seconds)
        self._reconciliation = Reconciliation(requests, quiet_seconds)
        self._cursor = 0

    async def run(self) -> None:
        """Keep looking until cancelled."""
        await repeatedly(self.round, ROUND_SECONDS, LoopHealth(log, "reconciling.unavailable"))

    async def round(self) -> None:
        """Look at the next records. Raises `BrokerUnavailable`."""
        at = await self._reconciliation.broker_time()
        walk = await self._reconciliation.walk(self._cursor, at, RECORDS_PER_ROUND_MAX, OPEN_PER_ROUND_MAX)
        self._cursor = walk.cursor if walk.more else 0
        for task in walk.open:
            try:
                found = await self._reconciliation.examine(task, at)
                if found is not None:
                    await self._reconciliation.put_back(found)
            except BrokerUnavailable:
                raise
            except TaskmeshError as error:
                self._complain(task, error)
        if not walk.more:
            await asyncio.sleep(CIRCLE_SECONDS - ROUND_SECONDS)

    def _complain(self, task: OpenTask, error: TaskmeshError) -> None:
        # It is for people, or for a steward of another version, and must not keep the others.
        log.error("reconciling.unreadable", task=task.task, tenant=task.tenant, error=str(error))
