"""Retention against a real broker: what is due goes, what lives stays, and doing it again harms nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contracts import subjects
from mesh.connection import Connection
from mesh.fold import record
from mesh.journal import Journal
from mesh.projection import project
from mesh.settings import Settings
from steward.retention import Retention
from tests.support.checker import read_stored
from tests.support.tasks import (
    append_text,
    begin_journal,
    claim_first_turn,
    complete_turn,
    end_task,
    publish_work,
    turn_work,
)

pytestmark = pytest.mark.integration


async def ended_task(connection: Connection) -> Journal:
    journal = await begin_journal(connection.requests, turn_work())
    await append_text(journal, "one ")
    await append_text(journal, "two")
    await complete_turn(journal)
    await end_task(journal)
    await project(connection.requests, record(journal.state))
    return journal


def keeping(connection: Connection, settings: Settings, *, days: float, hours: float) -> Retention:
    return Retention(connection.requests, replace(settings, retention_days=days, delta_retention_hours=hours))


async def test_an_ended_task_goes_whole_and_a_living_one_stays(connection: Connection, settings: Settings) -> None:
    ended = await ended_task(connection)
    living = await begin_journal(connection.requests, turn_work())
    await append_text(living, "still here")
    await project(connection.requests, record(living.state))
    retention = keeping(connection, settings, days=0, hours=0)
    await retention.round()
    await retention.round()
    stored = await read_stored(connection.requests)
    assert set(stored.journals) == set(stored.records) == {living.state.task}
    assert len(stored.journals[living.state.task]) == living.state.next_n
    # It can still go on: its fence holds.
    await append_text(living, ".")
    # A record that comes late, of a process that slept, does not stay.
    await project(connection.requests, record(ended.state))
    await retention.round()
    assert set((await read_stored(connection.requests)).records) == {living.state.task}


async def test_what_is_young_stays(connection: Connection, settings: Settings) -> None:
    journal = await ended_task(connection)
    await keeping(connection, settings, days=1, hours=1).round()
    stored = await read_stored(connection.requests)
    assert len(stored.journals[journal.state.task]) == journal.state.next_n
    assert set(stored.records) == {journal.state.task}


async def test_deltas_go_up_to_the_last_completed_turn_and_the_journal_folds_to_the_same(
    connection: Connection, settings: Settings
) -> None:
    journal = await begin_journal(connection.requests, turn_work())
    await append_text(journal, "first")
    await complete_turn(journal)
    await append_text(journal, "second, open", turn=2)
    await project(connection.requests, record(journal.state))
    await keeping(connection, settings, days=1, hours=0).round()
    stored = await read_stored(connection.requests)
    types = [event.event["type"] for event in stored.journals[journal.state.task]]
    assert types == ["task.queued", "step.claimed", "turn.completed", "output.delta"]
    again = await Journal.load(connection.requests, "default", journal.state.task)
    assert record(again.state) == record(journal.state)
    assert (again.state.turn(1).text, again.state.turn(2).text) == ("first", "second, open")
    await claim_first_turn(again, "next")


async def test_a_task_stays_while_a_message_as_old_as_its_end_waits(connection: Connection, settings: Settings) -> None:
    work = turn_work()
    ack = await publish_work(connection.requests, work)
    journal = await begin_journal(connection.requests, work)
    await end_task(journal)
    await project(connection.requests, record(journal.state))
    retention = keeping(connection, settings, days=0, hours=0)
    await retention.round()
    assert set((await read_stored(connection.requests)).records) == {work.task}
    lane = subjects.tasks(work.pool, work.priority, work.tenant)
    await connection.requests.api("STREAM.PURGE.TASKS", {"filter": lane, "seq": ack.seq + 1})
    await retention.round()
    stored = await read_stored(connection.requests)
    assert not stored.records
    assert not stored.journals


async def test_a_steward_that_died_between_journal_and_record_is_made_up_for(
    connection: Connection, settings: Settings
) -> None:
    journal = await ended_task(connection)
    subject = subjects.journal("default", journal.state.task)
    await connection.requests.api("STREAM.PURGE.EVENTS", {"filter": subject})
    await keeping(connection, settings, days=0, hours=0).round()
    assert not (await read_stored(connection.requests)).records
