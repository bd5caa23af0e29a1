"""TIMERS at its limit: no living timer is ever dropped. What is over goes at once; who wants another one waits."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta

import pytest

from contracts import subjects
from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.journal.events import ApprovalRequested, TurnCompleted
from contracts.journal.parts import Timings, ToolCall, Usage
from contracts.messages.control import ApprovalCommand
from mesh.broker.connection import Connection
from mesh.broker.levels import TIMERS_PERCENT_MAX
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable
from mesh.journal.journal import Journal
from mesh.journal.settling import publish_outbox, settle
from mesh.task.outbox import deadline_timer, messages_after
from mesh.task.state import TaskState
from tests.integration.test_control import controlling
from tests.integration.test_work import Handler, answer, queues_are_empty, working
from tests.support.checker import read_stored
from tests.support.limits import level, limit
from tests.support.tasks import begin_journal, end_task, publish_work, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.integration

LIMIT_BYTES = 64 * 1024
HOLDS = LIMIT_BYTES // 400
"""More timers than the stream can hold."""
TASKS = 3 * HOLDS


async def timers(connection: Connection, part: str = "at.>") -> set[str]:
    """The timers that are there, by their subjects."""
    info = await connection.requests.api("STREAM.INFO.TIMERS", {"subjects_filter": f"timers.{part}"})
    return set(info["state"].get("subjects") or {})


async def waiting_for_approval(connection: Connection, hours: float = 24) -> Journal:
    """A task that waits for a person, with its timer."""
    journal = await begin_journal(connection.requests, turn_work())
    call = ToolCall("1-0", "add", {}, approval=True)
    await journal.append(
        lambda stamp: TurnCompleted(
            *stamp, turn=1, text="", calls=[call], finish_reason="tool_calls", usage=Usage(), timings=Timings()
        ),
        lambda _: True,
    )
    await journal.append(
        lambda stamp: ApprovalRequested(
            *stamp, call="1-0", tool="add", arguments={}, expires_at=now() + timedelta(hours=hours)
        ),
        lambda _: True,
    )
    await publish_outbox(connection.requests, messages_after(journal.state, "1"), None)
    return journal


async def test_tasks_with_deadlines_come_and_go_and_an_old_timer_stays(
    connection: Connection, settings: Settings
) -> None:
    await limit(connection.requests, "TIMERS", max_bytes=LIMIT_BYTES)
    await waiting_for_approval(connection)
    [oldest] = await timers(connection)
    accepted: set[str] = set()
    peak = 0.0
    async with controlling(connection, settings, "TIMERS"), working(connection, settings, Handler(answer)):
        for _ in range(TASKS):
            work = turn_work(deadline_seconds=3600)
            accepted.add(work.task)
            await publish_work(connection.requests, work)
            peak = max(peak, (await level(connection.requests, "TIMERS")).percent)
        await until(lambda: queues_are_empty(connection), seconds=60)
    assert await timers(connection) == {oldest}, "each task has taken its timer with it"
    assert peak <= 100
    stored = await read_stored(connection.requests)
    assert {stored.journals[task][-1].event["type"] for task in accepted} == {"task.completed"}


async def test_without_room_timers_wait_and_none_is_dropped(connection: Connection) -> None:
    await limit(connection.requests, "TIMERS", max_bytes=LIMIT_BYTES)
    journals = [await begin_journal(connection.requests, turn_work(deadline_seconds=3600)) for _ in range(HOLDS)]
    refused: list[Journal] = []

    async def publish(journal: Journal) -> None:
        try:
            await publish_outbox(connection.requests, deadline_timer(journal.state), None)
        except BrokerUnavailable:
            refused.append(journal)

    # Many at once: they share one look, and must not all pass by it.
    await asyncio.gather(*map(publish, journals))
    published = {journal.state.task for journal in journals} - {journal.state.task for journal in refused}
    assert refused
    assert {subject.split(".")[4] for subject in await timers(connection)} == published, "none was dropped"
    percent = (await level(connection.requests, "TIMERS")).percent
    print(f"{len(published)} timers fit, {percent:.1f} % full")  # noqa: T201 - a figure, for who runs it with -s
    assert TIMERS_PERCENT_MAX - 2 <= percent < 100

    await limit(connection.requests, "TIMERS", max_bytes=10 * LIMIT_BYTES)

    async def all_are_there() -> bool:
        again, refused[:] = refused[:], []
        await asyncio.gather(*map(publish, again))
        return not refused

    await until(all_are_there)
    assert len(await timers(connection)) == HOLDS


async def test_what_has_fired_goes_once_it_is_carried_out(connection: Connection, settings: Settings) -> None:
    work = turn_work(deadline_seconds=0.5)
    journal = await begin_journal(connection.requests, work)
    await publish_outbox(connection.requests, deadline_timer(journal.state), None)
    # Nobody knows this one's task: it becomes a dead letter, and goes as well.
    await publish_outbox(connection.requests, deadline_timer(of_nobody(journal.state)), None)

    async def both_have_fired() -> bool:
        return len(await timers(connection, "fired.>")) == 2

    await until(both_have_fired)
    async with controlling(connection, settings, "TIMERS"):

        async def none_is_left() -> bool:
            return await timers(connection, ">") == set()

        await until(none_is_left)
    stored = await read_stored(connection.requests)
    assert stored.journals[work.task][-1].event["type"] == "task.expired"


def of_nobody(state: TaskState) -> TaskState:
    """The same task under an id that has no journal."""
    return dataclasses.replace(state, task=new_id())


@pytest.mark.parametrize("ends", ["answered", "over"])
async def test_the_timer_of_an_approval_goes_with_the_answer_and_with_the_task(
    connection: Connection, settings: Settings, ends: str
) -> None:
    journal = await waiting_for_approval(connection)
    other = await waiting_for_approval(connection)
    place = ("approval", "default", other.state.task, "1-0")
    if ends == "answered":
        async with controlling(connection, settings):
            command = ApprovalCommand(
                task=journal.state.task, tenant="default", by="test", call="1-0", decision="approved"
            )
            await connection.requests.publish(subjects.control("approval", "default"), encode(command))

            async def only_the_other_is_there() -> bool:
                return await timers(connection) == {subjects.timer_at(*place)}

            await until(only_the_other_is_there)
    else:
        await end_task(journal)
        await settle(connection.requests, journal.state, ("1",), None)
        assert await timers(connection) == {subjects.timer_at(*place)}
