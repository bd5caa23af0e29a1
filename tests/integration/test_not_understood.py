"""Messages of another version: left to its processes as long as may be, then given up so that they can come back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from contracts import headers, subjects
from contracts.codec import decode, encode
from contracts.journal.parts import StepGen
from contracts.messages.control import DeadlineCommand, ReplayCommand, replay_message_id
from contracts.messages.work import TurnWork
from mesh.background import background
from mesh.broker.connection import Connection
from mesh.broker.direct_get import read_page
from mesh.configuration.settings import Settings
from mesh.journal.giving_up import left_seconds
from mesh.journal.journal import Journal
from mesh.task.decisions import queued_event
from steward.control_loop import ControlLoop
from tests.integration.test_work import Handler, answer, queues_are_empty, status_is, working
from tests.support.checker import read_stored
from tests.support.tasks import begin_journal, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.integration


def of_another_version(message: Any, **fields: object) -> bytes:
    """A message with fields as this version does not take them."""
    return encode(decode(encode(message), dict) | fields)


async def test_a_step_whose_message_nobody_understands_gives_up_and_is_replayed_from_its_journal(
    connection: Connection, settings: Settings
) -> None:
    settings = replace(settings, max_deliver=2)
    first = turn_work()
    journal = Journal(connection.requests, first.tenant, first.task)
    await journal.append(lambda stamp: queued_event(stamp, first), lambda _: True)
    work = TurnWork(task=first.task, tenant="default", turn=1, pool="default", priority="normal")
    async with (
        working(connection, settings, Handler(answer)),
        background(ControlLoop(connection, settings, "steward").run()),
    ):
        subject = subjects.turns("default", "normal", "default")
        await connection.requests.publish(subject, of_another_version(work, deadline="at noon"))
        await until(lambda: status_is(connection, work.task, "dead_lettered"))
        [letter] = (await read_stored(connection.requests)).dead_letters
        assert (letter["step"], letter["gen"], letter["deliveries"]) == ("1", 0, 2)
        assert letter["errors"][-1]["code"] == "not-understood"

        steps = [StepGen("1", 0)]
        command = ReplayCommand(task=work.task, tenant="default", by="test", steps=steps)
        message_headers = {headers.MESSAGE_ID: replay_message_id(work.task, steps)}
        await connection.requests.publish(subjects.control("replay", "default"), encode(command), message_headers)
        await until(lambda: status_is(connection, work.task, "completed"))


@pytest.mark.parametrize(
    ("subject", "stream"),
    [("timers.fired.reminder.default.{task}.task", "TIMERS"), ("control.reminder.default", "CONTROL")],
)
async def test_a_command_of_an_unknown_kind_is_left_to_another_steward_and_kept(
    connection: Connection, settings: Settings, subject: str, stream: str
) -> None:
    """An older steward would have taken it away: a task that waits for it would wait for ever."""
    settings = replace(settings, max_deliver=2)
    journal = await begin_journal(connection.requests, turn_work())
    task = journal.state.task
    command = of_another_version(DeadlineCommand(task=task, tenant="default", by="taskmesh"), kind="reminder")
    async with background(ControlLoop(connection, settings, "steward", stream).run()):
        await connection.requests.publish(subject.format(task=task), command)

        await until(lambda: _is_given_up(connection))
    [letter] = (await read_stored(connection.requests)).dead_letters
    assert (letter["errors"][-1]["code"], letter["deliveries"], letter["message"]) == (
        "not-understood",
        2,
        command.decode(),
    )


async def _is_given_up(connection: Connection) -> bool:
    return bool((await read_page(connection.requests, "DEAD_LETTERS", ">", 0)).messages)


async def test_a_journal_with_an_event_that_this_version_refuses_is_left_to_another(
    connection: Connection, settings: Settings
) -> None:
    settings = replace(settings, max_deliver=2)
    first = turn_work()
    journal = Journal(connection.requests, first.tenant, first.task)
    await journal.append(lambda stamp: queued_event(stamp, first), lambda _: True)
    page = await read_page(connection.requests, "EVENTS", subjects.journal("default", first.task), 0)
    beyond = of_another_version(decode(page.messages[0].payload, dict), type="step.claimed", n=1, step=7)
    await connection.requests.publish(subjects.journal_log("default", first.task), beyond)
    work = TurnWork(task=first.task, tenant="default", turn=1, pool="default", priority="normal")
    async with working(connection, settings, Handler(answer)):
        await connection.requests.publish(subjects.turns("default", "normal", "default"), encode(work))
        await until(lambda: _is_given_up(connection))
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    [letter] = stored.dead_letters
    assert (letter["errors"][-1]["code"], letter.get("task")) == ("not-understood", None)


def test_a_message_that_is_left_rests_longer_each_time_and_at_most_ten_seconds() -> None:
    assert [left_seconds(deliveries) for deliveries in (1, 2, 3, 4, 5, 100)] == [1, 2, 4, 8, 10, 10]
