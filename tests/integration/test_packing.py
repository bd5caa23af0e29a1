"""Packing against a real broker: whatever is packed is served as before, and whoever dies on the way loses nothing."""

from __future__ import annotations

import gzip
import json
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace as replace_work

from contracts import subjects
from contracts.codec import encode
from contracts.errors import InvalidPayload
from contracts.identifiers import new_id, task_id_for_key
from contracts.journal import events
from contracts.tasks import TaskRequest
from mesh import faults
from mesh.archive import lookup
from mesh.broker.connection import Connection
from mesh.broker.direct_get import Stored, read_page
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable, IdempotencyMismatch, NoRoom
from mesh.journal.following import Followed, Following, TaskNotFound
from mesh.journal.journal import Journal
from mesh.journal.projection import project
from mesh.journal.submission import Submission, begin
from mesh.task.records import record
from steward.archiving import packing
from steward.archiving.gathering import Gathering
from steward.archiving.packing import Packing, age_to_pack, unread_from
from steward.archiving.packs import Packs
from steward.retention import Retention
from tests.support.packed import DAY, left_of, pack_all, packed_ids, tomorrow
from tests.support.past import PastJournal, PastTask, store, stored_messages
from tests.support.patience import within
from tests.support.tasks import append_text, begin_journal, complete_turn, end_task, turn_work

pytestmark = pytest.mark.integration


async def ended_task(connection: Connection, text: str = "one two") -> Journal:
    journal = await begin_journal(connection.requests, turn_work())
    for part in text.split(" "):
        await append_text(journal, part)
    await complete_turn(journal)
    await end_task(journal)
    await project(connection.requests, record(journal.state))
    return journal


async def followed(connection: Connection, task: str, after: int = 0) -> list[Followed]:
    follower = await Following(connection).open("default", task, after)
    assert follower is not None
    async with aclosing(follower.batches(5)) as batches:
        return [each async for batch in batches for each in batch]


async def test_a_packed_task_has_its_record_and_folds_to_the_same(connection: Connection, settings: Settings) -> None:
    before = await ended_task(connection)
    living = await begin_journal(connection.requests, turn_work())
    task = before.state.task
    await pack_all(connection, settings)
    assert await left_of(connection, task) == set()
    assert await left_of(connection, living.state.task) == {subjects.journal_log("default", living.state.task)}
    packed = await lookup.find(connection.requests, "default", task)
    assert packed is not None
    assert packed.record == record(before.state)
    again = await Journal.load(connection.requests, "default", task)
    assert again.state.is_packed
    assert record(again.state) == record(before.state)
    assert again.state.turn(1).text == before.state.turn(1).text
    await again.catch_up_with_leader()
    assert record(again.state) == record(before.state)
    assert await lookup.find(connection.requests, "other", task) is None


async def test_who_follows_a_packed_task_gets_its_milestones_a_gap_for_its_deltas_and_the_end(
    connection: Connection, settings: Settings
) -> None:
    journal = await ended_task(connection)
    task, end = journal.state.task, journal.state.revision
    whole = await followed(connection, task)
    await pack_all(connection, settings)
    packed = await followed(connection, task)
    assert [each.type for each in packed] == ["task.queued", "step.claimed", "stream.gap", "snapshot", "task.completed"]
    assert packed[:2] == whole[:2]
    assert packed[-1] == whole[-1]
    # From a cursor among the deltas, and from the last one before the end.
    (delta, *_) = [each.sequence for each in whole if each.type == "output.delta"]
    assert delta is not None
    assert [each.type for each in await followed(connection, task, delta)] == [
        "stream.gap",
        "snapshot",
        "task.completed",
    ]
    (completed,) = [each.sequence for each in whole if each.type == "turn.completed"]
    assert completed is not None
    assert await followed(connection, task, completed) == whole[-1:]
    assert await Following(connection).open("default", task, end) is None
    with pytest.raises(TaskNotFound):
        await Following(connection).open("other", task, 0)


