"""Milestones are read in their order, each once, however many deltas lie between them."""

from __future__ import annotations

import pytest

from contracts import subjects
from mesh.broker.connection import Connection
from mesh.broker.direct_get import read_page
from mesh.broker.milestones import PAGE_EVENTS_MAX, MilestoneReader
from tests.support.past import PastTask, store

pytestmark = pytest.mark.integration


async def deltas(connection: Connection, task: str, count: int) -> None:
    for _ in range(count - 1):
        await connection.client.publish(subjects.journal_delta("default", task), b"{}")
    if count:
        # Answered once it is stored, and so are those before it.
        await connection.requests.publish(subjects.journal_delta("default", task), b"{}")


async def all_read(connection: Connection, after: int = 0) -> list[int]:
    reader = MilestoneReader(connection.requests)
    found: list[int] = []
    more = True
    while more:
        page = await reader.read(after)
        assert all(stored.subject.endswith(".log") for stored in page.messages)
        found += [stored.sequence for stored in page.messages]
        assert page.looked_to > after or not page.more
        after, more = page.looked_to, page.more
    return found


async def test_each_milestone_is_read_once_whatever_lies_between(connection: Connection) -> None:
    for count in (0, 3, 20, 2 * PAGE_EVENTS_MAX, 1):
        (task,) = await store(connection.requests, [PastTask(ended=True)])
        await deltas(connection, task, count)
        await store(connection.requests, [PastTask(ended=True)] * 150)
    page = await read_page(connection.requests, "EVENTS", subjects.EVENTS_LOG, 0, 10_000, 8 * 1024 * 1024)
    milestones = [stored.sequence for stored in page.messages]
    assert len(milestones) == 4 * 5 * 151
    assert await all_read(connection) == milestones
    middle = milestones[len(milestones) // 2]
    assert await all_read(connection, middle) == [sequence for sequence in milestones if sequence > middle]


async def test_behind_the_last_milestone_all_is_looked_at(connection: Connection) -> None:
    reader = MilestoneReader(connection.requests)
    assert await reader.read(0) == ([], 0, False)
    (task,) = await store(connection.requests, [PastTask(ended=True)])
    await deltas(connection, task, 2 * PAGE_EVENTS_MAX)
    first = await reader.read(0)
    assert len(first.messages) == 4
    assert not first.more
    assert first.looked_to >= PAGE_EVENTS_MAX
