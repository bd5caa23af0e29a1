"""Messages of tasks that have ended while they waited in BACKLOG are taken out of it.

A tenant may have thousands there, and all of them may be cancelled at once: to look for each among all the others would
take a day for an hour's work. So what was passed on the way to one is remembered for a while.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from datetime import datetime
from typing import Final

from contracts.streams import BACKLOG, LANE_BACKLOG_MAX
from contracts.subjects import LaneSubject
from mesh.admission.backlog import PAGES_MAX, backlog_subject, task_of, withdraw
from mesh.broker.direct_get import Stored, find_sequence, read_page
from mesh.broker.requests import Requests
from mesh.clock import lease_clock

QUEUES_MAX: Final = 64
"""Tenants' queues of which it is known where each task is: those that were asked for last."""
KNOWN_SECONDS: Final = 60.0
"""So long after it was asked for last."""
TASKS_MAX: Final = 2 * LANE_BACKLOG_MAX
"""Tasks of one queue: what moves on meanwhile is forgotten with all of it, and looked for anew."""


class _Queue:
    """Where tasks are in one tenant's queue, up to a sequence."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.places: dict[str, int] = {}
        self.after = 0
        self.asked_at = float("-inf")

    def is_asked_often(self) -> bool:
        """Whether it was asked for a moment ago as well. Where one alone is, its time of acceptance is near enough."""
        before, self.asked_at = self.asked_at, lease_clock()
        return self.asked_at - before <= KNOWN_SECONDS

    def forget(self) -> None:
        self.places, self.after = {}, 0


class Withdrawals:
    """Takes them out, for one process."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._queues: OrderedDict[str, _Queue] = OrderedDict()

    async def withdraw(self, lane: LaneSubject, task: str, accepted_at: datetime) -> bool:
        """Delete the message of a task that has ended while it waited. False if there is none.

        Raises `BrokerUnavailable`, `BrokerError`.
        """
        subject = backlog_subject(lane)
        queue = self._queue(subject)
        if not queue.is_asked_often():
            return await withdraw(self._requests, lane, task, accepted_at)
        async with queue.lock:
            message = await self._where_it_was(queue, subject, task) or await self._further_on(queue, subject, task)
        return message is not None and await self._requests.delete_message(BACKLOG.name, message.sequence)

    async def _where_it_was(self, queue: _Queue, subject: str, task: str) -> Stored | None:
        """The task's message where it was passed; None if it never was, or has moved on since."""
        sequence = queue.places.pop(task, None)
        message = await find_sequence(self._requests, BACKLOG.name, sequence) if sequence is not None else None
        if message is None or (message.subject == subject and task_of(message) == task):
            return message
        queue.forget()  # It is another stream, whose sequences have begun anew.
        return None

    async def _further_on(self, queue: _Queue, subject: str, task: str) -> Stored | None:
        """The task's message behind all that was passed so far."""
        for _ in range(PAGES_MAX):
            found: Stored | None = None
            page = await read_page(self._requests, BACKLOG.name, subject, queue.after)
            for message in page.messages:
                queue.after = message.sequence
                known = task_of(message)
                if known == task:
                    found = message
                elif known is not None:
                    queue.places[known] = message.sequence
            if found is not None or not page.more or not page.messages:
                return found
        return None

    def _queue(self, subject: str) -> _Queue:
        queue = self._queues.setdefault(subject, _Queue())
        self._queues.move_to_end(subject)
        if len(self._queues) > QUEUES_MAX:
            self._queues.popitem(last=False)
        if lease_clock() - queue.asked_at > KNOWN_SECONDS or len(queue.places) > TASKS_MAX:
            queue.forget()
        return queue
