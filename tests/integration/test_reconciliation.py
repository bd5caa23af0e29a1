"""Tasks whose messages are gone are found and put back, each kind of message once; those that wait in order are not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from contracts import subjects
from contracts.actors import BY_MESH
from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.journal import events
from contracts.journal.parts import Timings, ToolCall, Usage
from contracts.messages.control import RoomCommand
from contracts.messages.work import TurnWork
from mesh.background import background
from mesh.broker.connection import Connection
from mesh.broker.direct_get import last_from_leader, read_page
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.journal.journal import Journal
from mesh.journal.projection import project
from mesh.journal.reconciliation import Found, Reconciliation
from mesh.journal.settling import publish_outbox
from mesh.task.decisions import queued_event
from mesh.task.outbox import deadline_timer, messages_after, room_timer
from mesh.task.records import record
from mesh.task.subtasks import child_id
from steward.control_loop import ControlLoop
from tests.integration.test_work import Handler, answer, queues_are_empty, status_is, working
from tests.support.checker import read_stored
from tests.support.patience import stretched
from tests.support.tasks import begin_journal, claim_first_turn, complete_turn, end_task, publish_work, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.integration

QUIET_SECONDS = 0.3


async def all_found(connection: Connection, quiet_seconds: float = QUIET_SECONDS) -> list[Found]:
    """What one walk along all records finds."""
    reconciliation = Reconciliation(connection.requests, quiet_seconds)
    at = await reconciliation.broker_time()
    walk = await reconciliation.walk(0, at, 256, 256)
    found = [await reconciliation.examine(task, at) for task in walk.open]
    return [each for each in found if each is not None]


async def until_found(connection: Connection) -> Found:
    """Wait until a walk finds a task: it must be quiet before."""
    seen: list[Found] = []

    async def finds() -> bool:
        seen[:] = await all_found(connection)
        return bool(seen)

    await until(finds)
    [found] = seen
    return found


async def put_back(connection: Connection) -> Found:
    """Put back what is found."""
    found = await until_found(connection)
    assert await Reconciliation(connection.requests, QUIET_SECONDS).put_back(found)
    return found


async def until_quiet(connection: Connection, journal: Journal) -> None:
    """Wait until nobody would call the task too young to be looked at."""
    changed_at = await Reconciliation(connection.requests, 0).broker_time()

    async def is_quiet() -> bool:
        at = await Reconciliation(connection.requests, 0).broker_time()
        return at - changed_at > timedelta(seconds=2 * QUIET_SECONDS)

    await until(is_quiet)


async def begun(connection: Connection, **fields: Any) -> Journal:
    """A journal with its first event and its record."""
    work = turn_work(**fields)
    journal = Journal(connection.requests, work.tenant, work.task)
    await journal.append(lambda stamp: queued_event(stamp, work), lambda _: True)
    await project(connection.requests, record(journal.state))
    return journal


async def asked(connection: Connection, *calls: ToolCall) -> Journal:
    """A journal whose first turn asked for calls."""
    journal = await begin_journal(connection.requests, turn_work())
    await journal.append(
        lambda stamp: events.TurnCompleted(
            *stamp, turn=1, text="", calls=list(calls), finish_reason="tool_calls", usage=Usage(), timings=Timings()
        ),
        lambda _: True,
    )
    return journal


def kinds(found: Found) -> list[tuple[str, str]]:
    return [(each.kind, each.name) for each in found.lost]


async def test_a_task_that_was_accepted_and_whose_message_is_gone_runs(
    connection: Connection, settings: Settings
) -> None:
    journal = await begun(connection)
    found = await put_back(connection)
    assert kinds(found) == [("work", "1.g0")]
    async with working(connection, settings, Handler(answer)):
        await until(lambda: status_is(connection, journal.state.task, "completed"))


async def test_a_claimed_turn_whose_message_is_gone_is_done_by_another(
    connection: Connection, settings: Settings
) -> None:
    journal = await begin_journal(connection.requests, turn_work())
    await project(connection.requests, record(journal.state))
    found = await put_back(connection)
    assert kinds(found) == [("work", "1.g0")]
    state = (await Journal.load(connection.requests, "default", journal.state.task)).state
    assert state.bindings == {}
    async with working(connection, settings, Handler(answer)):
        await until(lambda: status_is(connection, journal.state.task, "completed"))


async def test_what_lies_in_its_queue_is_left_there_claimed_or_not(connection: Connection) -> None:
    waits = turn_work()
    await publish_work(connection.requests, waits)
    claimed = turn_work()
    sequence = (await publish_work(connection.requests, claimed)).seq
    for work in (waits, claimed):
        journal = Journal(connection.requests, work.tenant, work.task)
        await journal.append(lambda stamp, work=work: queued_event(stamp, work), lambda _: True)  # type: ignore[misc]  # bound now
        if work is claimed:
            await journal.append(
                lambda stamp: events.StepClaimed(
                    *stamp, step="1", gen=0, message=sequence, worker="w", delivery=1, turn=1
                ),
                lambda _: True,
            )
        await project(connection.requests, record(journal.state))
    await until_quiet(connection, journal)
    assert await all_found(connection) == []
    await connection.requests.api("STREAM.PURGE.TASKS")
    assert len(await all_found(connection)) == 2


async def test_each_call_that_is_gone_comes_back_and_those_that_wait_for_people_keep_their_timers(
    connection: Connection,
) -> None:
    journal = await asked(
        connection,
        ToolCall("1-0", "add", {"a": 1, "b": 2}),
        ToolCall("1-1", "add", {"a": 1, "b": 2}, approval=True),
        ToolCall("1-2", "ask_user", {"question": "Why?"}),
    )
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    await journal.append(
        lambda stamp: events.ApprovalRequested(*stamp, call="1-1", tool="add", arguments={}, expires_at=expires_at),
        lambda _: True,
    )
    await journal.append(
        lambda stamp: events.InputRequested(*stamp, question="Why?", call="1-2", expires_at=expires_at),
        lambda _: True,
    )
    await project(connection.requests, record(journal.state))
    task = journal.state.task
    found = await put_back(connection)
    timers = [subjects.timer_at("approval", "default", task, call) for call in ("1-1", "1-2")]
    assert kinds(found) == [("work", "1-0.g0"), *(("timer", timer) for timer in timers)]
    for timer in timers:
        assert await last_from_leader(connection.requests, "TIMERS", timer) is not None
    page = await read_page(connection.requests, "TOOLS", "tools.add", 0)
    assert len(page.messages) == 1
    await until_quiet(connection, journal)
    assert await all_found(connection) == []


async def test_a_later_try_is_brought_by_its_timer_again_and_by_a_message_once_it_is_due(
    connection: Connection, settings: Settings
) -> None:
    journal = await begin_journal(connection.requests, turn_work())

    async def fail(delay_seconds: float, tries: int) -> None:
        await journal.append(
            lambda stamp: events.TaskRetrying(
                *stamp, step="1", gen=0, reason="rate-limited", delay_seconds=delay_seconds, tries=tries, timer=True
            ),
            lambda _: True,
        )
        await project(connection.requests, record(journal.state))

    await fail(3600, 1)
    found = await put_back(connection)
    timer = subjects.timer_at("retry", "default", journal.state.task, "1-g0-t1")
    assert kinds(found) == [("timer", timer)]
    await claim_first_turn(journal, "test")
    await fail(0.1, 2)
    await until_quiet(connection, journal)
    found = await put_back(connection)
    assert kinds(found) == [("work", "1.g0")]
    async with working(connection, settings, Handler(answer)):
        await until(lambda: status_is(connection, journal.state.task, "completed"))


async def test_a_deadline_whose_timer_is_gone_still_ends_the_task(connection: Connection, settings: Settings) -> None:
    journal = await begun(connection, deadline_seconds=stretched(1))
    task = journal.state.task
    await publish_outbox(connection.requests, deadline_timer(journal.state), None)
    await connection.requests.api("STREAM.PURGE.TIMERS")
    found = await put_back(connection)
    assert ("timer", subjects.timer_at("deadline", "default", task, "task")) in kinds(found)
    async with background(ControlLoop(connection, settings, "steward", "TIMERS").run()):
        await until(lambda: status_is(connection, task, "expired"))


async def spawned(connection: Connection) -> tuple[Journal, str]:
    """A parent that waits for its child, and the child."""
    journal = await asked(connection, ToolCall("1-0", "spawn_task", {"input": "hello"}))
    child = child_id(journal.state.task, "1-0", 0)
    await journal.append(lambda stamp: events.SubtaskStarted(*stamp, call="1-0", child=child), lambda _: True)
    await project(connection.requests, record(journal.state))
    return journal, child


async def test_a_sub_task_whose_first_message_is_gone_begins(connection: Connection) -> None:
    journal, child = await spawned(connection)
    await publish_outbox(connection.requests, messages_after(journal.state, "1-0"), None)
    await connection.requests.api("STREAM.PURGE.TASKS")
    found = await put_back(connection)
    assert kinds(found) == [("sub-task", child)]
    [message] = (await read_page(connection.requests, "TASKS", ">", 0)).messages
    assert child.encode() in message.payload


async def test_a_sub_task_whose_end_the_parent_has_not_heard_of_is_told_again(
    connection: Connection, settings: Settings
) -> None:
    journal, child = await spawned(connection)
    [first] = messages_after(journal.state, "1-0")
    assert isinstance(first.payload, TurnWork)
    ended = Journal(connection.requests, "default", child)
    work = first.payload
    await ended.append(lambda stamp: queued_event(stamp, work), lambda _: True)
    await end_task(ended)
    found = await put_back(connection)
    assert kinds(found) == [("news", child)]
    async with background(ControlLoop(connection, settings, "steward").run()):

        async def heard() -> bool:
            return "1-0" in (await Journal.load(connection.requests, "default", journal.state.task)).state.call_results

        await until(heard)


async def test_a_turn_that_lacks_its_end_is_brought_to_it(connection: Connection, settings: Settings) -> None:
    journal = await begin_journal(connection.requests, turn_work())
    await complete_turn(journal)
    await project(connection.requests, record(journal.state))
    assert kinds(await put_back(connection)) == [("work", "1.g0")]
    async with working(connection, settings, Handler(answer)):
        await until(lambda: status_is(connection, journal.state.task, "completed"))


async def test_a_record_that_missed_its_tasks_end_is_written(connection: Connection) -> None:
    journal = await begin_journal(connection.requests, turn_work())
    await project(connection.requests, record(journal.state))
    await complete_turn(journal)
    await end_task(journal)
    await put_back(connection)
    assert await status_is(connection, journal.state.task, "completed")


HOW = [
    "a dead letter is open",
    "it is young",
    "somebody was faster",
    "a timer brings what was refused for want of room",
]


@pytest.mark.parametrize("how", HOW)
async def test_a_task_is_left_alone(connection: Connection, how: str) -> None:
    journal = await begun(connection)
    if how == HOW[-1]:
        command = RoomCommand(
            task=journal.state.task, tenant="default", by=BY_MESH, step="1", gen=0, tries=0, releases=0, refusals=1
        )
        await publish_outbox(connection.requests, [room_timer(command, now() + timedelta(hours=1))], None)
        await until_quiet(connection, journal)
        assert await all_found(connection) == []
    elif how == "a dead letter is open":
        await journal.append(
            lambda stamp: events.TaskDeadLettered(
                *stamp, step="1", gen=0, error=ErrorInfo("internal", "it broke"), deliveries=1
            ),
            lambda _: True,
        )
        await project(connection.requests, record(journal.state))
        await put_back(connection)  # Its record.
        await until_quiet(connection, journal)
        assert await all_found(connection) == []
    elif how == "it is young":
        assert await all_found(connection, 3600) == []
    else:
        found = await until_found(connection)
        await claim_first_turn(journal, "faster")
        assert not await Reconciliation(connection.requests, QUIET_SECONDS).put_back(found)
        assert (await read_page(connection.requests, "TURNS", ">", 0)).messages == []


async def test_put_back_twice_a_step_is_done_once(connection: Connection, settings: Settings) -> None:
    """Two stewards at once, and the message that was thought to be gone comes after all."""
    journal = await begun(connection)
    found = [await until_found(connection) for _ in range(2)]
    reconciliation = Reconciliation(connection.requests, QUIET_SECONDS)
    assert [await reconciliation.put_back(each) for each in found] == [True, False]
    queued = journal.state.queued
    assert queued is not None
    late = TurnWork(
        task=queued.task,
        tenant=queued.tenant,
        turn=1,
        pool="default",
        priority="normal",
        request=queued.request,
        accepted_at=queued.accepted_at,
    )
    await connection.requests.publish(subjects.tasks("default", "normal", "default"), encode(late))
    claims: list[str] = []

    async def counted(step: Any) -> None:
        claims.append(step.claim.id)
        await answer(step)

    async with working(connection, settings, Handler(counted)):
        await until(lambda: queues_are_empty(connection))
    assert len(claims) == 1


async def test_the_record_of_a_step_that_gave_up_is_written_though_its_message_is_gone(connection: Connection) -> None:
    """Who appended the event died before it could, and nobody meets the message any more."""
    journal = await begin_journal(connection.requests, turn_work())
    await project(connection.requests, record(journal.state))
    error = ErrorInfo("provider-error", "broken")
    await journal.append(
        lambda stamp: events.TaskDeadLettered(*stamp, step="1", gen=0, error=error, deliveries=3), lambda _: True
    )
    found = await put_back(connection)
    assert kinds(found) == [("record", "status"), ("dead letter", "1.g0")]
    stored = await read_stored(connection.requests)
    [letter] = stored.dead_letters
    assert (letter["task"], letter["step"], letter["gen"]) == (journal.state.task, "1", 0)
    assert (letter["errors"][-1]["code"], letter["deliveries"]) == ("provider-error", 3)
    assert stored.records[journal.state.task]["status"] == "dead_lettered"
    await until_quiet(connection, journal)
    assert await all_found(connection) == []
