"""Journals that are long, kept warm, or gone: what a process has folded is what there is, and costs what is new."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from nats.aio.msg import Msg

from contracts import subjects
from contracts.identifiers import new_id
from contracts.journal.events import InputReceived, OutputDelta, StepClaimed, TaskCompleted, TurnCompleted
from contracts.journal.parts import Timings, Usage
from contracts.streams import EVENTS
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import PAGE_EVENTS_MAX
from mesh.configuration.settings import Settings
from mesh.errors import StepLost
from mesh.journal.journal import Journal
from mesh.journal.warm import JOURNAL_BYTES_LEAST, OPENED_BETWEEN, WarmJournals
from mesh.steps.claimed_step import ClaimedStep
from mesh.task.decisions import base_of_claim
from mesh.task.failures import StepFailed
from tests.integration.test_work import Handler, queues_are_empty, working
from tests.support.checker import check_journal, read_stored
from tests.support.patience import within
from tests.support.tasks import append_text, begin_journal, claim_first_turn, complete_turn, publish_work, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.integration

MORE_THAN_A_PAGE = PAGE_EVENTS_MAX + 50


async def say(journal: Journal, text: str) -> None:
    """A message of the user, as the steward appends it."""
    await journal.append(lambda stamp: InputReceived(*stamp, text=text, by="user", mode="append"), lambda _: True)


async def test_a_message_that_comes_while_more_than_a_page_streams_is_answered_though_the_stream_breaks(
    connection: Connection, settings: Settings
) -> None:
    """The second claim goes on with the text of the first: the message was not in its prompt, whoever looks."""
    work = turn_work()

    async def speak(step: ClaimedStep) -> None:
        turn = step.state.turn(step.work.turn)
        first_try = step.work.turn == 1 and turn.claims == 1
        for _ in range(MORE_THAN_A_PAGE if first_try else 1):
            await step.append(lambda stamp: OutputDelta(*stamp, turn=step.work.turn, text="t "))
        if first_try:
            await say(await Journal.load(connection.requests, work.tenant, work.task), "and this?")
            raise StepFailed("provider-disconnected", "the stream broke off", retryable=True)
        text = step.state.turn(step.work.turn).text
        await step.append(
            lambda stamp: TurnCompleted(
                *stamp, turn=step.work.turn, text=text, finish_reason="stop", usage=Usage(), timings=Timings()
            )
        )
        if not step.state.unseen_inputs(step.work.turn):
            await step.append(lambda stamp: TaskCompleted(*stamp, output=text, usage=Usage(), timings=Timings()))

    async def is_answered() -> bool:
        return (await Journal.load(connection.requests, work.tenant, work.task)).state.turn(1).completed is not None

    await publish_work(connection.requests, work)
    async with working(connection, settings, Handler(speak), "one"):
        await until(is_answered)
    # Another process, which has folded nothing yet: it passes over the deltas of turn 1.
    async with working(connection, settings, Handler(speak), "two"):
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    assert check_journal(stored.journals[work.task]) == []
    state = (await Journal.load(connection.requests, work.tenant, work.task)).state
    assert state.status == "completed"
    assert sorted(state.turns) == [1, 2]
    assert not state.unseen_inputs(2)


async def test_what_is_folded_with_and_without_the_deltas_of_completed_turns_is_the_same(
    connection: Connection,
) -> None:
    work = turn_work()
    journal = await begin_journal(connection.requests, work)
    for _ in range(MORE_THAN_A_PAGE):
        await append_text(journal, "t ")
    await say(journal, "and this?")
    await journal.append(
        lambda stamp: StepClaimed(
            *stamp,
            step="1",
            gen=0,
            message=1,
            worker="test",
            delivery=2,
            turn=1,
            base=base_of_claim(journal.state, 1, stamp.n),
        ),
        lambda _: True,
    )
    await append_text(journal, "end")
    await complete_turn(journal)
    await append_text(journal, "second", turn=2)
    again = await Journal.load(connection.requests, work.tenant, work.task)
    assert again.state == journal.state
    assert [told.text for told in again.state.unseen_inputs(1)] == ["and this?"]


async def test_a_warm_journal_reads_what_is_new_and_no_more_and_is_shared(connection: Connection) -> None:
    work = turn_work()
    writer = await begin_journal(connection.requests, work)
    journals = WarmJournals(connection.requests)
    first = await journals.open(work.tenant, work.task)
    state = first.state
    # Nothing new, one event, several, and more than a page of them.
    for count in (0, 1, 3, MORE_THAN_A_PAGE):
        for number in range(count):
            await append_text(writer, f"{number} ")
        opened = await asyncio.gather(*(journals.open(work.tenant, work.task) for _ in range(5)))
        assert all(each.state is state for each in opened), "it was folded anew"
        assert state == writer.state
    await append_text(first, "mine")
    assert (await journals.open(work.tenant, work.task)).state.turn(1).text.endswith("mine")


async def test_a_long_journal_takes_few_round_trips(connection: Connection, settings: Settings) -> None:
    """Twenty milliseconds away a page for each 256 tokens took seconds after an hour of them."""
    work = turn_work()
    writer = await begin_journal(connection.requests, work)
    warm = await WarmJournals(connection.requests).open(work.tenant, work.task)
    for _ in range(5 * PAGE_EVENTS_MAX):
        await append_text(writer, "t ")
    reads: list[bytes] = []

    async def on_read(message: Msg) -> None:
        reads.append(message.data)

    async with connect(settings, "observer") as observer:
        subscription = await observer.client.subscribe("$JS.API.DIRECT.GET.EVENTS", cb=on_read)
        await observer.client.flush()
        for read, most in ((warm.catch_up, 2), (partial(Journal.load, connection.requests, work.tenant, work.task), 3)):
            await read()
            await observer.client.flush()
            assert len(reads) <= most
            reads.clear()
        await subscription.unsubscribe()
    assert warm.state == writer.state
    assert warm.folded.ends_in_delta


async def test_warm_journals_are_bounded_in_bytes_and_the_last_ones_stay(connection: Connection) -> None:
    journals = WarmJournals(connection.requests, payload_bytes_max=4 * JOURNAL_BYTES_LEAST)
    works = [turn_work() for _ in range(OPENED_BETWEEN)]
    for work in works:
        await begin_journal(connection.requests, work)
        await journals.open(work.tenant, work.task)
    assert len(journals) == 4
    assert journals.is_warm(works[-1].tenant, works[-1].task)
    assert not (await journals.open("default", new_id())).state.exists
    assert len(journals) == 4, "what does not exist takes no place"


@pytest.mark.parametrize("gone", ["purged", "recreated", "begun anew"])
async def test_a_journal_that_is_gone_stops_its_writer_and_is_read_anew(connection: Connection, gone: str) -> None:
    """The fence refuses every append of who has folded the old one, and nothing is left to read that would say why."""
    work = turn_work()
    other = await begin_journal(connection.requests, turn_work())
    for _ in range(20):
        await append_text(other, "t ")
    await begin_journal(connection.requests, work)
    journals = WarmJournals(connection.requests)
    journal = await journals.open(work.tenant, work.task)
    claim = journal.state.claims["1", 0]
    if gone == "recreated":
        await connection.requests.api("STREAM.DELETE.EVENTS")
        await connection.requests.api("STREAM.CREATE.EVENTS", EVENTS.as_config())
    else:
        await connection.requests.api("STREAM.PURGE.EVENTS", {"filter": subjects.journal(work.tenant, work.task)})
    if gone == "begun anew":
        await begin_journal(connection.requests, work)

    async with within(20):
        with pytest.raises(StepLost):
            await journal.append(
                lambda stamp: OutputDelta(*stamp, turn=1, text="late"), lambda state: state.owns(claim)
            )
    again = await journals.open(work.tenant, work.task)
    fresh = await Journal.load(connection.requests, work.tenant, work.task)
    assert again.state == fresh.state
    assert again.state.exists == (gone == "begun anew")


async def test_a_worker_whose_journal_is_gone_has_its_place_back(connection: Connection, settings: Settings) -> None:
    """Its slots were jammed until it was started anew."""
    work, after = turn_work(), turn_work()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def speak(step: ClaimedStep) -> None:
        if step.work.task == work.task:
            begun.set()
            await go_on.wait()
        await step.append(lambda stamp: OutputDelta(*stamp, turn=1, text="t "))
        await step.append(lambda stamp: TaskCompleted(*stamp, output="", usage=Usage(), timings=Timings()))

    async def is_done() -> bool:
        stored = await read_stored(connection.requests)
        return stored.records.get(after.task, {}).get("status") == "completed" and loop.steps_running == 0

    async with working(connection, settings, Handler(speak)) as loop:
        await publish_work(connection.requests, work)
        async with within(20):
            await begun.wait()
        await connection.requests.api("STREAM.PURGE.TASKS", {})
        await connection.requests.api("STREAM.PURGE.EVENTS", {"filter": subjects.journal(work.tenant, work.task)})
        go_on.set()
        await publish_work(connection.requests, after)
        await until(is_done)


async def test_who_works_on_a_task_learns_what_another_of_its_process_has_read(connection: Connection) -> None:
    """Else the first to read would keep the news from the others: the watch reads nothing that is folded."""
    work = turn_work()
    await begin_journal(connection.requests, work)
    journals = WarmJournals(connection.requests)
    one, two = await journals.open(work.tenant, work.task), await journals.open(work.tenant, work.task)
    told = asyncio.Event()
    outside = await Journal.load(connection.requests, work.tenant, work.task)
    with one.listening(told.set):
        await claim_first_turn(outside, "thief")
        await append_text(two, "conflicts, and reads")
        assert told.is_set()