async def test_the_end_of_a_packed_task_that_ended_in_mid_turn_is_reached(
    connection: Connection, settings: Settings
) -> None:
    """Between its last milestone and its end there were tokens, which are gone: one gap, and not one after another."""
    journal = await begin_journal(connection.requests, turn_work())
    await append_text(journal, "one")
    await end_task(journal)
    await project(connection.requests, record(journal.state))
    task = journal.state.task
    await pack_all(connection, settings)
    milestones = ["task.queued", "step.claimed", "stream.gap", "snapshot", "task.completed"]
    async with within(10):
        whole = await followed(connection, task)
    assert [each.type for each in whole] == milestones
    assert await followed(connection, task, whole[0].sequence or 0) == whole[1:]


async def test_who_is_in_mid_journal_when_it_is_packed_goes_on_from_the_pack(
    connection: Connection, settings: Settings
) -> None:
    journal = PastJournal(connection.requests)
    await journal.begin(now())
    for turn in range(1, 101):
        await journal.turn(now(), turn)
    await journal.end(now())
    await journal.project()
    follower = await Following(connection).open("default", journal.state.task, 0)
    assert follower is not None
    got: list[Followed] = []
    async with aclosing(follower.batches(5)) as batches:
        async for batch in batches:
            if not got:
                await pack_all(connection, settings)
            got += batch
    assert [each.type for each in got[-3:]] == ["stream.gap", "snapshot", "task.completed"]
    sequences = [each.sequence for each in got if each.sequence is not None]
    assert sequences == sorted(set(sequences))


async def test_a_key_stands_for_its_task_after_that_was_packed(connection: Connection, settings: Settings) -> None:
    submission = Submission(connection.requests)
    request = TaskRequest(input="hello")
    first = await submission.submit(request, "default", "order-42", None)
    journal = await Journal.load(connection.requests, "default", first.task)
    await journal.append(lambda stamp: events.TaskCancelled(*stamp), lambda _: True)
    await project(connection.requests, record(journal.state))
    await pack_all(connection, settings)
    # TASKS forgets, sooner or later.
    await connection.requests.api("STREAM.PURGE.TASKS")
    again = await submission.submit(request, "default", "order-42", None)
    assert (again.task, again.existing) == (first.task, True)
    with pytest.raises(IdempotencyMismatch):
        await submission.submit(TaskRequest(input="other"), "default", "order-42", None)
    started = await submission.start(request, "default", first.task, None)
    assert started.existing
    assert await left_of(connection, first.task) == set()
    assert await stored_messages(connection.requests, "TASKS") == {}
    await submission.close()


async def test_a_submitter_that_slept_until_its_task_was_packed_begins_no_second_journal(
    connection: Connection, settings: Settings
) -> None:
    packed = await ended_task(connection)
    await pack_all(connection, settings)
    slept = replace_work(turn_work(packed.state.task), accepted_at=now() - timedelta(minutes=20))
    assert await begin(connection.requests, slept, None) is None
    assert await left_of(connection, packed.state.task) == set()
    # Once the pack is gone its place stands for nothing, and the id may come again.
    await connection.requests.api("STREAM.PURGE.ARCHIVE")
    assert await begin(connection.requests, slept, None) is not None


async def test_a_pack_is_read_by_gunzip_as_lines_of_json(connection: Connection, settings: Settings) -> None:
    ids = await store(connection.requests, [PastTask(ended=True)] * 40)
    await pack_all(connection, settings)
    (message,) = (await read_page(connection.requests, "ARCHIVE", ">", 0)).messages
    *tasks, directory = [json.loads(line) for line in gzip.decompress(message.payload).splitlines()]
    assert sorted(each["task"] for each in tasks) == sorted(ids)
    assert [each["record"]["id"] for each in directory["tasks"]] == [each["task"] for each in tasks]
    assert all(each["events"][-1]["event"]["type"] == "task.completed" for each in tasks)
    assert len(message.payload) / len(ids) < 600


async def test_a_task_of_many_megabytes_is_packed_and_read_whole(connection: Connection, settings: Settings) -> None:
    journal = PastJournal(connection.requests)
    await journal.begin(now())
    # Nothing that compresses.
    texts = [" ".join(new_id() for _ in range(12_000)) for _ in range(8)]
    for number, text in enumerate(texts, 1):
        await journal.turn(now(), number, deltas=0)
        await journal.add(events.InputReceived, now(), text=text, by="test", mode="append")
    await journal.end(now())
    await journal.project()
    small = await store(connection.requests, [PastTask(ended=True)] * 3)
    await pack_all(connection, settings)
    packed = await lookup.find(connection.requests, "default", journal.state.task)
    assert packed is not None
    place = await lookup.locate(connection.requests, "default", journal.state.task)
    assert place is not None
    assert len(place.parts) > 1
    again = await Journal.load(connection.requests, "default", journal.state.task)
    assert [each.text for each in again.state.inputs] == texts
    assert record(again.state) == record(journal.state)
    for task in small:
        assert await lookup.find(connection.requests, "default", task) is not None
    # All of it goes with its pack.
    packs = Packs(connection.requests, timedelta(days=30), "test")
    while await packs.round(now() + timedelta(days=31)):
        pass
    assert await stored_messages(connection.requests, "ARCHIVE") == {}


