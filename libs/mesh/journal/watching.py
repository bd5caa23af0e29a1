"""Noticing, while a step runs, that it is lost: also when its handler has nothing to append. And making way for others.

The fence tells a writer at its next append. A model that is silent may not lead to one for minutes, so who works on a
task listens to its milestones as the broker republishes them. That is a hint and no more: what it means is read from
the journal. One watch serves all steps of a task in a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import nats.errors
import structlog
from nats.aio.msg import Msg

from contracts import headers, subjects
from contracts.codec import decode
from contracts.errors import TaskmeshError
from contracts.fields import whole_number
from contracts.journal import events
from contracts.messages.control import Hold
from mesh.broker.connection import Connection
from mesh.errors import BrokerUnavailable
from mesh.journal.folded import FoldedJournal
from mesh.journal.journal import Journal

log = structlog.get_logger("mesh.journal.watching")

FIRST_LOOK_SECONDS = 0.25
"""Between a claim and the subscription something may be written, and is not told: steps that last look once."""
LOOK_SECONDS = 15.0
"""Live messages carry no promise: without any, the journal is read this often."""
STALE_SECONDS = 0.05
"""A replica that has not the news yet is asked again after this."""


async def until_lost(journal: Journal, claim: events.StepClaimed, on_news: Callable[[], None]) -> None:
    """Return once the journal says that the claim does not own its step any more. Else runs until cancelled.

    `on_news` is called whenever something was folded that the step may have to know.
    """
    news = asyncio.Event()
    with journal.listening(news.set):
        while journal.state.owns(claim):
            await news.wait()
            news.clear()
            on_news()


@dataclass(slots=True)
class _Watch:
    job: asyncio.Task[None]
    watchers: int = 0


class Watches:
    """The watches of one process, one for each task that is worked on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._watches: dict[FoldedJournal, _Watch] = {}

    @asynccontextmanager
    async def on(self, journal: Journal) -> AsyncIterator[None]:
        """Keep a journal's state up to date while the body runs, and let it be held."""
        folded = journal.folded
        watch = self._watches.get(folded)
        if watch is None:
            watch = self._watches[folded] = _Watch(asyncio.create_task(self._watch(folded)))
        watch.watchers += 1
        try:
            yield
        finally:
            watch.watchers -= 1
            if watch.watchers == 0:
                del self._watches[folded]
                watch.job.cancel()
                await asyncio.gather(watch.job, return_exceptions=True)

    async def _watch(self, folded: FoldedJournal) -> None:
        try:
            await self._listen(folded)
        except Exception as error:
            # The fence and the lease protect the steps without it.
            log.exception("step.watch_broke", error=str(error))

    async def _listen(self, folded: FoldedJournal) -> None:
        told = _Told(folded)
        tenant, task = folded.state.tenant, folded.state.task
        client = self._connection.client
        subscriptions = []
        try:
            subscriptions.append(await client.listen(subjects.live_log(tenant, task), told.on_milestone))
            subscriptions.append(await client.listen(subjects.hold(tenant, task), told.on_hold))
            await _look_when_told(folded, told)
        except (nats.errors.Error, OSError, RuntimeError) as error:
            # The broker is gone (uvloop has a RuntimeError for a line that has just closed): the next append, or the
            # lease, will tell.
            log.warning("step.not_watched", error=str(error))
        finally:
            for subscription in subscriptions:
                try:
                    if self._connection.is_connected:
                        await subscription.unsubscribe()
                except (nats.errors.Error, OSError):
                    pass  # The connection is gone, and the subscription with it.


async def _look_when_told(folded: FoldedJournal, told: _Told) -> None:
    look_seconds = FIRST_LOOK_SECONDS
    while True:
        sequence = await told.next(look_seconds)
        look_seconds = LOOK_SECONDS
        try:
            async with folded.lock:
                # The steps' own appends come by here, too.
                if sequence is None or sequence > folded.state.revision:
                    await folded.catch_up()
        except BrokerUnavailable as error:
            log.info("step.not_looked_at", error=str(error))
        if sequence is not None and folded.state.revision < sequence:
            look_seconds = STALE_SECONDS


class _Told:
    """The newest sequence that the broker has told of."""

    def __init__(self, folded: FoldedJournal) -> None:
        self._folded = folded
        self._sequence = 0
        self._news = asyncio.Event()

    def on_hold(self, message: Msg) -> None:
        try:
            self._folded.pause.ask(decode(message.data, Hold).seconds)
        except TaskmeshError as error:
            log.info("hold.refused", subject=message.subject, error=str(error))

    def on_milestone(self, message: Msg) -> None:
        sequence = whole_number((message.headers or {}).get(headers.SEQUENCE, ""))
        # What has no sequence is not the broker's.
        if sequence is not None and sequence > self._sequence:
            self._sequence = sequence
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
