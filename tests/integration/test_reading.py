"""A journal is read in two parts, at two moments and perhaps from two replicas: what is folded fits together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from contracts import subjects
from mesh.broker.connection import Connection
from mesh.broker.direct_get import Page, read_page
from mesh.errors import JournalCorrupt
from mesh.journal import reading
from mesh.journal.following import Following
from mesh.journal.journal import Journal
from mesh.journal.reading import ASKED_OF_LEADER_MAX
from mesh.journal.warm import WarmJournals
from tests.support.tasks import append_text, begin_journal, claim_first_turn, complete_turn, end_task, turn_work

pytestmark = pytest.mark.integration


@contextmanager
def behind(part: str, sequence: int) -> Iterator[None]:
    """One subject is read from a replica that has nothing above a sequence; the other one from one that has all."""

    async def page_of(requests: Any, stream: str, subject: str, *more: Any) -> Page:
        page = await read_page(requests, stream, subject, *more)
        if subject != part:
            return page
        return Page([each for each in page.messages if each.sequence <= sequence], more=False)

    with mock.patch.object(reading, "read_page", page_of):
        yield


async def say(journal: Journal, count: int, *, turn: int = 1) -> None:
    for number in range(count):
        await append_text(journal, f"{number} ", turn=turn)


@pytest.mark.parametrize("part", [subjects.journal_log, subjects.journal_delta])
async def test_what_one_replica_lacks_between_what_another_has_the_leader_tells(
    connection: Connection, part: Any
) -> None:
    writer = await begin_journal(connection.requests, turn_work())
    task = writer.state.task
    await say(writer, 2)
    seen = writer.state.revision
    warm = await WarmJournals(connection.requests).open("default", task)
    await say(writer, 2)
    await claim_first_turn(writer, "other")
    await say(writer, 3)
    await claim_first_turn(writer, "another")
    with behind(part("default", task), seen):
        loaded = await Journal.load(connection.requests, "default", task)
        await warm.catch_up()
    # Up to what the part that is not behind has last.
    last = writer.state.revision if part is subjects.journal_delta else writer.state.revision - 1
    assert loaded.state.revision == warm.state.revision == last
    await loaded.catch_up()
    await warm.catch_up()
    assert loaded.state == warm.state == writer.state


async def test_a_replica_that_lags_by_much_is_a_read_that_is_behind(connection: Connection) -> None:
    writer = await begin_journal(connection.requests, turn_work())
    seen = writer.state.revision
    await say(writer, ASKED_OF_LEADER_MAX + 2)
    await claim_first_turn(writer, "other")
    with behind(subjects.journal_delta("default", writer.state.task), seen):
        journal = await Journal.load(connection.requests, "default", writer.state.task)
    assert journal.state.next_n == writer.state.next_n - 3
    await journal.catch_up()
    assert journal.state == writer.state


async def test_a_hole_that_the_leader_has_too_is_corrupt(connection: Connection) -> None:
    writer = await begin_journal(connection.requests, turn_work())
    await say(writer, 1)
    gone = writer.state.revision
    await say(writer, 1)
    await connection.requests.delete_message("EVENTS", gone)
    with pytest.raises(JournalCorrupt):
        await Journal.load(connection.requests, "default", writer.state.task)


async def test_a_reader_gets_each_event_once_and_in_order_however_its_parts_lie(connection: Connection) -> None:
    writer = await begin_journal(connection.requests, turn_work())
    for turn in range(1, 6):
        await say(writer, 60, turn=turn)
        await complete_turn(writer, turn=turn)
    await end_task(writer)
    follower = await Following(connection).open("default", writer.state.task, 0)
    assert follower is not None
    sequences = [each.sequence async for batch in follower.batches(1.0) for each in batch]
    page = await read_page(connection.requests, "EVENTS", subjects.journal("default", writer.state.task), 0, 1_000)
    assert sequences == [each.sequence for each in page.messages]
    assert len(sequences) == writer.state.next_n
