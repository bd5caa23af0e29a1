"""The backlog against a real broker: tasks go there, and a steward brings them on in fair order, once each."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from contracts import headers
from contracts.codec import decode, encode
from contracts.identifiers import new_id, turn_message_id
from contracts.messages.work import TurnWork
from contracts.records.backlog import BacklogRecord
from contracts.streams import BACKLOG, TASKS
from contracts.subjects import BACKLOG_KEY
from contracts.tasks import TaskRequest
from mesh.admission import backlog
from mesh.background import background
from mesh.broker import key_value
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import read_page, subjects_of
from mesh.clock import now
from mesh.configuration.settings import Settings
from steward.admission.mover import Mover
from tests.support.waiting import until

pytestmark = pytest.mark.integration


def first_turn(tenant: str, text: str = "hello") -> TurnWork:
    request = TaskRequest(input=text)
    return TurnWork(
        task=new_id(), tenant=tenant, turn=1, pool="default", priority="normal", request=request, accepted_at=now()
    )


async def wait_there(connection: Connection, tenant: str, count: int) -> list[str]:
    """So many tasks of a tenant, accepted into BACKLOG."""
    works = [first_turn(tenant) for _ in range(count)]
    for work in works:
        message_headers = {headers.MESSAGE_ID: turn_message_id(work.task, 1, 0)}
        await backlog.put(connection.requests, backlog.queue_of(work), encode(work), message_headers)
    return [work.task for work in works]


@asynccontextmanager
async def moving(connection: Connection, settings: Settings, steward: str = "steward-1") -> AsyncIterator[Mover]:
    mover = Mover(connection, settings.configuration.tenants.of, steward)
    async with background(mover.run()):
        yield mover


class Lane:
    """The lane `default.normal`, pulled by hand."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.tenants: list[str] = []
        self.tasks: Counter[str] = Counter()

    async def take(self, count: int) -> None:
        """Pull so many messages, and ack each."""
        subscription = await self._connection.client.jetstream().pull_subscribe_bind("default-normal", TASKS.name)
        while count > 0:
            try:
                messages = await subscription.fetch(1, timeout=30)
            except TimeoutError:
                return
            for message in messages:
                self.tenants.append(message.subject.rpartition(".")[2])
                self.tasks[decode(message.data, TurnWork).task] += 1
                await message.ack()
                count -= 1


async def left(connection: Connection, stream: str = BACKLOG.name) -> int:
    return sum((await subjects_of(connection.requests, stream, ">")).values())


async def test_tenants_take_turns_however_much_one_of_them_has(connection: Connection, settings: Settings) -> None:
    tasks = await wait_there(connection, "many", 60) + await wait_there(connection, "few", 5)
    lane = Lane(connection)
    async with moving(connection, settings):
        await lane.take(65)
        await until(lambda: is_empty(connection))
    assert set(lane.tenants[:12]) == {"few", "many"}
    assert max(index for index, tenant in enumerate(lane.tenants) if tenant == "few") < 20
    assert lane.tasks == Counter(tasks), "each once"


async def is_empty(connection: Connection) -> bool:
    return await left(connection) == 0


async def test_a_lane_that_nobody_pulls_gets_only_what_a_worker_may_soon_take(
    connection: Connection, settings: Settings
) -> None:
    await wait_there(connection, "many", 40)
    async with moving(connection, settings):

        async def lies_ready() -> bool:
            return await left(connection, TASKS.name) > 0

        await until(lies_ready)
        record = await said(connection)
        assert [(lane.pool, lane.priority) for lane in record.lanes] == [("default", "normal")]
        assert record.lanes[0].waiting <= 40
        assert await left(connection, TASKS.name) <= 4
    assert await left(connection) + await left(connection, TASKS.name) == 40


async def said(connection: Connection) -> BacklogRecord:
    entry = await key_value.get_from_leader(connection.requests, "lanes", BACKLOG_KEY)
    assert entry is not None
    assert entry.value is not None
    return decode(entry.value, BacklogRecord)


async def test_once_nothing_waits_no_lane_is_ordered_any_more(connection: Connection, settings: Settings) -> None:
    await wait_there(connection, "acme", 3)
    async with moving(connection, settings):
        await Lane(connection).take(3)

        async def is_released() -> bool:
            return not (await said(connection)).lanes

        await until(is_released)


async def test_two_stewards_do_not_move_at_once_and_one_takes_over_from_one_that_is_gone(
    connection: Connection, settings: Settings
) -> None:
    tasks = await wait_there(connection, "acme", 40)
    lane = Lane(connection)
    async with connect(settings, "other") as other, moving(connection, settings, "first"):
        await lane.take(5)
        assert (await said(connection)).mover == "first"
        async with moving(other, settings, "second"):
            await lane.take(5)
            assert (await said(connection)).mover == "first"
    # Both are gone without a word.
    async with moving(connection, settings, "third"):
        await lane.take(30)
        assert (await said(connection)).mover == "third"
        await until(lambda: is_empty(connection))
    assert lane.tasks == Counter(tasks)


async def test_what_was_moved_and_not_deleted_is_run_once(connection: Connection, settings: Settings) -> None:
    [task] = await wait_there(connection, "acme", 1)
    [message] = (await read_page(connection.requests, BACKLOG.name, "backlog.>", 0)).messages
    ids = {headers.MESSAGE_ID: turn_message_id(task, 1, 0)}
    await connection.requests.publish(backlog.destination(message), message.payload, ids)  # And there it died.
    lane = Lane(connection)
    async with moving(connection, settings):
        await lane.take(1)
        await until(lambda: is_empty(connection))
    assert await left(connection, TASKS.name) == 0


async def test_what_is_no_work_goes_on_to_whoever_says_so_and_a_strangers_subject_holds_up_nobody(
    connection: Connection, settings: Settings
) -> None:
    await connection.requests.publish("backlog.No-Pool.normal.acme", b"rubbish")
    await connection.requests.publish("backlog.default.normal.acme", b"rubbish")
    [task] = await wait_there(connection, "acme", 1)
    async with moving(connection, settings):

        async def both_are_there() -> bool:
            return await left(connection, TASKS.name) == 2

        await until(both_are_there)
    payloads = [message.payload for message in (await read_page(connection.requests, TASKS.name, ">", 0)).messages]
    assert payloads[0] == b"rubbish"
    assert task.encode() in payloads[1]


async def test_a_tenant_that_may_not_go_on_waits_and_holds_up_nobody(
    connection: Connection, settings: Settings
) -> None:
    paused = {"paused"}
    await wait_there(connection, "paused", 3)
    await wait_there(connection, "well", 3)
    lane = Lane(connection)
    async with moving(connection, settings) as mover:
        mover.add_condition(lambda tenant, _pool, _priority: tenant not in paused)
        await lane.take(3)
        assert lane.tenants == ["well"] * 3
        assert await left(connection) == 3
        paused.clear()
        mover.wake()
        await lane.take(3)
    assert lane.tenants[3:] == ["paused"] * 3


async def test_cheap_tasks_come_more_often_than_dear_ones_once_workers_have_told(
    connection: Connection, settings: Settings
) -> None:
    await wait_there(connection, "cheap", 200)
    await wait_there(connection, "dear", 200)
    lane = Lane(connection)
    async with moving(connection, settings) as mover:
        for _ in range(160):
            await lane.take(1)
            tenant = lane.tenants[-1]
            used = {"cheap": 100, "dear": 1_000}[tenant]
            mover._lane("default", "normal").order.used(tenant, 1, used, 1.0)
    later = Counter(lane.tenants[80:])
    assert later["cheap"] > 4 * later["dear"] > 0
