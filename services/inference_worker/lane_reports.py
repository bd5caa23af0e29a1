"""What this worker saw of its lanes, told to whoever keeps their statistics. Not stored: a lost report is no loss."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import datetime

import nats.errors
import structlog

from contracts import subjects
from contracts.codec import encode
from contracts.journal.events import TurnCompleted
from contracts.messages.work import TurnWork
from contracts.records.status import LaneSample
from mesh.broker.connection import Connection
from mesh.clock import now
from mesh.task.budget import tokens

log = structlog.get_logger("inference_worker.lane_reports")

REPORT_SECONDS = 1.0
WAITS_MAX = 64
"""Waits in one report; of more, an even choice."""
OUTPUTS_MAX = 64
"""Turns in one report of which it is told what they have put out: the last ones."""
TENANTS_MAX = 256
"""Tenants in one report; those that have used less come with the next one."""


@dataclass(slots=True)
class LaneTally:
    """A lane since the last report."""

    finished: int = 0
    busy_seconds: float = 0.0
    waits_seen: int = 0
    wait_seconds: list[float] = field(default_factory=list)
    tokens: Counter[str] = field(default_factory=Counter)
    begun: Counter[str] = field(default_factory=Counter)
    output_tokens: deque[int] = field(default_factory=lambda: deque(maxlen=OUTPUTS_MAX))

    def add_turn(self, work: TurnWork, completed: TurnCompleted | None, seconds: float = 0.0) -> None:
        """Count a turn that is over, and had a place for so long; and what its tenant has used by it."""
        self.finished += 1
        self.busy_seconds += seconds
        if work.turn == 1:
            self.begun[work.tenant] += 1
        self.tokens[work.tenant] += 0 if completed is None else tokens(completed.usage)
        if completed is not None:
            self.output_tokens.append(completed.usage.output_tokens)

    def take(self) -> tuple[dict[str, int], dict[str, int]]:
        """Tokens and first turns of the tenants that have used most; what is told is no longer here."""
        told = [tenant for tenant, _ in self.tokens.most_common(TENANTS_MAX)]
        begun = {tenant: self.begun.pop(tenant) for tenant in told if tenant in self.begun}
        return {tenant: self.tokens.pop(tenant) for tenant in told}, begun

    def add_wait(self, seconds: float) -> None:
        """Count a wait. Each of those seen is kept with the same chance (reservoir sampling)."""
        self.waits_seen += 1
        if len(self.wait_seconds) < WAITS_MAX:
            self.wait_seconds.append(seconds)
            return
        place = random.randrange(self.waits_seen)
        if place < WAITS_MAX:
            self.wait_seconds[place] = seconds


class LaneReporter:
    """Gathers samples, and publishes them while there are any. `claimed` and `finished` fit a `TurnHandler`."""

    def __init__(self, connection: Connection, worker: str) -> None:
        self._connection = connection
        self._worker = worker
        self._tallies: dict[tuple[str, str], LaneTally] = {}

    def claimed(self, pool: str, priority: str, wait_seconds: float) -> None:
        """A turn was claimed for the first time, so long after it was accepted."""
        self._tally(pool, priority).add_wait(wait_seconds)

    def finished(self, work: TurnWork, completed: TurnCompleted | None, claimed_at: datetime) -> None:
        """A turn is over, which was claimed then."""
        seconds = max(0.0, (now() - claimed_at).total_seconds())
        self._tally(work.pool, work.priority).add_turn(work, completed, seconds)

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
            used, begun = tally.take()
            sample = LaneSample(
                worker=self._worker,
                finished=tally.finished,
                wait_seconds=tally.wait_seconds,
                tokens=used,
                begun=begun,
                output_tokens=list(tally.output_tokens),
                busy_seconds=round(tally.busy_seconds, 4),
            )
            if tally.tokens:
                left = self._tally(pool, priority)
                left.tokens.update(tally.tokens)
                left.begun.update(tally.begun)
            await self._connection.client.publish(subjects.lane_statistics(pool, priority), encode(sample))

    def _tally(self, pool: str, priority: str) -> LaneTally:
        return self._tallies.setdefault((pool, priority), LaneTally())
