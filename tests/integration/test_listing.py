"""Listing against a real broker: few records among many, many records, and the bounds of a page."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec
import pytest

from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.records.status import TaskRecord
from contracts.subjects import task_key
from ingress.task_listing import list_tasks
from mesh.broker import key_value, reverse_scan
from mesh.broker.connection import Connection

pytestmark = pytest.mark.integration


def task_record(tenant: str) -> TaskRecord:
    moment = datetime.now(UTC)
    return TaskRecord(
        id=new_id(),
        tenant=tenant,
        status="completed",
        pool="default",
        priority="normal",
        created_at=moment,
        updated_at=moment,
        sequence=1,
    )


async def put_many(connection: Connection, tenant: str, count: int) -> list[str]:
    """Records of as many tasks, in the order in which they were written."""
    ids: list[str] = []
    for _ in range(count):
        record = task_record(tenant)
        await key_value.put(connection.requests, "tasks", task_key(tenant, record.id), encode(record))
        ids.append(record.id)
    return ids


async def list_all(connection: Connection, tenant: str, limit: int) -> list[str]:
    ids: list[str] = []
    cursor: str | None = None
    while True:
        page = await list_tasks(connection.requests, tenant, status=None, limit=limit, cursor=cursor)
        assert len(page.tasks) <= limit
        ids += [task.id for task in page.tasks]
        cursor = page.cursor
        if cursor is None:
            return ids


async def test_records_are_listed_once_each_from_the_newest_whatever_lies_between(connection: Connection) -> None:
    old = await put_many(connection, "few", 3)
    await asyncio.gather(*(put_many(connection, "many", 100) for _ in range(10)))
    new = await put_many(connection, "few", 2)
    assert await list_all(connection, "few", 2) == [*reversed(new), *reversed(old)]
    assert len(set(await list_all(connection, "many", 100))) == 1000


async def test_a_window_with_too_many_records_is_made_smaller(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reverse_scan, "WINDOW_MESSAGES_MAX", 7)
    monkeypatch.setattr(reverse_scan, "WINDOW_FIRST", 500)
    ids = await put_many(connection, "dense", 300)
    assert await list_all(connection, "dense", 9) == ids[::-1]


async def test_a_tenant_without_tasks_has_an_empty_list(connection: Connection) -> None:
    await put_many(connection, "other", 5)
    page = await list_tasks(connection.requests, "nobody", status=None, limit=10, cursor=None)
    assert msgspec.to_builtins(page) == {"tasks": [], "cursor": None}
