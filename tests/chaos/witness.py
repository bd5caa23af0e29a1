"""A witness: it reads along in EVENTS, and keeps what is purged there later.

What was purged before it could look, since its broker was dead or its machine busy, it knows from the archive: all but
the deltas.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict

from contracts import subjects
from contracts.errors import TaskmeshError
from mesh.archive.lookup import find
from mesh.broker.direct_get import read_page
from mesh.broker.requests import Requests
from tests.chaos.clients import TENANT
from tests.support.checker import StoredEvent

LOOK_SECONDS = 0.05
"""Nothing is purged that is younger than some of these."""


class Witness:
    """All events of a mesh, by task, as they were stored."""

    def __init__(self, requests: Requests) -> None:
        self.journals: dict[str, list[StoredEvent]] = defaultdict(list)
        self.partial: set[str] = set()
        """Tasks of which it has not seen all deltas."""
        self._requests = requests
        self._after = 0
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Read along until cancelled. A broker that is dead forgets nothing."""
        while True:
            await self.caught_up()
            await asyncio.sleep(LOOK_SECONDS)

    async def caught_up(self) -> None:
        """Look, as soon as there is a broker."""
        while True:
            try:
                await self.look()
            except TaskmeshError:
                await asyncio.sleep(LOOK_SECONDS)
            else:
                return

    async def journal(self, task: str) -> list[StoredEvent]:
        """All of a task's journal by now; its milestones at least. Raises `BrokerUnavailable`."""
        await self.caught_up()
        journal = self.journals[task]
        if [each.event["n"] for each in journal] != list(range(len(journal))):
            self.partial.add(task)
            known = {each.sequence for each in journal}
            packed = await find(self._requests, TENANT, task)
            for each in packed.events if packed is not None else []:
                if each.sequence not in known:
                    payload = bytes(each.event)
                    journal.append(StoredEvent(each.sequence, task, payload, json.loads(payload)))
            journal.sort(key=lambda each: each.sequence)
        return journal

    async def look(self) -> None:
        """Read what there is by now. Raises `BrokerUnavailable`."""
        async with self._lock:
            more = True
            while more:
                page = await read_page(self._requests, "EVENTS", "events.>", self._after)
                for each in page.messages:
                    task = subjects.parse_journal(each.subject).task
                    event = json.loads(each.payload)
                    self.journals[task].append(StoredEvent(each.sequence, task, each.payload, event))
                    self._after = each.sequence
                more = page.more
