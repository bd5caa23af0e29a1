"""Retention against a real broker: what is due goes, what lives stays, and doing it again harms nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from contracts import headers, subjects
from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.journal import events
from contracts.messages.work import ToolWork
from mesh.broker.connection import Connection
from mesh.clock import MeshClock, lease_clock, now
from mesh.configuration.settings import Settings
from mesh.journal.journal import Journal
from mesh.journal.projection import project
from mesh.task.records import record
from steward import retention
from steward.archiving import deltas, packing
from steward.retention import Retention
from steward.sweeping import Sweeps
from tests.support.checker import read_stored
from tests.support.past import PastJournal, PastTask, store, stored_messages, stored_subjects, time_of_the_broker
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


@pytest.fixture(autouse=True)
def no_gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due is done at once, and does not wait for more of it."""
    monkeypatch.setattr(packing, "GATHERS", timedelta())


async def ended_task(connection: Connection) -> Journal:
    journal = await begin_journal(connection.requests, turn_work())
    await append_text(journal, "one ")
    await append_text(journal, "two")
    await complete_turn(journal)
    await end_task(journal)
    await project(connection.requests, record(journal.state))
    return journal


ROUNDS_MAX = 20
"""Far more than a few tasks need."""
SOON = timedelta(seconds=5)
"""Later than all that was stored, however the clocks of test and broker are rounded."""


class Keeping:
    """Retention and sweeps of one steward."""

    def __init__(self, connection: Connection, settings: Settings, clock: Callable[[], datetime]) -> None:
        self.retention = Retention(connection.requests, settings, "test", clock)
        self.sweeps = Sweeps(connection.requests, settings, "test", clock)

    async def round(self) -> None:
        """One of each."""
        await self.retention.round()
        await self.sweeps.round()


def keeping(
    connection: Connection, settings: Settings, *, days: float, hours: float, at: datetime | None = None
) -> Keeping:
    """One that looks from `at`, or from just after now; nothing is packed before it goes."""
    kept = replace(settings, retention_days=days, delta_retention_hours=hours, pack_after_hours=days * 24)
    return Keeping(connection, kept, lambda: at or now() + SOON)


async def test_an_ended_task_goes_whole_and_a_living_one_stays(connection: Connection, settings: Settings) -> None:
    ended = await ended_task(connection)
    living = await begin_journal(connection.requests, turn_work())
    await append_text(living, "still here")
    await project(connection.requests, record(living.state))
    purging = keeping(connection, settings, days=0, hours=0)
    await purging.round()
    await purging.round()
    stored = await read_stored(connection.requests)
    assert set(stored.journals) == set(stored.records) == {living.state.task}
    assert len(stored.journals[living.state.task]) == living.state.next_n
    # It can still go on: its fence holds.
    await append_text(living, ".")
    # A record that comes late, of a process that slept, does not stay.
    await project(connection.requests, record(ended.state))
    await purging.round()
    assert set((await read_stored(connection.requests)).records) == {living.state.task}


