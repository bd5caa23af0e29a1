"""Conversations of ended tasks against a real broker: a chain of them, its bounds, and what was purged."""

from __future__ import annotations

import msgspec
import pytest

from contracts import subjects
from contracts.identifiers import new_id
from contracts.journal.events import OutputDelta, TaskCancelled, TaskCompleted, TurnCompleted
from contracts.journal.parts import Timings, Usage
from contracts.tasks import Message, TaskRequest
from inference_worker.turn import history
from inference_worker.turn.history import History
from mesh.broker.connection import Connection
from mesh.broker.requests import Requests
from mesh.journal.journal import Journal
from mesh.task.conversation import AssistantTurn, ConversationItem
from mesh.task.decisions import queued_event
from mesh.task.state import TaskState
from tests.support.tasks import claim_first_turn, complete_with, turn_work

pytestmark = pytest.mark.integration


async def begun(connection: Connection, text: str, continues: str | None = None) -> Journal:
    """A task whose first turn is claimed, and that goes on with another."""
    request = TaskRequest(input=text, instructions=f"About {text}.", continues=continues)
    work = msgspec.structs.replace(turn_work(), request=request)
    journal = Journal(connection.requests, work.tenant, work.task)
    await journal.append(lambda stamp: queued_event(stamp, work), lambda _: True)
    await claim_first_turn(journal, "test")
    return journal


async def answered(connection: Connection, text: str, answer: str, continues: str | None = None) -> str:
    """A task that has ended with an answer; its id."""
    journal = await begun(connection, text, continues)
    await complete_with(journal, answer)
    await journal.append(
        lambda stamp: TaskCompleted(*stamp, output=answer, usage=Usage(), timings=Timings()), lambda _: True
    )
    return journal.state.task


async def purge(connection: Connection, task: str) -> None:
    await connection.requests.api("STREAM.PURGE.EVENTS", {"filter": subjects.journal("default", task)})


def exchange(text: str, answer: str) -> list[ConversationItem]:
    return [Message("user", text), AssistantTurn(answer)]


async def before(
    connection: Connection, continues: str | None, reader: History | None = None
) -> list[ConversationItem]:
    """What a task that continues another one begins with."""
    state: TaskState = (await begun(connection, "now", continues)).state
    return await (reader or History(connection.requests)).before(state)


async def test_a_chain_of_three_tasks_is_one_conversation_without_their_instructions(connection: Connection) -> None:
    first = await answered(connection, "one?", "1")
    second = await answered(connection, "two?", "2", first)
    third = await answered(connection, "three?", "3", second)
    whole = [*exchange("one?", "1"), *exchange("two?", "2"), *exchange("three?", "3")]
    assert await before(connection, third) == whole
    assert await before(connection, first) == exchange("one?", "1")
    assert await before(connection, None) == []


async def test_a_task_that_was_stopped_is_continued_with_what_it_had_said(connection: Connection) -> None:
    journal = await begun(connection, "one?")
    await journal.append(lambda stamp: OutputDelta(*stamp, turn=1, text="so far"), lambda _: True)
    await journal.append(lambda stamp: TaskCancelled(*stamp, output="so far"), lambda _: True)
    assert await before(connection, journal.state.task) == exchange("one?", "so far")


async def test_what_was_purged_or_never_was_is_where_the_conversation_begins(connection: Connection) -> None:
    first = await answered(connection, "one?", "1")
    second = await answered(connection, "two?", "2", first)
    third = await answered(connection, "three?", "3", second)
    await purge(connection, first)
    assert await before(connection, third) == [*exchange("two?", "2"), *exchange("three?", "3")]
    assert await before(connection, new_id()) == []


async def test_a_chain_is_read_as_far_as_its_bounds_go(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await answered(connection, "one?", "1")
    second = await answered(connection, "two?", "2", first)
    third = await answered(connection, "three?", "3", second)
    monkeypatch.setattr(history, "CHAIN_MAX", 2)
    assert await before(connection, third) == [*exchange("two?", "2"), *exchange("three?", "3")]


async def test_of_a_chain_that_grows_each_journal_is_read_once_and_what_was_used_last_is_kept(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load = Journal.load

    async def counted(requests: Requests, tenant: str, task: str) -> Journal:
        read.append(task)
        return await load(requests, tenant, task)

    reader = History(connection.requests)
    tasks: list[str] = []
    for number in range(5):
        tasks.append(await answered(connection, f"{number}?", f"{number}", tasks[-1] if tasks else None))
        with monkeypatch.context() as counting:
            counting.setattr(Journal, "load", counted)
            for _ in range(3):  # Each turn asks.
                assert len(await before(connection, tasks[-1], reader)) == 2 * (number + 1)
    assert read == tasks
    # A process that has read nothing yet goes back over the chain, once.
    fresh = History(connection.requests)
    assert await before(connection, tasks[-1], fresh) == await before(connection, tasks[-1], reader)
    for task in tasks[:3]:
        await purge(connection, task)
    assert len(await before(connection, tasks[2], fresh)) == 6, "it was read a moment ago"
    monkeypatch.setattr(history, "KEPT_BYTES_MAX", 1)
    other = await answered(connection, "other?", "other")
    await before(connection, other, fresh)
    assert await before(connection, tasks[2], fresh) == [], "there was no room to keep it"


async def test_what_lies_behind_a_bound_is_not_taken_for_a_whole_conversation(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await answered(connection, "one?", "1")
    second = await answered(connection, "two?", "2", first)
    third = await answered(connection, "three?", "3", second)
    reader = History(connection.requests)
    with monkeypatch.context() as bounded:
        bounded.setattr(history, "CHAIN_MAX", 2)
        assert len(await before(connection, third, reader)) == 4
    assert await before(connection, second, reader) == [*exchange("one?", "1"), *exchange("two?", "2")]


async def test_a_task_that_goes_on_is_read_again(connection: Connection) -> None:
    journal = await begun(connection, "one?")
    reader = History(connection.requests)
    assert await before(connection, journal.state.task, reader) == [Message("user", "one?")]
    await journal.append(
        lambda stamp: TurnCompleted(*stamp, turn=1, text="1", finish_reason="stop", usage=Usage(), timings=Timings()),
        lambda _: True,
    )
    assert await before(connection, journal.state.task, reader) == exchange("one?", "1")
