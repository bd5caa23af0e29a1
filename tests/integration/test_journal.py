"""The journal against a real broker: fence, conflict, unknown outcomes, long journals."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from contracts import subjects
from contracts.journal.events import Event, JournalEvent, OutputDelta, TaskExpired
from contracts.streams import EVENTS
from mesh.broker.connection import Connection
from mesh.broker.direct_get import read_page
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable, StepLost
from mesh.journal.journal import Append, Journal
from mesh.task.state import TaskState
from tests.support.broker import Broker
from tests.support.checker import check_journal, read_stored
from tests.support.patience import within
from tests.support.tasks import append_text, begin_journal, complete_turn, end_task, turn_work, until_written

pytestmark = pytest.mark.integration


async def test_events_are_dense_over_both_subjects_and_fold_the_same_when_read_again(connection: Connection) -> None:
    work = turn_work()
    journal = await begin_journal(connection.requests, work)
    for word in ("one ", "two ", "three"):
        await append_text(journal, word)
    await complete_turn(journal)
    await end_task(journal)

    again = await Journal.load(connection.requests, work.tenant, work.task)

    assert again.state == journal.state
    assert again.state.turn(1).text == "one two three"
    stored = await read_stored(connection.requests)
    assert check_journal(stored.journals[work.task]) == []


async def test_a_writer_that_missed_something_reads_it_and_decides_again(connection: Connection) -> None:
    work = turn_work()
    first = await begin_journal(connection.requests, work)
    second = await Journal.load(connection.requests, work.tenant, work.task)
    await append_text(first, "first")
    judged: list[int] = []

    def may_append(state: TaskState) -> bool:
        judged.append(state.revision)
        return True

    await second.append(lambda stamp: OutputDelta(*stamp, turn=1, text=" second"), may_append)

    assert len(judged) == 2
    assert second.state.turn(1).text == "first second"


async def test_an_append_waits_for_room_in_a_full_stream_and_goes_in_once(connection: Connection) -> None:
    journal = await begin_journal(connection.requests, turn_work())
    info = await connection.requests.api("STREAM.INFO.EVENTS")
    full = msgspec.structs.replace(EVENTS, max_bytes=info["state"]["bytes"])
    await connection.requests.api("STREAM.UPDATE.EVENTS", full.as_config())
    asked = asyncio.Event()

    def may_append(_: TaskState) -> bool:
        # The second time: the first try was refused.
        if judged:
            asked.set()
        judged.append(True)
        return True

    judged: list[bool] = []
    appending = asyncio.create_task(journal.append(lambda stamp: OutputDelta(*stamp, turn=1, text="late"), may_append))
    async with within(10):
        await asked.wait()
    assert not appending.done()
    await connection.requests.api("STREAM.UPDATE.EVENTS", EVENTS.as_config())
    await appending

    stored = await read_stored(connection.requests)
    assert check_journal(stored.journals[journal.state.task], quiet=False) == []
    assert journal.state.turn(1).text == "late"


async def test_a_writer_whose_reason_is_gone_appends_nothing(connection: Connection) -> None:
    work = turn_work()
    first = await begin_journal(connection.requests, work)
    second = await Journal.load(connection.requests, work.tenant, work.task)
    await append_text(first, "first")
    before = second.state.revision

    with pytest.raises(StepLost):
        await second.append(
            lambda stamp: OutputDelta(*stamp, turn=1, text="zombie"), lambda state: state.revision == before
        )

    await first.catch_up()
    assert first.state.turn(1).text == "first"


async def test_a_writer_that_advances_decides_anew_on_what_came_and_after_each_event(connection: Connection) -> None:
    work = turn_work()
    first = await begin_journal(connection.requests, work)
    second = await Journal.load(connection.requests, work.tenant, work.task)
    await append_text(first, "one")
    seen: list[str] = []
    stored: list[str] = []

    async def decide(state: TaskState) -> Append | str:
        seen.append(state.turn(1).text)
        if len(state.turn(1).parts) >= 3:
            return "enough"
        word = "-" + ("two", "three")[len(state.turn(1).parts) - 1]
        return Append(lambda stamp: OutputDelta(*stamp, turn=1, text=word), on_appended=lambda: stored.append(word))

    assert await second.advance(decide) == "enough"
    # The first answer was refused for the conflict, and would have been a word too early.
    assert seen == ["", "one", "one-two", "one-two-three"]
    assert stored == ["-two", "-three"]


async def test_a_writer_that_advances_stops_at_the_last_event_and_at_a_lost_lease(connection: Connection) -> None:
    journal = await begin_journal(connection.requests, turn_work())

    async def decide(_: TaskState) -> Append | None:
        return Append(lambda stamp: OutputDelta(*stamp, turn=1, text="last"), last=True)

    with pytest.raises(StepLost):
        await journal.advance(decide, lambda: False)
    assert journal.state.turn(1).text == ""
    appended = await journal.advance(decide)
    assert isinstance(appended, OutputDelta)
    assert journal.state.turn(1).text == "last"


async def test_what_time_makes_of_a_decision_is_another_event_than_the_one_whose_answer_was_lost(
    connection: Connection,
) -> None:
    """Else a claim that got in without an answer would pass for the expiry that was decided after it."""
    journal = await begin_journal(connection.requests, turn_work())
    publish = journal._publish

    async def publish_in_secret(event: Event) -> int:
        journal._publish = publish  # type: ignore[method-assign]  # the second try goes through
        await publish(event)
        raise BrokerUnavailable("the answer is lost")

    async def read_nothing(_: int = 0) -> dict[str, JournalEvent]:
        journal.folded.catch_up = catch_up  # type: ignore[method-assign]  # the second look sees it
        return {}

    catch_up = journal.folded.catch_up
    journal._publish = publish_in_secret  # type: ignore[method-assign]  # the broker can't be told to lose an answer
    journal.folded.catch_up = read_nothing  # type: ignore[method-assign,assignment]  # nor a replica to be behind
    kinds = iter((OutputDelta, TaskExpired))
    decided: list[int] = []

    async def decide(state: TaskState) -> Append | str:
        decided.append(len(state.turn(1).parts))
        if state.turn(1).parts:
            return "seen"
        kind = next(kinds)
        if kind is TaskExpired:
            return Append(lambda stamp: TaskExpired(*stamp))
        return Append(lambda stamp: OutputDelta(*stamp, turn=1, text="got in"))

    assert await journal.advance(decide) == "seen"
    assert decided == [0, 0, 1]
    assert journal.state.terminal is None


async def test_of_many_writers_at_once_each_event_is_stored_once_and_in_order(connection: Connection) -> None:
    work = turn_work()
    await begin_journal(connection.requests, work)
    journals = [await Journal.load(connection.requests, work.tenant, work.task) for _ in range(8)]

    async def write(number: int) -> None:
        for count in range(10):
            await append_text(journals[number], f"{number}.{count} ")

    await asyncio.gather(*(write(number) for number in range(len(journals))))

    await journals[0].catch_up()
    words = journals[0].state.turn(1).text.split()
    assert sorted(words) == sorted(f"{number}.{count}" for number in range(8) for count in range(10))
    stored = await read_stored(connection.requests)
    assert check_journal(stored.journals[work.task], quiet=False) == []


async def test_appends_survive_a_killed_broker_without_loss_or_double(connection: Connection, broker: Broker) -> None:
    work = turn_work()
    journal = await begin_journal(connection.requests, work)

    async def write() -> None:
        for count in range(400):
            await append_text(journal, f"{count} ")

    writing = asyncio.create_task(write())
    for _ in range(2):
        await until_written(journal, journal.state.next_n + 50)
        await broker.kill()
        await broker.start()
    await writing

    again = await Journal.load(connection.requests, work.tenant, work.task)
    assert again.state.turn(1).text == "".join(f"{count} " for count in range(400))
    stored = await read_stored(connection.requests)
    assert check_journal(stored.journals[work.task], quiet=False) == []


async def test_a_long_journal_is_folded_from_its_milestones_and_the_open_turn(connection: Connection) -> None:
    work = turn_work()
    journal = await begin_journal(connection.requests, work)
    for count in range(700):
        await append_text(journal, f"{count} ")
    await complete_turn(journal)
    for count in range(5):
        await append_text(journal, f"second {count} ", turn=2)
    purged = subjects.journal_delta(work.tenant, work.task)
    page = await read_page(connection.requests, "EVENTS", subjects.journal_log(work.tenant, work.task), 0)
    # As retention does: the deltas of a completed turn go, those of the open one stay.
    await connection.requests.api("STREAM.PURGE.EVENTS", {"filter": purged, "seq": page.messages[-1].sequence})

    again = await Journal.load(connection.requests, work.tenant, work.task)

    assert again.state.turn(1).text == journal.state.turn(1).text
    assert again.state.turn(2).text == "second 0 second 1 second 2 second 3 second 4 "
    assert (again.state.revision, again.state.next_n) == (journal.state.revision, journal.state.next_n)
    await append_text(again, "goes on", turn=2)


async def test_a_journal_that_has_not_begun_is_empty(connection: Connection, settings: Settings) -> None:
    work = turn_work()
    journal = await Journal.load(connection.requests, work.tenant, work.task)
    assert not journal.state.exists
    assert journal.state.revision == 0
