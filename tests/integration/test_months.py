"""Months of tasks are what the mesh would have left: exactly so many, each of which folds to its record."""

from __future__ import annotations

import asyncio

import pytest

from contracts.codec import decode
from contracts.journal import events
from contracts.journal.events import decode_event, decode_head
from contracts.records.status import TaskRecord
from contracts.tasks import fingerprint
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.broker.direct_get import read_page
from mesh.journal.journal import Journal
from mesh.task.records import record
from tests.support.broker import Broker
from tests.support.ended_tasks import EVENTS_OF_TASK, STATUSES
from tests.support.months import BIG_TENANT, Filler
from tests.support.waiting import until

pytestmark = pytest.mark.integration


async def test_what_is_filled_in_is_exact_and_folds_to_its_record(connection: Connection, broker: Broker) -> None:
    filler = Filler(connection, f"127.0.0.1:{broker.port}")
    await filler.fill(300)
    state = (await connection.requests.api("STREAM.INFO.EVENTS"))["state"]
    assert state["messages"] == 300 * EVENTS_OF_TASK
    assert await filler.hot_tasks() == len(filler.ledger) == 300
    tasks = [filler.ledger[number] for number in range(300)]
    assert len({task.id for task in tasks}) == 300
    assert {task.status for task in tasks} == set(STATUSES)
    assert 100 < sum(task.tenant == BIG_TENANT for task in tasks) < 200
    ids: set[str] = set()
    for task in tasks:
        journal = await Journal.load(connection.requests, task.tenant, task.id)
        entry = await key_value.get(connection.requests, "tasks", f"{task.tenant}.{task.id}")
        assert entry is not None
        assert entry.value is not None
        assert decode(entry.value, TaskRecord) == record(journal.state)
        assert journal.state.status == task.status
        queued = journal.state.queued
        assert queued is not None
        assert queued.request.metadata is not None
        assert queued.request.metadata["order"] == task.order
        assert queued.fingerprint == fingerprint(queued.request)
        page = await read_page(connection.requests, "EVENTS", f"events.*.{task.id}.log", 0, EVENTS_OF_TASK - 1)
        ids |= {decode_head(each.payload).id for each in page.messages}
        assert all(len(each.headers["traceparent"]) == 55 for each in page.messages)
        assert isinstance(decode_event(page.messages[0].payload), events.TaskQueued)
    assert len(ids) == 300 * (EVENTS_OF_TASK - 1)


async def test_who_else_writes_meanwhile_is_noticed(connection: Connection, broker: Broker) -> None:
    filler = Filler(connection, f"127.0.0.1:{broker.port}")

    async def disturb() -> None:
        await until(lambda: len(filler.ledger) > 300)
        await connection.requests.publish(f"events.default.{filler.ledger[0].id}.log", b"{}")

    with pytest.raises(RuntimeError, match="was to be stored"):
        await asyncio.gather(filler.fill(2_000), disturb())