POINTS = (
    ("before-pack", "archive"),
    ("after-pack", "archive"),
    ("after-places", "archive"),
    ("after-purge", "journal"),
    ("after-purge", "record"),
)


@pytest.mark.parametrize("point", POINTS, ids=":".join)
async def test_who_dies_on_the_way_leaves_each_task_to_be_found_and_the_next_one_goes_on(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch, point: tuple[str, str]
) -> None:
    ids = await store(connection.requests, [PastTask(ended=True)] * 30)
    died = False

    def reach(kind: str, what: str) -> None:
        nonlocal died
        if (kind, what) == point:
            died = True
            raise BrokerUnavailable("died")

    with monkeypatch.context() as patch:
        patch.setattr(faults, "reach", reach)
        with pytest.raises(BrokerUnavailable):
            await Packing(connection.requests, settings, "first").round(tomorrow())
    assert died
    for task in ids:
        journal = await Journal.load(connection.requests, "default", task)
        assert journal.state.status == "completed"
    # Its lease has to end.
    second = Packing(connection.requests, settings, "second")
    while await second.round(tomorrow() + timedelta(minutes=5)):
        pass
    assert await left_of(connection, *ids) == set()
    packed = await packed_ids(connection)
    assert sorted(packed) == sorted(ids), "each is packed once"
    for task in ids:
        assert await lookup.find(connection.requests, "default", task) is not None


async def test_what_is_stamped_far_ahead_keeps_nobody(connection: Connection, settings: Settings) -> None:
    # A broker whose clock was a year ahead is one that is asked about a year ago.
    early = await store(connection.requests, [PastTask(ended=True)])
    ids = await store(connection.requests, [PastTask(ended=True)] * 3)
    first = (await read_page(connection.requests, "EVENTS", "events.*.*.log", 0, 1)).messages[0]
    assert first.stored_at < now()
    packer = Packing(connection.requests, settings, "test")
    due = await packer._due(now() - timedelta(days=365))
    assert due.seen.is_from_the_future(first.stored_at)
    assert await packer._first_of_its_time(due, 0) is None
    assert not await packer.round(now() - timedelta(days=365))
    assert await left_of(connection, *early, *ids) != set()


async def test_a_pack_goes_when_its_last_task_is_old_enough_with_its_dead_letters(
    connection: Connection, settings: Settings
) -> None:
    past = [PastTask(ended=True, dead_letter=number % 2 == 0) for number in range(6)]
    ids = await store(connection.requests, past)
    (other,) = await store(connection.requests, [PastTask(ended=False, dead_letter=True)])
    await pack_all(connection, settings)
    assert len(await stored_messages(connection.requests, "DEAD_LETTERS")) == 4, "they are served as before"
    packs = Packs(connection.requests, timedelta(days=30), "test")
    assert not await packs.round(now() + timedelta(days=29))
    assert await packs.round(now() + timedelta(days=30, hours=1))
    assert await stored_messages(connection.requests, "ARCHIVE") == {}
    assert set(await stored_messages(connection.requests, "DEAD_LETTERS")) == {subjects.dead_letter("default", other)}
    for task in ids:
        assert await lookup.find(connection.requests, "default", task) is None
        assert not (await Journal.load(connection.requests, "default", task)).state.exists


async def test_an_id_that_comes_again_after_its_task_is_gone_is_packed_again(
    connection: Connection, settings: Settings
) -> None:
    task = task_id_for_key("default", "again")
    for _ in range(2):
        journal = PastJournal(connection.requests, task)
        await journal.begin(now())
        await journal.turn(now())
        await journal.end(now())
        await journal.project()
        await pack_all(connection, settings)
        packed = await lookup.find(connection.requests, "default", task)
        assert packed is not None
        assert packed.record.sequence == journal.state.revision
        await connection.requests.api("STREAM.PURGE.ARCHIVE")


