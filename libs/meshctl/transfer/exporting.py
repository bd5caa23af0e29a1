"""Tasks on their way out: those that are wanted, wherever they lie, each once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime

from contracts.codec import decode
from contracts.errors import TaskmeshError
from contracts.records.archive import PackedTask, PackEntry
from contracts.records.status import Status, TaskRecord
from contracts.streams import TASKS_BUCKET
from mesh.archive.contents import Unreadable, packed_tasks
from mesh.archive.lookup import find
from mesh.archive.pack import milestone_of, packed_task
from mesh.broker.requests import Requests
from mesh.broker.scanning import Scan
from mesh.journal.reading import read_milestones


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which tasks are asked for. Times are those of the last change; `since` is inclusive, `until` is not."""

    tenant: str | None = None
    statuses: frozenset[Status] = frozenset()
    tasks: frozenset[str] = frozenset()
    since: datetime | None = None
    until: datetime | None = None

    def takes(self, record: TaskRecord) -> bool:
        """Whether a task is one of them."""
        return (
            (self.tenant is None or record.tenant == self.tenant)
            and (not self.statuses or record.status in self.statuses)
            and (not self.tasks or record.id in self.tasks)
            and (self.since is None or record.updated_at >= self.since)
            and (self.until is None or record.updated_at < self.until)
        )


async def exported(requests: Requests, wanted: Wanted) -> AsyncGenerator[PackedTask | Unreadable, None]:
    """Yield tasks with their milestones: first those that are not packed, then those that are.

    What is packed meanwhile is found there. Raises `BrokerUnavailable`, `BrokerError`.
    """
    seen: set[tuple[str, str]] = set()
    scan = Scan(requests, TASKS_BUCKET.stream_name)
    after, more = 0, True
    while more:
        page, more = await scan.page(after)
        for stored in page:
            after = stored.sequence
            if not stored.payload:
                continue  # A deleted key leaves an empty marker.
            try:
                record = decode(stored.payload, TaskRecord)
                task = await _hot(requests, record) if wanted.takes(record) else None
            except TaskmeshError as error:
                if getattr(error, "retryable", False):
                    raise
                yield Unreadable(stored.sequence, f"{stored.subject}: {error}")
                continue
            if task is not None and (task.tenant, task.task) not in seen:
                # One that has changed meanwhile comes again, at the end.
                seen.add((task.tenant, task.task))
                yield task

    def is_new(entry: PackEntry) -> bool:
        return wanted.takes(entry.record) and (entry.record.tenant, entry.record.id) not in seen

    async for packed in packed_tasks(requests, is_new):
        yield packed


async def _hot(requests: Requests, record: TaskRecord) -> PackedTask | None:
    """A task that was not packed a moment ago."""
    milestones = await read_milestones(requests, record.tenant, record.id)
    if not milestones:
        return await find(requests, record.tenant, record.id)
    return packed_task(record, [milestone_of(each) for each in milestones])