async def test_nothing_goes_by_the_clock_of_the_machine(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ended_task(connection)
    clock = MeshClock()
    monkeypatch.setattr(retention, "MESH_CLOCK", clock)
    settings = replace(settings, retention_days=0, delta_retention_hours=0)
    await Retention(connection.requests, settings, "test").round()
    assert (await read_stored(connection.requests)).records
    clock.learn(now() + SOON, lease_clock(), lease_clock())
    retaining = Retention(connection.requests, settings, "test")
    await retaining.round()
    await retaining.round()
    assert not (await read_stored(connection.requests)).records


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


async def test_a_forgotten_message_keeps_nobody_and_its_task_does_not_begin_anew(
    connection: Connection, settings: Settings
) -> None:
    work = turn_work()
    await publish_work(connection.requests, work)
    journal = await begin_journal(connection.requests, work)
    await end_task(journal)
    await project(connection.requests, record(journal.state))
    other = await ended_task(connection)
    at = now() + timedelta(hours=25)
    purging = keeping(connection, settings, days=30, hours=24, at=at)
    purging.retention = Retention(
        connection.requests, replace(settings, pack_after_hours=24, delta_retention_hours=24), "test", lambda: at
    )
    await purging.retention.round()
    stored = await read_stored(connection.requests)
    assert not stored.hot
    assert not stored.records_left
    assert len(stored.packed) == 2
    # Whoever gets the message now finds that its task is over.
    again = await Journal.load(connection.requests, work.tenant, work.task)
    assert again.state.status == "completed"
    assert again.state.is_packed
    await purging.sweeps.round()
    assert await stored_messages(connection.requests, "TASKS") == {}
    assert (await Journal.load(connection.requests, work.tenant, other.state.task)).state.status == "completed"


async def test_a_message_of_a_task_that_lives_or_has_not_begun_is_left_alone(
    connection: Connection, settings: Settings
) -> None:
    begun, unbegun = turn_work(), turn_work()
    for work in (begun, unbegun):
        await publish_work(connection.requests, work)
    await begin_journal(connection.requests, begun)
    await keeping(connection, settings, days=0, hours=0, at=now() + timedelta(days=400)).round()
    assert sum((await stored_messages(connection.requests, "TASKS")).values()) == 2


async def test_a_call_of_a_task_that_is_gone_goes_too(connection: Connection, settings: Settings) -> None:
    """Its sweep came so late that its task's pack had been dropped."""
    gone, living = (
        ToolWork(task=new_id(), tenant="default", turn=1, call="1-0", tool="forgotten", arguments={}) for _ in range(2)
    )
    await begin_journal(connection.requests, turn_work(living.task))
    for work in (gone, living):
        await connection.requests.publish(subjects.tools(work.tool), encode(work))
    await keeping(connection, settings, days=30, hours=24, at=now() + timedelta(hours=2)).round()
    (left,) = (await read_stored(connection.requests)).work
    assert left["task"] == living.task


async def test_timers_of_tasks_that_are_over_go_and_those_of_the_living_stay(
    connection: Connection, settings: Settings
) -> None:
    requests = connection.requests
    ended, living = await ended_task(connection), await begin_journal(requests, turn_work())
    due = {headers.SCHEDULE: "@at 2099-01-01T00:00:00Z"}
    for task in (ended.state.task, living.state.task, new_id()):
        fires = {headers.SCHEDULE_TARGET: subjects.timer_fired("deadline", "default", task, "task")}
        await requests.publish(subjects.timer_at("deadline", "default", task, "task"), b"{}", due | fires)
    await keeping(connection, settings, days=30, hours=24, at=now() + timedelta(hours=2)).round()
    assert set(await stored_messages(requests, "TIMERS")) == {
        subjects.timer_at("deadline", "default", living.state.task, "task")
    }


async def test_a_steward_that_died_between_journal_and_record_is_made_up_for(
    connection: Connection, settings: Settings
) -> None:
    journal = await ended_task(connection)
    subject = subjects.journal("default", journal.state.task)
    await connection.requests.api("STREAM.PURGE.EVENTS", {"filter": subject})
    await keeping(connection, settings, days=0, hours=0).round()
    assert not (await read_stored(connection.requests)).records


async def test_a_long_living_task_loses_the_deltas_of_its_old_turns_alone(
    connection: Connection, settings: Settings
) -> None:
    journal = PastJournal(connection.requests)
    await journal.begin(now())
    await journal.turn(now(), 1, deltas=3)
    yesterday = await time_of_the_broker(connection.requests)
    await journal.turn(now(), 2, deltas=2)
    # It was open all the time, and still changes.
    await journal.add(events.OutputDelta, now(), turn=3, text="open")
    await journal.project()
    for _ in range(2):  # again is the same as once
        await keeping(connection, settings, days=30, hours=24, at=yesterday + timedelta(hours=24)).round()
        (stored,) = (await read_stored(connection.requests)).journals.values()
        kept = [event.event["type"] for event in stored]
        assert kept == [
            "task.queued",
            *("step.claimed", "turn.completed"),
            *("step.claimed", "output.delta", "output.delta", "turn.completed"),
            "output.delta",
        ]
    again = await Journal.load(connection.requests, "default", journal.state.task)
    assert record(again.state) == record(journal.state)
    assert [again.state.turn(number).text for number in (1, 2, 3)] == ["token " * 3, "token " * 2, "open"]
    await append_text(again, ".", turn=3)


async def test_a_turn_becomes_due_while_its_task_goes_on(connection: Connection, settings: Settings) -> None:
    at = now()
    settings = replace(settings, retention_days=30, delta_retention_hours=24, pack_after_hours=48)
    purging = Keeping(connection, settings, lambda: at)
    journal = PastJournal(connection.requests)
    delta = subjects.journal_delta("default", journal.state.task)
    await journal.begin(now())
    for turn in range(1, 4):
        await journal.turn(now(), turn)
        await journal.project()
        at = await time_of_the_broker(connection.requests) + timedelta(hours=24)
        await purging.round()
        assert delta not in await stored_messages(connection.requests, "EVENTS")
    await journal.turn(now(), 4)
    await purging.round()
    assert (await stored_messages(connection.requests, "EVENTS"))[delta] == 1


async def test_where_tasks_are_packed_as_early_their_deltas_are_left_to_that(
    connection: Connection, settings: Settings
) -> None:
    at = now()
    settings = replace(settings, retention_days=30, delta_retention_hours=24, pack_after_hours=24)
    purging = Keeping(connection, settings, lambda: at)
    journal = PastJournal(connection.requests)
    delta = subjects.journal_delta("default", journal.state.task)
    await journal.begin(now())
    await journal.turn(now(), 1)
    await journal.project()
    at = await time_of_the_broker(connection.requests) + timedelta(hours=24)
    await purging.round()
    assert delta in await stored_messages(connection.requests, "EVENTS")
    # It goes on, and is not packed.
    at += deltas.BEHIND_PACKING
    await purging.round()
    assert delta not in await stored_messages(connection.requests, "EVENTS")


@pytest.mark.parametrize("wrong", [timedelta(days=365), timedelta(days=-40)], ids=["a year ahead", "40 days behind"])
async def test_the_clock_of_a_writer_makes_nothing_go_early_and_keeps_nothing(
    connection: Connection, settings: Settings, wrong: timedelta
) -> None:
    requests = connection.requests
    past = PastTask(ended=True, dead_letter=True, behind=-wrong)
    others = PastTask(ended=True)
    ids = [*await store(requests, [past]), *await store(requests, [others])]
    everything = stored_subjects(ids[0], past, deltas=True) | stored_subjects(ids[1], others, deltas=True)

    async def left() -> dict[str, int]:
        streams = ("EVENTS", "DEAD_LETTERS", "KV_tasks")
        return {name: count for stream in streams for name, count in (await stored_messages(requests, stream)).items()}

    await keeping(connection, settings, days=30, hours=24).round()
    assert await left() == everything
    at = await time_of_the_broker(requests)
    await keeping(connection, settings, days=30, hours=24, at=at + timedelta(hours=24)).round()
    assert await left() == {name: count for name, count in everything.items() if not name.endswith(".delta")}
    last = keeping(connection, settings, days=30, hours=24, at=at + timedelta(days=30))
    await last.round()
    await last.round()
    assert await left() == {}


UNREADABLE = 600


async def test_what_cannot_be_read_blocks_nobody(connection: Connection, settings: Settings) -> None:
    requests = connection.requests
    for number in range(UNREADABLE):
        # More than a round looks at: it must not look at the same ones for ever.
        await requests.publish(f"$KV.tasks.default.unreadable{number}", b"{" if number % 2 else b"")
        await requests.publish(subjects.journal_log("default", new_id()), b"{")
    (task,) = await store(requests, [PastTask(ended=True)])
    purging = keeping(connection, settings, days=0, hours=0)
    for _ in range(2):
        await purging.round()
    left = {**await stored_messages(requests, "EVENTS"), **await stored_messages(requests, "KV_tasks")}
    assert not left.keys() & stored_subjects(task, PastTask(ended=True), deltas=True).keys()
    assert len(left) == 2 * UNREADABLE


async def test_of_many_tasks_exactly_the_due_ones_go(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltas, "BEHIND_PACKING", timedelta())
    requests = connection.requests
    due = [PastTask(ended=True, dead_letter=number % 3 == 0) for number in range(120)]
    waiting = [PastTask(ended=False, dead_letter=number % 3 == 0) for number in range(60)]
    # They lie between each other, as the times at which people leave them to wait.
    old = [task for trio in zip(due[::2], due[1::2], waiting, strict=True) for task in trio]
    young = [PastTask(ended=number % 4 != 0, behind=timedelta(days=90)) for number in range(120)]
    # One after the other: a walk ends at the first that is young, and the streams are in the order of time.
    ids = await store(requests, old)
    a_month_ago = await time_of_the_broker(requests)
    ids += await store(requests, young)
    purging = keeping(connection, settings, days=30, hours=720, at=a_month_ago + timedelta(days=30))
    for _ in range(2):
        await purging.round()
    left: dict[str, int] = {}
    for stream in ("EVENTS", "DEAD_LETTERS", "KV_tasks"):
        left |= await stored_messages(requests, stream)
    expected: dict[str, int] = {}
    for task, past in zip(ids, [*old, *young], strict=True):
        if past not in due:
            expected |= stored_subjects(task, past, deltas=past in young)
    assert left == expected


async def test_how_far_retention_is_behind_is_told_until_it_has_caught_up(
    connection: Connection, settings: Settings
) -> None:
    """A task that has not ended is passed over, and is no lag."""
    at = now() + timedelta(days=40, seconds=5)
    await ended_task(connection)
    living = await begin_journal(connection.requests, turn_work())
    keeper = Retention(connection.requests, replace(settings, retention_days=30), "test", lambda: at)
    assert {walk: round(lag / timedelta(days=1)) for walk, lag in (await keeper.lags(at)).items()} == {
        "packing": 39,
        "deltas": 39,
        "packs": 0,
    }
    packs = 0.0
    for _ in range(ROUNDS_MAX):
        await keeper.round()
        lags = await keeper.lags(at)
        packs = max(packs, lags["packs"] / timedelta(days=1))
        if not any(lags.values()):
            break
    # Once it was packed its pack was due to go, for ten days.
    assert (round(packs), any(lags.values())) == (10, False)
    assert await stored_messages(connection.requests, "ARCHIVE") == {}
    assert set((await read_stored(connection.requests)).journals) == {living.state.task}
    assert not any((await keeper.lags(now() + timedelta(seconds=5))).values())
