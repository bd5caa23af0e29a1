"""What this worker saw of its lanes, told to whoever keeps their statistics. Not stored: a lost report is no loss."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from datetime import datetime

import nats.errors
import structlog

from contracts import subjects
from contracts.codec import encode
from contracts.messages.work import TurnWork
from contracts.records.status import LaneSample
from mesh.broker.connection import Connection
from mesh.clock import now

log = structlog.get_logger("inference_worker.lane_reports")

REPORT_SECONDS = 1.0
WAITS_MAX = 64
"""Waits in one report; of more, an even choice."""
TENANTS_MAX = 256
"""Tenants that one report names. Turns of others count for their lane alone."""


@dataclass(slots=True)
class LaneTally:
    """A lane since the last report."""

    finished: int = 0
    begun: dict[str, int] = field(default_factory=dict)
    busy_seconds: float = 0.0
    waits_seen: int = 0
    wait_seconds: list[float] = field(default_factory=list)

    def add_wait(self, seconds: float) -> None:
        """Count a wait. Each of those seen is kept with the same chance (reservoir sampling)."""
        self.waits_seen += 1
        if len(self.wait_seconds) < WAITS_MAX:
            self.wait_seconds.append(seconds)
            return
        place = random.randrange(self.waits_seen)
        if place < WAITS_MAX:
            self.wait_seconds[place] = seconds

    def add_turn(self, work: TurnWork, seconds: float) -> None:
        """Count a turn that is over, and had a place for so long."""
        self.finished += 1
        self.busy_seconds += seconds
        if work.turn == 1:
            self.begun[work.tenant] = self.begun.get(work.tenant, 0) + 1


class LaneReporter:
    """Gathers samples, and publishes them while there are any. `claimed` and `finished` fit a `TurnHandler`."""

    def __init__(self, connection: Connection, worker: str) -> None:
        self._connection = connection
        self._worker = worker
        self._tallies: dict[tuple[str, str], LaneTally] = {}

    def claimed(self, pool: str, priority: str, wait_seconds: float) -> None:
        """A turn was claimed for the first time, so long after it was accepted."""
        self._tally(pool, priority).add_wait(wait_seconds)

    def finished(self, work: TurnWork, claimed_at: datetime) -> None:
        """A turn is over, which was claimed then."""
        seconds = max(0.0, (now() - claimed_at).total_seconds())
        self._tally(work.pool, work.priority).add_turn(work, seconds)

    async def run(self) -> None:
        """Report about once a second, until cancelled. While the broker is away, samples gather."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            if not self._connection.is_connected:
                continue
            try:
                await self.report()
            except (nats.errors.Error, OSError) as error:
                log.warning("lanes.not_reported", error=str(error) or type(error).__name__)

    async def report(self) -> None:
        """Publish what has gathered, one message for each lane."""
        tallies, self._tallies = self._tallies, {}
        for (pool, priority), tally in tallies.items():
            sample = LaneSample(
                worker=self._worker,
                finished=tally.finished,
                wait_seconds=tally.wait_seconds,
                begun=tally.begun,
                busy_seconds=round(tally.busy_seconds, 4),
            )
            await self._connection.client.publish(subjects.lane_statistics(pool, priority), encode(sample))

    def _tally(self, pool: str, priority: str) -> LaneTally:
        return self._tallies.setdefault((pool, priority), LaneTally())
