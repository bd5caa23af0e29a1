"""Noticing, while a step runs, that it is lost: also when its handler has nothing to append.

The fence tells a writer at its next append. A model that is silent may not lead to one for minutes, so the
owner of a step listens to its task's milestones as the broker republishes them. That is a hint and no more:
what it means is read from the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import nats.errors
import structlog
from nats.aio.msg import Msg

from contracts import headers, subjects
from contracts.journal import events
from mesh.broker.connection import Connection
from mesh.errors import BrokerUnavailable
from mesh.journal.journal import Journal

log = structlog.get_logger("mesh.journal.watching")

FIRST_LOOK_SECONDS = 0.25
"""Between a claim and the subscription something may be written, and is not told: steps that last look once."""
LOOK_SECONDS = 15.0
"""Live messages carry no promise: without any, the journal is read this often."""
STALE_SECONDS = 0.05
"""A replica that has not the news yet is asked again after this."""


async def until_lost(
    connection: Connection, journal: Journal, claim: events.StepClaimed, on_news: Callable[[], None]
) -> None:
    """Return once the journal says that the claim does not own its step any more. Else runs until cancelled.

    `on_news` is called after each look at the journal: something may have been written that the step should know.
    """
    told = _Told()
    subject = subjects.live_log(journal.state.tenant, journal.state.task)
    try:
        subscription = await connection.client.subscribe(subject, cb=told.on_message)
    except (nats.errors.Error, OSError) as error:
        # The broker is gone: the next append, or the lease, will tell.
        log.warning("step.not_watched", error=str(error))
        await asyncio.Event().wait()
        return
    look_seconds = FIRST_LOOK_SECONDS
    try:
        while journal.state.owns(claim):
            sequence = await told.next(look_seconds)
            look_seconds = LOOK_SECONDS
            try:
                await journal.catch_up(sequence)
                on_news()
            except BrokerUnavailable as error:
                log.info("step.not_looked_at", error=str(error))
            if sequence is not None and journal.state.revision < sequence:
                look_seconds = STALE_SECONDS
    finally:
        try:
            if connection.is_connected:
                await subscription.unsubscribe()
        except (nats.errors.Error, OSError):
            pass  # The connection is gone, and the subscription with it.


class _Told:
    """The newest sequence that the broker has told of."""

    def __init__(self) -> None:
        self._sequence = 0
        self._news = asyncio.Event()

    async def on_message(self, message: Msg) -> None:
        sequence = (message.headers or {}).get(headers.SEQUENCE, "")
        # What has no sequence is not the broker's. The step's own appends come by here too.
        if sequence.isascii() and sequence.isdigit() and int(sequence) > self._sequence:
            self._sequence = int(sequence)
            self._news.set()

    async def next(self, timeout_seconds: float) -> int | None:
        """The newest sequence, once there is a new one; None if there is none in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._news.wait()
        except TimeoutError:
            return None
        self._news.clear()
        return self._sequence
