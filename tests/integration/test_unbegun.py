"""Tasks that were accepted, and whose submitter died at once, against a real broker: their journals begin."""

from __future__ import annotations

from typing import Any

import pytest

from contracts import headers, subjects
from contracts.codec import encode
from contracts.identifiers import task_id_for_key, turn_message_id
from contracts.messages.work import TurnWork
from contracts.tasks import TaskRequest
from mesh.broker.connection import Connection
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.errors import IdempotencyMismatch
from mesh.journal.journal import Journal
from mesh.journal.submission import Submission
from steward.unbegun import MESSAGES_PER_PAGE_MAX, Unbegun
from tests.support.checker import read_stored
from tests.support.tasks import begin_journal, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.integration

TENANT = "default"
KEY = "order-17"
ASKED = TaskRequest(input="first")
ASKED_LATER = TaskRequest(input="second")
WINDOW_SECONDS = 0.2


async def accept(requests: Requests, work: TurnWork) -> None:
    """Put a first turn into TASKS, and die."""
    subject = subjects.tasks(work.pool, work.priority, work.tenant)
    await requests.publish(subject, encode(work), {headers.MESSAGE_ID: turn_message_id(work.task, 1, 0)})


def first_turn(task: str, request: TaskRequest = ASKED, **fields: Any) -> TurnWork:
    """A first turn, as its submitter has sent it."""
    return TurnWork(
        task=task,
        tenant=TENANT,
        turn=1,
        pool=request.pool,
        priority=request.priority,
        request=request,
        accepted_at=now(),
        **fields,
    )


async def accepted_under_the_key(connection: Connection) -> str:
    """A task whose submitter died, and that TASKS no longer knows by its message id."""
    requests = connection.requests
    config = (await requests.api("STREAM.INFO.TASKS"))["config"]
    await requests.api("STREAM.UPDATE.TASKS", config | {"duplicate_window": int(WINDOW_SECONDS * 1e9)})
    task = task_id_for_key(TENANT, KEY)
    await accept(requests, first_turn(task))

    async def is_forgotten() -> bool:
        probe = await requests.publish("tasks.probe.normal.default", b"", {headers.MESSAGE_ID: "probe"})
        if not probe.duplicate:
            probes.append(probe.seq)
        return len(probes) > 1

    probes: list[int] = []
    await until(is_forgotten)
    for sequence in probes:
        await requests.api("STREAM.MSG.DELETE.TASKS", {"seq": sequence})
    return task


async def inputs(connection: Connection) -> list[Any]:
    """What the messages in TASKS ask for, by the order in which they lie there."""
    return [message["request"]["input"] for message in (await read_stored(connection.requests)).work]


async def begun(connection: Connection, task: str) -> Any:
    """What a task's journal has begun with; None if it has not."""
    state = (await Journal.load(connection.requests, TENANT, task)).state
    return state.request.input if state.request else None


async def test_a_key_stands_for_what_was_accepted_first_however_long_that_waits(connection: Connection) -> None:
    task = await accepted_under_the_key(connection)
    await Unbegun(connection.requests, 0.0).round()
    submission = Submission(connection.requests)
    with pytest.raises(IdempotencyMismatch):
        await submission.submit(ASKED_LATER, TENANT, KEY, None)
    submitted = await submission.submit(ASKED, TENANT, KEY, None)
    await submission.close()
    assert (submitted.task, submitted.existing) == (task, True)
    assert await begun(connection, task) == "first"
    assert await inputs(connection) == ["first"]


async def test_without_a_look_the_second_submission_would_be_the_task(connection: Connection) -> None:
    """A negative control, and what remains while no steward runs for ten minutes."""
    task = await accepted_under_the_key(connection)
    submission = Submission(connection.requests)
    submitted = await submission.submit(ASKED_LATER, TENANT, KEY, None)
    await submission.close()
    assert (submitted.task, submitted.existing) == (task, False)
    assert await begun(connection, task) == "second"
    assert await inputs(connection) == ["first", "second"]


async def test_of_two_messages_of_a_task_the_first_begins_it(connection: Connection) -> None:
    task = await accepted_under_the_key(connection)
    await accept(connection.requests, first_turn(task, ASKED_LATER))
    await Unbegun(connection.requests, 0.0).round()
    assert await begun(connection, task) == "first"


async def test_all_that_has_waited_for_long_begins_once_and_what_is_no_work_is_passed_over(
    connection: Connection,
) -> None:
    requests = connection.requests
    begun_before = turn_work()
    await begin_journal(requests, begun_before)
    await accept(requests, begun_before)
    await requests.publish("tasks.default.normal.default", b"no JSON")
    tasks = [turn_work().task for _ in range(MESSAGES_PER_PAGE_MAX + 5)]
    for task in tasks:
        await accept(requests, first_turn(task))
    looking = Unbegun(requests, 0.0)
    await looking.round()
    assert [await begun(connection, task) for task in tasks] == ["first"] * len(tasks)
    last = (await read_stored(requests)).journals[begun_before.task][-1].sequence
    await looking.round()
    await Unbegun(requests, 0.0).round()
    stored = await read_stored(requests)
    assert all(len(stored.journals[task]) == 1 for task in tasks)
    assert stored.journals[begun_before.task][-1].sequence == last


async def test_what_has_not_waited_for_long_is_left_to_its_submitter(connection: Connection) -> None:
    task = turn_work().task
    await accept(connection.requests, first_turn(task))
    await Unbegun(connection.requests, 3600.0).round()
    assert await begun(connection, task) is None


async def test_a_deadline_counts_from_then_on_too(connection: Connection) -> None:
    task = turn_work().task
    await accept(connection.requests, first_turn(task, deadline=now()))
    await Unbegun(connection.requests, 0.0).round()
    message = await connection.requests.api(
        "STREAM.MSG.GET.TIMERS", {"last_by_subj": subjects.timer_at("deadline", TENANT, task, "task")}
    )
    assert message["message"]


async def test_a_stream_that_was_made_anew_is_walked_from_its_beginning(connection: Connection) -> None:
    requests = connection.requests
    looking = Unbegun(requests, 0.0)
    for _ in range(3):
        await accept(requests, first_turn(turn_work().task))
    await looking.round()
    config = (await requests.api("STREAM.INFO.TASKS"))["config"]
    await requests.api("STREAM.DELETE.TASKS")
    await requests.api("STREAM.CREATE.TASKS", config)
    task = turn_work().task
    await accept(requests, first_turn(task))
    for _ in range(2):
        await looking.round()
    assert await begun(connection, task) == "first"
