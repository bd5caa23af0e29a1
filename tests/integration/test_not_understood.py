"""Messages of another version: left to its processes as long as may be, then given up so that they can come back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from contracts import headers, subjects
from contracts.codec import decode, encode
from contracts.identifiers import new_id
from contracts.journal.events import ApprovalRequested
from contracts.journal.parts import Parent, StepGen
from contracts.messages.control import ApprovalCommand, DeadlineCommand, ReplayCommand, replay_message_id
from contracts.messages.work import TurnWork
from ingress.approving import Approving
from mesh.access.callers import ANYBODY, Caller
from mesh.background import background
from mesh.broker.connection import Connection
from mesh.broker.direct_get import read_page
from mesh.clock import now
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.settings import Settings
from mesh.errors import JournalNotUnderstood
from mesh.journal.giving_up import left_seconds
from mesh.journal.journal import Journal
from mesh.journal.warm import WarmJournals
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


async def test_who_may_approve_is_not_told_while_the_task_above_can_t_be_read(connection: Connection) -> None:
    """It is no mistake of who approves, and no reason to let them."""
    requests = connection.requests
    parent = new_id()
    await requests.publish(subjects.journal_log("default", parent), b'{"type":"task.queued","v":1}')
    journal = await begin_journal(requests, msgspec.structs.replace(turn_work(), parent=Parent(parent, "1-0", 1)))
    await journal.append(
        lambda stamp: ApprovalRequested(
            *stamp, call="1-0", tool="charge", arguments={}, expires_at=now() + timedelta(days=1)
        ),
        lambda _: True,
    )
    rules = parse_configuration(b"[pools.default]\n[approvals]\nfour_eyes = true\n")
    approving = Approving(requests, WarmJournals(requests), rules)
    command = ApprovalCommand(task=journal.state.task, tenant="default", by="http", call="1-0", decision="approved")
    with pytest.raises(JournalNotUnderstood, match=parent):
        await approving.check(Caller(ANYBODY, "default"), journal.state, command)
