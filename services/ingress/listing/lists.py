"""The lists themselves: a page of tasks, how many there are of each status, a page of dead letters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from contracts.api.dead_letters import DeadLetterList
from contracts.records.status import Status, TaskCounts, TaskList
from ingress.listing.filters import LetterFilter, TaskFilter
from ingress.listing.following import Following
from ingress.listing.index import Index
from ingress.listing.keys import letter_cursor, parse_letter_cursor, parse_task_cursor, task_cursor
from ingress.listing.store import Store
from mesh.background import background
from mesh.broker.requests import Requests


class Lists:
    """Answers lists from the index, once it has what was stored before they were asked for.

    Each raises `InvalidPayload` for a cursor that is none, `ListUnavailable`, `BrokerUnavailable`.
    """

    def __init__(self, requests: Requests, folder: Path | None) -> None:
        """`folder`: where the index lies; None is a file that goes with the process."""
        self._store = Store(folder)
        self._following = Following(requests, self._store)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Keep the index up to date while the body runs."""
        try:
            async with background(self._following.run()):
                yield
        finally:
            # One that is not built yet is not worth the wait for the disk.
            await self._store.close(is_kept=self._following.is_built)

    async def tasks(self, tenant: str, wanted: TaskFilter, *, limit: int, cursor: str | None) -> TaskList:
        """A page of a tenant's tasks, the most recently changed first."""
        first = parse_task_cursor(cursor) if cursor is not None else None
        await self._following.catch_up()
        found = await self._store.run(Index.list_tasks, tenant, wanted, limit, first)
        return TaskList(tasks=found.rows, cursor=None if found.next is None else task_cursor(found.next))

    async def counts(self, tenant: str) -> TaskCounts:
        """How many tasks a tenant has of each status."""
        await self._following.catch_up()
        return TaskCounts(counts=await self._store.run(Index.counts, tenant))

    async def counts_of_all(self) -> dict[Status, int]:
        """How many tasks of each status there are, of all tenants: for operators."""
        await self._following.catch_up()
        return await self._store.run(Index.counts_of_all)

    async def dead_letters(
        self, tenant: str, wanted: LetterFilter, *, limit: int, cursor: str | None
    ) -> DeadLetterList:
        """A page of a tenant's dead letters, the newest first."""
        first = parse_letter_cursor(cursor) if cursor is not None else None
        await self._following.catch_up()
        found = await self._store.run(Index.list_letters, tenant, wanted, limit, first)
        return DeadLetterList(dead_letters=found.rows, cursor=None if found.next is None else letter_cursor(found.next))
