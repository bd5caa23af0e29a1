"""Tasks that wait in BACKLOG are tasks like others, against a real broker: begun, found, cancelled, put off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from contracts import headers, subjects
from contracts.codec import decode, encode
from contracts.identifiers import new_id, turn_message_id
from contracts.messages.work import TurnWork
from contracts.streams import BACKLOG, TASKS, TIMERS, TURNS
from contracts.tasks import Priority, TaskRequest
from mesh.admission import backlog
from mesh.background import background
from mesh.broker.connection import Connection
from mesh.broker.deliveries import Delivery
from mesh.broker.direct_get import journal_exists, read_page, subjects_of
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.configuration.tenants_table import TenantConfiguration, TenantsConfiguration
from mesh.errors import IdempotencyMismatch, QueueFull
from mesh.journal.journal import Journal
from mesh.journal.projection import project
from mesh.journal.reconciliation import Reconciliation
from mesh.journal.settling import publish_outbox
from mesh.journal.submission import Submission, begin
from mesh.task.outbox import deadline_timer
from mesh.task.records import record
from steward.admission.mover import Mover
from steward.sweeps.kinds import forgotten
from steward.unbegun import Unbegun
from tests.integration.test_control import ask_to_cancel, controlling
from tests.integration.test_work import status_is
from tests.support.limits import limit
from tests.support.tasks import begin_journal, end_task
from tests.support.waiting import until

pytestmark = pytest.mark.integration

QUIET_SECONDS = 0.3
ASKED = TaskRequest(input="hello")


def first_turn(**fields: Any) -> TurnWork:
    """A first turn, as its submitter has sent it."""
    return TurnWork(
        **{
            "task": new_id(),
            "tenant": "default",
            "turn": 1,
            "pool": "default",
            "priority": "normal",
            "request": ASKED,
            "accepted_at": now(),
            **fields,
        }
    )


async def put(connection: Connection, work: TurnWork) -> None:
    """Accept it into BACKLOG, and no more."""
    ids = {headers.MESSAGE_ID: turn_message_id(work.task, 1, 0)}
    await backlog.put(connection.requests, backlog.queue_of(work), encode(work), ids)


async def waiting(connection: Connection, stream: str = BACKLOG.name) -> list[str]:
    """The tasks whose messages a stream has, in order."""
    page = await read_page(connection.requests, stream, ">", 0)
    return [decode(message.payload, TurnWork).task for message in page.messages]


async def move(connection: Connection) -> None:
    """Move all there is on by hand."""
    for message in (await read_page(connection.requests, BACKLOG.name, ">", 0)).messages:
        ids = {headers.MESSAGE_ID: message.headers[headers.MESSAGE_ID]}
        await connection.requests.publish(backlog.destination(message), message.payload, ids)
        await connection.requests.delete_message(BACKLOG.name, message.sequence)


@asynccontextmanager
async def moving(connection: Connection, settings: Settings) -> AsyncIterator[Mover]:
    mover = Mover(connection, settings.configuration.tenants.of, "steward")
    async with background(mover.run()):
        yield mover


async def lost(connection: Connection) -> int:
    """How many tasks wait for a message that is gone."""
    reconciliation = Reconciliation(connection.requests, QUIET_SECONDS)
    at = await reconciliation.broker_time()
    walk = await reconciliation.walk(0, at, 256, 256)
    return sum([await reconciliation.examine(task, at) is not None for task in walk.open])


async def until_quiet(connection: Connection) -> None:
    """Wait until nothing that is there now is too young to be looked at."""
    began = await Reconciliation(connection.requests, 0).broker_time()

    async def is_quiet() -> bool:
        at = await Reconciliation(connection.requests, 0).broker_time()
        return at - began > timedelta(seconds=3 * QUIET_SECONDS)

    await until(is_quiet)


async def test_a_task_that_waits_there_is_not_lost_nor_once_it_was_moved_on_late(connection: Connection) -> None:
    work = first_turn()
    await put(connection, work)
    state = await begin(connection.requests, work, None)
    assert state is not None
    await project(connection.requests, record(state))
    await until_quiet(connection)
    assert await lost(connection) == 0
    await move(connection)
    assert await waiting(connection, TASKS.name) == [work.task]
    assert await lost(connection) == 0
    await connection.requests.purge(TASKS.name, "tasks.>")
    assert await lost(connection) == 1


async def test_a_task_that_is_cancelled_while_it_waits_is_gone_at_once(
    connection: Connection, settings: Settings
) -> None:
    works = [first_turn(), first_turn(), first_turn()]
    for work in works:
        await put(connection, work)
        await begin(connection.requests, work, None)
    async with controlling(connection, settings):
        await ask_to_cancel(connection, works[1].task)
        await until(lambda: status_is(connection, works[1].task, "cancelled"))

        async def is_gone() -> bool:
            return await waiting(connection) == [works[0].task, works[2].task]

        await until(is_gone)


async def test_a_task_whose_deadline_comes_while_it_waits_is_gone_at_once(
    connection: Connection, settings: Settings
) -> None:
    work = first_turn(deadline=now())
    await put(connection, work)
    state = await begin(connection.requests, work, None)
    assert state is not None
    async with controlling(connection, settings, TIMERS.name):
        await publish_outbox(connection.requests, deadline_timer(state), None)
        await until(lambda: status_is(connection, work.task, "expired"))

        async def is_gone() -> bool:
            return not await waiting(connection)

        await until(is_gone)


async def test_a_task_whose_submitter_died_is_begun_while_it_waits(connection: Connection) -> None:
    work = first_turn()
    await put(connection, work)
    await Unbegun(connection.requests, 0.0, BACKLOG.name).round()
    assert await journal_exists(connection.requests, work.tenant, work.task)


async def test_a_message_of_a_task_that_has_ended_is_swept_and_one_that_has_not_begun_stays(
    connection: Connection,
) -> None:
    ended, absent = first_turn(), first_turn()
    for work in (ended, absent):
        await put(connection, work)
    await begin_journal(connection.requests, ended)
    await end_task(await Journal.load(connection.requests, ended.tenant, ended.task))
    page = await read_page(connection.requests, BACKLOG.name, ">", 0)
    await forgotten(connection.requests, BACKLOG.name, page.messages)
    assert await waiting(connection) == [absent.task]


async def deliver(connection: Connection, stream: str) -> Delivery:
    """The next delivery of the lane."""
    subscription = await connection.client.jetstream().pull_subscribe_bind("default-normal", stream)
    [message] = await subscription.fetch(1, timeout=30)
    await subscription.unsubscribe()
    return Delivery(connection.client, connection.requests, message, 30.0)


@pytest.mark.parametrize("stream", [TASKS.name, TURNS.name])
async def test_a_turn_that_was_put_off_comes_back_to_where_it_was_once(
    connection: Connection, settings: Settings, stream: str
) -> None:
    work = first_turn() if stream == TASKS.name else first_turn(request=None, accepted_at=None, turn=2)
    subject = f"{stream.lower()}.default.normal.default"
    await connection.requests.publish(subject, encode(work), {headers.MESSAGE_ID: turn_message_id(work.task, 1, 0)})
    for _ in range(2):  # It may have to wait again.
        delivery = await deliver(connection, stream)
        for _ in range(2):  # Who put it off died before the ack, and did it again.
            await backlog.put_off(connection.requests, delivery)
        await connection.requests.delete_message(stream, delivery.sequence)
        assert await waiting(connection) == [work.task]
        async with moving(connection, settings):

            async def is_back() -> bool:
                return await waiting(connection, stream) == [work.task] and not await waiting(connection)

            await until(is_back)
    [back] = (await read_page(connection.requests, stream, ">", 0)).messages
    assert back.headers[headers.MESSAGE_ID].count(f".{stream.lower()}-") == 1, "it grows by no more than this"


# Submissions


async def full(connection: Connection) -> None:
    """TASKS takes no more of the lane."""
    await connection.requests.publish("tasks.default.normal.default", b"{}")
    await limit(connection.requests, TASKS.name, max_msgs_per_subject=1)


async def test_what_a_full_lane_refuses_waits_in_the_backlog_as_one_task(connection: Connection) -> None:
    await full(connection)
    submission = Submission(connection.requests)
    first = await submission.submit(ASKED, "default", "key", None)
    again = await submission.submit(ASKED, "default", "key", None)
    assert (first.existing, again.existing, again.task) == (False, True, first.task)
    assert await waiting(connection) == [first.task]
    with pytest.raises(IdempotencyMismatch):
        await submission.submit(TaskRequest(input="something else"), "default", "key", None)


async def test_a_submitter_that_died_after_the_backlog_had_accepted_is_found_by_its_key(connection: Connection) -> None:
    await full(connection)
    submission = Submission(connection.requests)
    accepted = first_turn(task=(await submission.submit(ASKED, "default", "known", None)).task)
    await connection.requests.purge("EVENTS", f"events.default.{accepted.task}.*")
    again = await submission.submit(ASKED, "default", "known", None)
    assert (again.task, again.existing) == (accepted.task, True)
    assert await waiting(connection) == [accepted.task]
    assert await journal_exists(connection.requests, "default", accepted.task)


async def test_a_lane_that_the_stewards_order_gets_what_is_new_by_the_backlog(
    connection: Connection, settings: Settings
) -> None:
    await put(connection, first_turn(tenant="flood"))
    async with moving(connection, settings) as mover:
        mover.add_condition(lambda tenant, _pool, _priority: tenant != "flood")
        mover.crowd([("default", "normal")])

        async def is_ordered() -> bool:
            return await connection.requests.backlog_lanes.look("default", "normal")

        await until(is_ordered)
        mover.add_condition(lambda *_: False)
        submitted = await Submission(connection.requests).submit(ASKED, "few", None, None)
        child = first_turn(tenant="agent")
        await backlog.send(connection.requests, "tasks.default.normal.agent", encode(child), {})
        assert await waiting(connection, TASKS.name) == []
        assert set(await waiting(connection)) > {submitted.task, child.task}
        other = await Submission(connection.requests).submit(TaskRequest(input="x", priority="high"), "few", None, None)
        assert await waiting(connection, TASKS.name) == [other.task]


def tenants(**fields: Any) -> TenantsConfiguration:
    return TenantsConfiguration(tenants={"bounded": TenantConfiguration(**fields)})


async def test_a_tenant_has_no_more_waiting_than_it_may_and_others_do(connection: Connection) -> None:
    submission = Submission(connection.requests, tenants=tenants(backlog=2, running=1))
    for _ in range(2):
        await submission.submit(ASKED, "bounded", None, None)
    with pytest.raises(QueueFull):
        await submission.submit(ASKED, "bounded", None, None)
    await submission.submit(ASKED, "other", None, None)


async def test_no_more_of_a_tenant_are_worked_on_than_may_be(connection: Connection, settings: Settings) -> None:
    for _ in range(5):
        await put(connection, first_turn(tenant="bounded"))
    for _ in range(3):
        await put(connection, first_turn(tenant="other"))
    async with moving(connection, settings) as mover:
        mover._tenant_of = tenants(running=2).of

        async def none_of_others_waits() -> bool:
            return not await subjects_of(connection.requests, BACKLOG.name, "backlog.*.*.other")

        for _ in range(3):
            delivery = await deliver(connection, TASKS.name)
            await connection.requests.delete_message(TASKS.name, delivery.sequence)
            there = await subjects_of(connection.requests, TASKS.name, "tasks.*.*.bounded")
            assert sum(there.values()) <= 2
        while not await none_of_others_waits():
            delivery = await deliver(connection, TASKS.name)
            await connection.requests.delete_message(TASKS.name, delivery.sequence)
            there = await subjects_of(connection.requests, TASKS.name, "tasks.*.*.bounded")
            assert sum(there.values()) <= 2


@pytest.mark.parametrize(("asked", "got"), [("high", "low"), ("low", "low")])
async def test_the_estimate_and_why_the_lane_is_another_are_in_the_journal(
    connection: Connection, asked: Priority, got: str
) -> None:
    submission = Submission(connection.requests, tenants=tenants(tier="normal", lower_above_tokens=100))
    request = TaskRequest(input="x" * 4_000, priority=asked, max_output_tokens=50)
    submitted = await submission.submit(request, "bounded", None, None)
    assert submitted.priority == got
    queued = (await Journal.load(connection.requests, "bounded", submitted.task)).state.queued
    assert queued is not None
    assert queued.estimate is not None
    assert (queued.priority, queued.estimate.basis, queued.estimate.output_tokens) == (got, "limit", 50)
    assert queued.estimate.lowered_from == (None if asked == got else asked)
    assert await subjects_of(connection.requests, TASKS.name, "tasks.>") == {
        subjects.tasks("default", got, "bounded"): 1
    }
