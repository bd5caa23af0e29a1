"""Answers that are final ask the stream's leader: a replica that is behind must not decide what becomes of a task."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from contracts import headers, subjects
from contracts.actors import BY_MESH
from contracts.codec import encode
from contracts.journal.events import InputReceived
from contracts.journal.parts import Parent
from contracts.messages.control import CancelCommand, cancel_message_id
from contracts.messages.work import TurnWork
from contracts.records.tools import RESULTS_BUCKET
from contracts.triggers.rules import TriggerRule, TriggerSource
from mesh.background import background
from mesh.broker import object_store
from mesh.broker.connection import Connection
from mesh.broker.direct_get import find_sequence, last_sequence
from mesh.configuration.settings import Settings
from mesh.journal.journal import Journal
from mesh.journal.warm import WarmJournals
from mesh.rules import trigger_bucket
from mesh.steps.postponement import NOT_VISIBLE_DELIVERIES_MAX
from mesh.task.decisions import queued_event
from steward.control_loop import ControlLoop
from tests.integration.test_work import Handler, answer, queues_are_empty, working
from tests.support.checker import read_stored
from tests.support.stale import empty_replicas, replicas_behind
from tests.support.tasks import begin_journal, complete_turn, end_task, publish_work, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.integration


async def status_of(connection: Connection, task: str) -> str:
    return (await Journal.load(connection.requests, "default", task)).state.status


async def test_a_step_whose_journal_only_the_leader_has_waits_for_it_however_often_it_comes(
    connection: Connection, settings: Settings
) -> None:
    work = turn_work()
    journal = Journal(connection.requests, work.tenant, work.task)
    await journal.append(lambda stamp: queued_event(stamp, work), lambda _: True)
    later_turn = replace(work, request=None, accepted_at=None)
    async with working(connection, settings, Handler(answer)):
        with replicas_behind(0) as reads:
            await connection.requests.publish(subjects.turns("default", "normal", "default"), encode(later_turn))
            await until(lambda: len(reads) >= NOT_VISIBLE_DELIVERIES_MAX + 1)
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    assert stored.dead_letters == []
    assert stored.records[work.task]["status"] == "completed"


async def test_the_cancel_of_a_sub_task_that_only_the_leader_has_is_not_taken_for_one_that_has_not_begun(
    connection: Connection, settings: Settings
) -> None:
    journal = await begin_journal(connection.requests, turn_work())
    task = journal.state.task
    command = CancelCommand(task=task, tenant="default", by=BY_MESH)
    async with background(ControlLoop(connection, settings, "steward").run()):
        with replicas_behind(0) as reads:
            subject = subjects.control("cancel", "default")
            await connection.requests.publish(subject, encode(command), {headers.MESSAGE_ID: cancel_message_id(task)})
            await until(lambda: len(reads) >= 2)
        await until(lambda: queues_are_empty(connection))
    assert await status_of(connection, task) == "cancelled"


async def test_a_sub_task_whose_parents_end_only_the_leader_has_does_not_begin(
    connection: Connection, settings: Settings
) -> None:
    parent = await begin_journal(connection.requests, turn_work())
    before = await last_sequence(connection.requests, "EVENTS")
    await complete_turn(parent)
    await end_task(parent)
    child = replace(turn_work(), parent=Parent(parent.state.task, "1-0", 1))

    async def ended() -> bool:
        journal = (await read_stored(connection.requests)).journals.get(child.task, [])
        return bool(journal) and journal[-1].event["type"] in ("task.cancelled", "task.completed")

    with replicas_behind(before):
        async with working(connection, settings, Handler(answer)):
            await publish_work(connection.requests, child)
            await until(ended)
    assert await status_of(connection, child.task) == "cancelled"


async def test_who_has_told_a_task_something_is_asked_of_the_leader(connection: Connection) -> None:
    """Who may approve depends on it: a replica that is behind must hide nobody."""
    journals = WarmJournals(connection.requests)
    journal = await begin_journal(connection.requests, turn_work())
    task = journal.state.task
    before = (await journals.state_of("default", task)).revision
    await journal.append(lambda stamp: InputReceived(*stamp, text="go on", by="key:bob", mode="append"), lambda _: True)
    with replicas_behind(before) as reads:
        reading = asyncio.create_task(journals.state_of("default", task))
        await until(lambda: len(reads) >= 2 or reading.done())
    assert [each.by for each in (await reading).inputs] == ["key:bob"]


async def test_a_step_that_is_refused_gives_up_where_its_task_goes_on_by_it(
    connection: Connection, settings: Settings
) -> None:
    """A turn that its worker has called for, and that this one does not see the need of: it can be replayed."""
    journal = await begin_journal(connection.requests, turn_work())
    await complete_turn(journal)
    work = TurnWork(task=journal.state.task, tenant="default", turn=2, pool="default", priority="normal")
    async with working(connection, settings, Handler(answer)):
        await connection.requests.publish(subjects.turns("default", "normal", "default"), encode(work))
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    [letter] = stored.dead_letters
    assert (letter["task"], letter["step"], letter["gen"]) == (work.task, "2", 0)
    assert letter["errors"][-1]["code"] == "journal-missing"
    assert await status_of(connection, work.task) == "dead_lettered"


async def test_a_strangers_message_pauses_no_task(connection: Connection, settings: Settings) -> None:
    journal = await begin_journal(connection.requests, turn_work())
    work = TurnWork(task=journal.state.task, tenant="default", turn=7, pool="default", priority="normal")
    async with working(connection, settings, Handler(answer)):
        await connection.requests.publish(subjects.turns("default", "normal", "default"), encode(work))
        await until(lambda: queues_are_empty(connection))
    [letter] = (await read_stored(connection.requests)).dead_letters
    assert (letter.get("task"), letter["errors"][-1]["code"]) == (None, "journal-missing")
    assert await status_of(connection, work.task) == "running"


async def test_what_only_the_leader_has_is_found_all_the_same(connection: Connection) -> None:
    """Results, packs, rules and single messages: a replica that is behind says of them that there are none."""
    requests = connection.requests
    payload = b"r" * (object_store.CHUNK_BYTES + 1)
    reference = await object_store.put(requests, RESULTS_BUCKET, "default.behind", payload)
    sequence = (await requests.publish(subjects.control("cancel", "default"), b"{}")).seq
    rule = TriggerRule(name="behind", tenant="default", on=TriggerSource(signal="probe"), task={"input": "hello"})
    with empty_replicas(connection) as asked:
        assert await object_store.get(requests, reference) == payload
        found = await find_sequence(requests, "CONTROL", sequence)
        assert found is not None
        await trigger_bucket.add(requests, rule, replace=False)
        with pytest.raises(trigger_bucket.RuleExists):
            await trigger_bucket.add(requests, rule, replace=False)
        await trigger_bucket.remove(requests, "default", "behind")
        assert await object_store.purge_objects(requests, RESULTS_BUCKET, ["default.behind"]) == 1
        assert await object_store.get(requests, reference) is None
    assert asked
    await requests.delete_message("CONTROL", sequence)
