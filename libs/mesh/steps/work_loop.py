"""The work loop of a worker or runner: its consumers, and what it does with each step."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from mesh.background import background
from mesh.broker.connection import Connection
from mesh.broker.consumption import Consumption
from mesh.broker.lanes import ConsumerSpec
from mesh.broker.places import Places
from mesh.configuration.settings import Settings
from mesh.journal.projection import BackgroundProjection
from mesh.journal.warm import WarmJournals
from mesh.steps.claimed_step import StepHandler
from mesh.steps.step_life import StepLife, Waits

log = structlog.get_logger("mesh.steps.work_loop")


class WorkLoop:
    """Everything between the work queues and a handler, in one process."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        consumers: Sequence[ConsumerSpec],
        handler: StepHandler,
        worker: str,
        journals: WarmJournals | None = None,
        places: Places | None = None,
        waits: Waits | None = None,
    ) -> None:
        """`waits`: where steps wait that are not to be begun now, if there are such."""
        self._projection = BackgroundProjection(connection.requests)
        life = StepLife(
            connection, handler, worker, settings.max_tries, settings.max_deliver, self._projection, journals, waits
        )
        self._consumption = Consumption(
            connection,
            settings,
            consumers,
            life.live,
            settings.worker_concurrency,
            hands_over=True,
            places=places,
        )

    @property
    def steps_running(self) -> int:
        """Steps in this process's hands."""
        return self._consumption.in_hand

    def add(self, consumer: ConsumerSpec) -> None:
        """Pull one more consumer."""
        self._consumption.add(consumer)

    async def run(
        self,
        stopping: asyncio.Event,
        hurrying: asyncio.Event | None = None,
        patient: asyncio.Event | None = None,
    ) -> None:
        """Work until `stopping`; then pull no more, let running steps end, and hand over what does not.

        Once `hurrying` is set they are not waited for; while `patient` is, for as long as they take.
        """
        try:
            async with background(self._consumption.run(hurrying, patient)):
                await stopping.wait()
                log.info("work.draining", steps=self.steps_running)
        finally:
            await self._projection.close()
