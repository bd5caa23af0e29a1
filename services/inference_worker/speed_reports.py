"""What this worker has seen of its providers' speed, told to the others, who tell theirs. Not stored."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import nats.errors
import structlog
from nats.aio.msg import Msg

from contracts import subjects
from contracts.codec import decode, encode
from contracts.errors import InvalidPayload
from contracts.records.speeds import SpeedSample
from inference_worker.models.speeds import Speeds
from mesh.broker.connection import Connection
from mesh.clock import lease_clock

log = structlog.get_logger("inference_worker.speed_reports")

REPORT_SECONDS = 1.0
REPORTS_PER_SECOND_MAX = 100.0
"""Of the whole fleet: each worker hears all of them. A large one reports less often."""


class SpeedReporter:
    """Tells and hears. `run` does both, once a pool has a preference, and must be running."""

    def __init__(self, connection: Connection, worker: str, clock: Callable[[], float] = lease_clock) -> None:
        self.speeds = Speeds()
        self._connection = connection
        self._worker = worker
        self._clock = clock
        self._others: set[str] = set()
        """Who has reported since this worker's last report."""
        self._wanted = asyncio.Event()

    def want(self) -> None:
        """A pool chooses by speed: from now on they are told."""
        self._wanted.set()

    async def run(self) -> None:
        """Report about once a second while there is anything to tell, until cancelled."""
        await self._wanted.wait()
        await self._connection.client.subscribe(subjects.PROVIDER_SPEEDS, cb=self._hear)
        while True:
            seconds = max(REPORT_SECONDS, (len(self._others) + 1) / REPORTS_PER_SECOND_MAX)
            self._others.clear()
            # Workers that were started together need not report together.
            await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
            if not self._connection.is_connected:
                self.speeds.take_untold()  # It is old once the broker is back.
                continue
            try:
                await self.report()
            except (nats.errors.Error, OSError) as error:
                log.warning("speeds.not_reported", error=str(error) or type(error).__name__)

    async def report(self) -> None:
        """Publish what was seen since the last time, if anything was."""
        models = self.speeds.take_untold()
        if models:
            sample = SpeedSample(worker=self._worker, models=models)
            await self._connection.client.publish(subjects.PROVIDER_SPEEDS, encode(sample))

    async def _hear(self, message: Msg) -> None:
        try:
            sample = decode(message.data, SpeedSample)
        except InvalidPayload as error:
            log.warning("speeds.unreadable", error=str(error))
            return
        if sample.worker != self._worker:
            self._others.add(sample.worker)
            self.speeds.heard(sample.models, self._clock())