async def test_a_task_that_ended_just_now_waits_for_others_and_a_quiet_mesh_packs_it_all_the_same(
    connection: Connection, settings: Settings
) -> None:
    ids = await store(connection.requests, [PastTask(ended=True)] * 5)
    packer = Packing(connection.requests, settings, "test")
    assert not await packer.round(now() + DAY + timedelta(minutes=10))
    assert await packer.round(now() + DAY + timedelta(minutes=16))
    assert await left_of(connection, *ids) == set()


async def test_what_a_webhook_has_still_to_be_told_of_is_not_packed(connection: Connection, settings: Settings) -> None:
    ids = await store(connection.requests, [PastTask(ended=True)] * 3)
    config = {"durable_name": "webhook-slow", "name": "webhook-slow", "filter_subject": "events.*.*.log"}
    config |= {"ack_policy": "explicit", "deliver_policy": "all"}
    body = {"stream_name": "EVENTS", "config": config}
    await connection.requests.api("CONSUMER.CREATE.EVENTS.webhook-slow", body)
    await pack_all(connection, settings)
    assert len(await left_of(connection, *ids)) == 9
    # But not for ever.
    packer = Packing(connection.requests, settings, "test")
    while await packer.round(now() + timedelta(days=32)):
        pass
    assert await left_of(connection, *ids) == set()


def test_too_many_tasks_are_packed_sooner(settings: Settings) -> None:
    assert age_to_pack(settings, settings.hot_tasks_max) == DAY
    assert age_to_pack(settings, settings.hot_tasks_max + 1) == packing.UNDER_PRESSURE_AGE
    assert age_to_pack(replace(settings, retention_days=0.5), 0) == timedelta(hours=12)


def test_a_webhook_that_is_told_of_all_holds_nothing() -> None:
    def consumer(name: str, floor: int, pending: int, unacked: int) -> dict[str, Any]:
        return {"name": name, "ack_floor": {"stream_seq": floor}, "num_pending": pending, "num_ack_pending": unacked}

    assert unread_from([consumer("webhook-a", 7, 0, 0), consumer("critic", 1, 5, 5)]) is None
    assert unread_from([consumer("webhook-a", 7, 3, 0), consumer("webhook-b", 4, 0, 1)]) == 5


def test_a_journal_is_gathered_whole_or_not_at_all() -> None:
    gathering = Gathering()
    with pytest.raises(InvalidPayload):
        gathering.add(Stored(1, subjects.journal_log("default", new_id()), b"{"))


async def test_a_journal_that_no_version_can_read_stays_and_keeps_nobody(
    connection: Connection, settings: Settings
) -> None:
    requests = connection.requests
    end = encode(events.TaskCancelled(new_id(), new_id(), "default", 0, now()))
    headless = new_id()
    await requests.publish(subjects.journal_log("default", headless), end)
    holed = new_id()
    await requests.publish(subjects.journal_log("default", holed), end.replace(b'"n":0', b'"n":7'))
    await requests.publish(subjects.journal_log("default", new_id()), b"{")
    ids = await store(requests, [PastTask(ended=True)] * 3)
    await pack_all(connection, settings)
    assert await left_of(connection, *ids) == set()
    assert len(await left_of(connection, headless, holed)) == 2


async def test_an_archive_without_room_keeps_tasks_where_they_are_and_drops_what_is_due(
    connection: Connection, settings: Settings
) -> None:
    requests = connection.requests
    old = await store(requests, [PastTask(ended=True)] * 2)
    await pack_all(connection, settings)
    info = await requests.api("STREAM.INFO.ARCHIVE")
    await requests.api("STREAM.UPDATE.ARCHIVE", info["config"] | {"max_msgs": 1})
    young = await store(requests, [PastTask(ended=True)] * 2)
    at = tomorrow()
    retention = Retention(requests, settings, "test", lambda: at)
    with pytest.raises(NoRoom):
        await retention.round()
    assert len(await left_of(connection, *young)) > 0
    assert (await Journal.load(requests, "default", old[0])).state.is_packed
    at += timedelta(days=30)
    await retention.round()
    assert not (await Journal.load(requests, "default", old[0])).state.exists
