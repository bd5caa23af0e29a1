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
SMOOTHING = 0.2
DELIVERIES_PER_SECOND_MAX = 5_000.0
"""Of reports, in the whole fleet: each one that is sent comes to all. So of a large fleet a part reports, drawn anew
each time: it has seen the same providers as the others."""


class Sampling:
    """Whether a worker reports this time, by how many there are.

    That is known from how many others have reported, and how likely it was that each did.
    """

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.workers = 1.0
        """About how many report, or would, this one included."""

    @property
    def share(self) -> float:
        """The part of them that is to report each time."""
        return min(1.0, DELIVERIES_PER_SECOND_MAX / self.workers**2)

    def is_drawn(self, others: int) -> bool:
        """Whether it is this worker's turn; `others` have reported since it was last asked."""
        seen = 1 + others / self.share
        # At once to more, as all may have been started together, and slowly to fewer.
        self.workers = max(seen, self.workers + (seen - self.workers) * SMOOTHING)
        return self._dice.random() < self.share


class SpeedReporter:
    """Tells and hears. `run` does both, once a pool has a preference, and must be running."""

    def __init__(self, connection: Connection, worker: str, clock: Callable[[], float] = lease_clock) -> None:
        self.speeds = Speeds()
        self._connection = connection
        self._worker = worker
        self._clock = clock
        self._others: set[str] = set()
        """Who has reported since this worker's last report."""
        self._sampling = Sampling(random.Random())
        self._wanted = asyncio.Event()

    def want(self) -> None:
        """A pool chooses by speed: from now on they are told."""
        self._wanted.set()

    async def run(self) -> None:
        """Report about once a second while there is anything to tell, until cancelled."""
        await self._wanted.wait()
        await self._connection.client.subscribe(subjects.PROVIDER_SPEEDS, cb=self._hear)
        while True:
            # Workers that were started together need not report together.
            await asyncio.sleep(REPORT_SECONDS * random.uniform(0.8, 1.2))
            is_drawn = self._sampling.is_drawn(len(self._others))
            self._others.clear()
            if not is_drawn or not self._connection.is_connected:
                self.speeds.take_untold()  # By the next time it is old.
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
