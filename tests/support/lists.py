"""Tasks for lists, without anybody who runs them: their records, and packs as a steward would write them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contracts import headers
from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.records.status import TaskRecord
from contracts.streams import TASKS_BUCKET
from contracts.subjects import task_key
from ingress.listing.filters import LetterFilter, TaskFilter
from ingress.listing.lists import Lists
from mesh.archive import pack
from mesh.archive.pack import Milestone, Packable
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.clock import now


def task_record(tenant: str = "default", **fields: Any) -> TaskRecord:
    """A record of a task that has just completed, but for what is said."""
    moment = datetime.now(UTC)
    said: dict[str, Any] = {
        "id": new_id(),
        "status": "completed",
        "created_at": moment,
        "updated_at": moment,
        "sequence": 1,
    }
    return TaskRecord(tenant=tenant, pool="default", priority="normal", **(said | fields))


async def put(connection: Connection, record: TaskRecord) -> int:
    """Write a record as a projection does; its revision."""
    key = task_key(record.tenant, record.id)
    return await key_value.put(connection.requests, TASKS_BUCKET.name, key, encode(record))


async def purge_record(connection: Connection, record: TaskRecord) -> None:
    """Purge a record, as who packs a task does, or who sweeps it."""
    subject = f"$KV.tasks.{task_key(record.tenant, record.id)}"
    await connection.requests.api("STREAM.PURGE.KV_tasks", {"filter": subject})


async def pack_tasks(connection: Connection, records: Sequence[TaskRecord], piece: int = 1) -> int:
    """Publish a pack of these tasks, each with one milestone; its sequence in ARCHIVE."""
    tasks = [Packable(record, [Milestone(record.sequence, now(), b'{"type":"task.completed"}')]) for record in records]
    member = pack.member([pack.line(task) for task in tasks])
    directory = pack.directory([pack.entry(task, 0, len(member)) for task in tasks])
    ack = await connection.requests.publish(
        f"archive.{piece}", member + directory, {headers.PACK_DIRECTORY: str(len(member))}
    )
    return ack.seq


@asynccontextmanager
async def open_lists(connection: Connection, folder: Path | None = None) -> AsyncIterator[Lists]:
    """Lists of a process of its own."""
    lists = Lists(connection.requests, folder)
    async with lists.open():
        yield lists


async def listed_tasks(lists: Lists, tenant: str = "default", limit: int = 100, **wanted: Any) -> list[TaskRecord]:
    """A tenant's tasks that fit, from all pages."""
    found: list[TaskRecord] = []
    cursor: str | None = None
    while True:
        page = await lists.tasks(tenant, TaskFilter(**wanted), limit=limit, cursor=cursor)
        assert len(page.tasks) <= limit
        found += page.tasks
        cursor = page.cursor
        if cursor is None:
            return found


async def listed_ids(lists: Lists, tenant: str = "default", limit: int = 100, **wanted: Any) -> list[str]:
    """Their ids."""
    return [record.id for record in await listed_tasks(lists, tenant, limit, **wanted)]


async def listed_letters(lists: Lists, tenant: str = "default", limit: int = 100, **wanted: Any) -> list[Any]:
    """A tenant's dead letters that fit, from all pages."""
    found: list[Any] = []
    cursor: str | None = None
    while True:
        page = await lists.dead_letters(tenant, LetterFilter(**wanted), limit=limit, cursor=cursor)
        assert len(page.dead_letters) <= limit
        found += page.dead_letters
        cursor = page.cursor
        if cursor is None:
            return found
