"""Begins the journals of tasks that were accepted, and whose submitter died before it could.

A worker that takes such a task does so itself. One that waits for long, in a lane without a worker, would be forgotten:
its message id is known to TASKS for ten minutes, and a submission that is repeated later, under the same key, would be
taken for a new task, and might be the one that its journal begins with.
"""

from __future__ import annotations

from datetime import timedelta

import structlog

from contracts import headers, subjects
from contracts.errors import TaskmeshError
from contracts.messages.work import TurnWork, decode_work
from contracts.streams import EVENTS, TASKS
from mesh.archive.lookup import journal_of
from mesh.background import repeatedly
from mesh.broker.direct_get import Stored, last_of_many, last_sequence
from mesh.broker.requests import NO_ROOM, Requests
from mesh.broker.scanning import Scan
from mesh.clock import now
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.journal.projection import project
from mesh.journal.settling import publish_outbox
from mesh.journal.submission import begin
from mesh.loop_health import LoopHealth
from mesh.task.outbox import deadline_timer
from mesh.task.records import record

log = structlog.get_logger("steward.unbegun")

ROUND_SECONDS = 5.0
WAITED_SECONDS = 30.0
"""How long a message lies there before its journal is looked for: nearly every submitter has long begun it."""
MESSAGES_PER_PAGE_MAX = 64
PAGES_PER_ROUND_MAX = 16


class Unbegun:
    """Walks along TASKS or BACKLOG, from the oldest message to the first that has not waited for long, each once."""

    def __init__(self, requests: Requests, waited_seconds: float = WAITED_SECONDS, stream: str = TASKS.name) -> None:
        self._requests = requests
        self._stream = stream
        self._scan = Scan(requests, stream)
        self._waited = timedelta(seconds=waited_seconds)
        self._cursor = 0

    async def run(self) -> None:
        """Keep looking until cancelled."""
        await repeatedly(self.round, ROUND_SECONDS, LoopHealth(log, "unbegun.unavailable"))

    async def round(self) -> None:
        """Begin what has waited for long, as far as the bound goes. Raises `TaskmeshError`."""
        for _ in range(PAGES_PER_ROUND_MAX):
            if not await self._page():
                return

    async def _page(self) -> bool:
        """Look at a page; whether more may be due."""
        page = await self._scan.page(self._cursor, MESSAGES_PER_PAGE_MAX)
        if not page.messages:
            if self._cursor > 0 and await last_sequence(self._requests, self._stream) < self._cursor:
                self._cursor = 0  # The stream was made anew.
            return False
        before = now() - self._waited
        due = [message for message in page.messages if message.stored_at <= before]
        works = [(message, work) for message in due if (work := _first_turn(message)) is not None]
        begun = await self._begun([work for _, work in works])
        begun |= await self._packed([work for _, work in works if work.task not in begun])
        for message, work in works:
            if work.task not in begun:
                await self._begin(work, message.headers.get(headers.TRACEPARENT))
            # Of two messages of one task the first is the one that was accepted.
            begun.add(work.task)
            self._cursor = message.sequence
        if due:
            self._cursor = due[-1].sequence
        return page.more and len(due) == len(page.messages)

    async def _begun(self, works: list[TurnWork]) -> set[str]:
        """The tasks that have a journal, as one replica sees it: the fence of an append knows better."""
        logs = {subjects.journal_log(work.tenant, work.task): work.task for work in works}
        return {logs[there] for there in await last_of_many(self._requests, EVENTS.name, logs)}

    async def _packed(self, works: list[TurnWork]) -> set[str]:
        """Those of them that have ended so long ago that they are packed: their messages were forgotten."""
        return {work.task for work in works if await journal_of(self._requests, work.tenant, work.task)}

    async def _begin(self, work: TurnWork, traceparent: str | None) -> None:
        try:
            state = await begin(self._requests, work, traceparent)
            if state is None:
                return
            log.warning("task.begun_late", task=work.task, tenant=work.tenant)
            await project(self._requests, record(state))
            await publish_outbox(self._requests, deadline_timer(state), traceparent)
        except BrokerUnavailable:
            raise
        except TaskmeshError as error:
            if isinstance(error, BrokerError) and error.number in NO_ROOM:
                raise  # There may be room later, and until then for no other one either.
            log.error("task.not_begun", task=work.task, tenant=work.tenant, error=str(error))


def _first_turn(message: Stored) -> TurnWork | None:
    """The task that a message is; None for one that a worker will refuse."""
    try:
        work = decode_work(message.payload, message.subject)
    except TaskmeshError:
        return None
    return work if isinstance(work, TurnWork) and work.request is not None and work.accepted_at is not None else None
