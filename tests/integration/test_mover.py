"""The mover's rounds, one by one, against a real broker: what it may move, what it tells, and what it costs."""

from __future__ import annotations

import asyncio

import pytest

from contracts import headers, subjects
from contracts.codec import decode, encode
from contracts.identifiers import new_id, turn_message_id
from contracts.messages.work import TurnWork
from contracts.records.backlog import BacklogRecord, LaneBacklog
from contracts.records.status import LaneStatistics
from contracts.streams import BACKLOG, TASKS, TURNS
from contracts.subjects import BACKLOG_KEY
from contracts.tasks import Priority, TaskRequest
from mesh.admission import backlog
from mesh.admission.entrance import SHARE_MIN, share_of
from mesh.background import background
from mesh.broker import key_value
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import read_page, subjects_of
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.configuration.tenants_table import TenantConfiguration, TenantsConfiguration
from mesh.errors import MessageTooLarge, QueueFull
from mesh.journal.submission import Submission
from steward.admission.fair_order import AHEAD_MIN
from steward.admission.lease import NOBODY
from steward.admission.mover import ROUND_SECONDS, Mover, Pause
from steward.lane_statistics import LaneKeeper
from tests.support.limits import limit
from tests.support.waiting import until

pytestmark = pytest.mark.integration


async def put(
    connection: Connection,
    tenant: str,
    count: int = 1,
    priority: Priority = "normal",
    pool: str = "default",
    text: str = "hello",
) -> list[TurnWork]:
    """So many tasks of a tenant, accepted into BACKLOG."""
    works: list[TurnWork] = []
    for _ in range(count):
        work = TurnWork(
            task=new_id(),
            tenant=tenant,
            turn=1,
            pool=pool,
            priority=priority,
            request=TaskRequest(input=text),
            accepted_at=now(),
        )
        ids = {headers.MESSAGE_ID: turn_message_id(work.task, 1, 0)}
        await backlog.put(connection.requests, backlog.queue_of(work), encode(work), ids)
        works.append(work)
    return works


async def counts(connection: Connection, stream: str = BACKLOG.name) -> dict[str, int]:
    return await subjects_of(connection.requests, stream, ">")


async def said(connection: Connection) -> BacklogRecord:
    entry = await key_value.get_from_leader(connection.requests, "lanes", BACKLOG_KEY)
    assert entry is not None
    assert entry.value is not None
    return decode(entry.value, BacklogRecord)


def tenants(**fields: object) -> TenantsConfiguration:
    return TenantsConfiguration(tenants={"bounded": TenantConfiguration(**fields)})  # type: ignore[arg-type]


async def test_a_bound_on_what_runs_is_one_for_all_lanes(connection: Connection) -> None:
    for priority in ("high", "normal", "low"):
        await put(connection, "bounded", 5, priority)
    mover = Mover(connection, tenants(running=2).of, "steward")
    for _ in range(4):
        await mover._round()
        assert sum((await counts(connection, TASKS.name)).values()) == 2


async def test_later_turns_that_come_back_at_once_are_let_in_with_the_others(connection: Connection) -> None:
    """Of a tenant that was paused, say: whatever lies in TURNS is taken before anything in TASKS."""
    for _ in range(40):
        later = TurnWork(task=new_id(), tenant="resumed", turn=2, pool="default", priority="normal")
        await backlog.put(connection.requests, backlog.queue_of(later), encode(later), {})
    await put(connection, "other", 40)
    mover = Mover(connection, TenantsConfiguration().of, "steward")
    for _ in range(10):
        await mover._round()
        ready = await counts(connection, TURNS.name), await counts(connection, TASKS.name)
        assert sum(ready[0].values()) + sum(ready[1].values()) <= 2 * AHEAD_MIN
    assert set(ready[0]) | set(ready[1]) == {"turns.default.normal.resumed", "tasks.default.normal.other"}


async def test_what_waits_for_a_pool_that_nobody_serves_stays_where_it_is(connection: Connection) -> None:
    await put(connection, "acme", 20, pool="retired")
    await put(connection, "acme", 1)
    mover = Mover(connection, TenantsConfiguration().of, "steward")
    for _ in range(10):
        await mover._round()
    assert await counts(connection) == {"backlog.retired.normal.acme": 20}
    assert await counts(connection, TASKS.name) == {"tasks.default.normal.acme": 1}


async def test_a_lane_that_takes_nothing_keeps_no_other(connection: Connection) -> None:
    """TASKS takes smaller messages than BACKLOG here, which no declaration has."""
    await put(connection, "large", 1, "high", text="x" * 20_000)
    await put(connection, "well", 1, "normal")
    await limit(connection.requests, TASKS.name, max_msg_size=10_000)
    mover = Mover(connection, TenantsConfiguration().of, "steward")
    with pytest.raises(MessageTooLarge):
        await mover._round()
    assert await counts(connection, TASKS.name) == {"tasks.default.normal.well": 1}
    assert await counts(connection) == {"backlog.default.high.large": 1}


async def test_a_steward_that_had_lost_the_lease_goes_by_nothing_that_it_has_read_before(
    connection: Connection,
) -> None:
    window_nanoseconds = 100_000_000
    await limit(connection.requests, TASKS.name, duplicate_window=window_nanoseconds)
    await put(connection, "acme", 20)
    first = Mover(connection, TenantsConfiguration().of, "first")
    await first._round()
    # Another steward moves what is there, and ends.
    record = BacklogRecord(mover="second", time=now())
    await key_value.put_json(connection.requests, "lanes", BACKLOG_KEY, record)
    await connection.requests.purge(BACKLOG.name, "backlog.>")
    await connection.requests.purge(TASKS.name, "tasks.>")
    probe = {headers.MESSAGE_ID: "probe"}
    await connection.requests.publish("tasks.default.high.acme", b"{}", probe)

    async def is_forgotten() -> bool:
        return not (await connection.requests.publish("tasks.default.high.acme", b"{}", probe)).duplicate

    await until(is_forgotten)
    await connection.requests.purge(TASKS.name, "tasks.default.high.acme")
    [new] = await put(connection, "acme")
    first._lease._written_at = float("-inf")
    for _ in range(3):
        await first._round()
    stored = (await read_page(connection.requests, TASKS.name, "tasks.>", 0)).messages
    assert [decode(message.payload, TurnWork).task for message in stored] == [new.task]


async def test_a_steward_that_stops_leaves_the_lease_to_the_next(connection: Connection, settings: Settings) -> None:
    await put(connection, "acme", 40)
    async with connect(settings, "other") as other:
        first = Mover(other, TenantsConfiguration().of, "first")
        async with background(first.run()):

            async def moves() -> bool:
                return bool(await counts(connection, TASKS.name))

            await until(moves)
        record = await said(connection)
        assert (record.mover, [lane.priority for lane in record.lanes]) == (NOBODY, ["normal"])
    second = Mover(connection, TenantsConfiguration().of, "second")
    await second._round()
    assert (await said(connection)).mover == "second"


async def test_a_round_is_no_sooner_for_all_that_is_told(connection: Connection, settings: Settings) -> None:
    """Neither of the steward that moves, which has nothing to do, nor of the one that waits for the lease."""
    await put(connection, "acme", 10)
    rounds = {"first": 0, "second": 0}
    loop = asyncio.get_running_loop()

    class Counted(Mover):
        async def _round(self) -> Pause:
            rounds[self._lease._steward] += 1
            return await super()._round()

    async with connect(settings, "other") as other:
        movers = [Counted(connection, TenantsConfiguration().of, "first")]
        movers[0]._still_rounds = 1_000
        await movers[0]._round()
        movers.append(Counted(other, TenantsConfiguration().of, "second"))
        async with background(*(mover.run() for mover in movers)):
            await until(lambda: rounds["second"] > 0)
            began_at, before = loop.time(), dict(rounds)
            while loop.time() < began_at + 1.5:
                await connection.requests.announce(subjects.BACKLOG_GREW, b"{}")
                await connection.client.flush()
            took_seconds = loop.time() - began_at
    assert rounds["first"] - before["first"] <= took_seconds / ROUND_SECONDS + 1
    assert rounds["second"] - before["second"] <= took_seconds + 1


async def test_a_tenant_that_may_not_go_on_does_not_order_its_lane(connection: Connection) -> None:
    paused = {"paused"}
    await put(connection, "paused", 3)
    mover = Mover(connection, TenantsConfiguration().of, "steward")
    mover.add_condition(lambda tenant, _pool, _priority: tenant not in paused)
    await mover._round()
    assert [(lane.waiting, lane.held) for lane in (await said(connection)).lanes] == [(3, True)]
    submission = Submission(connection.requests, is_paused=paused.__contains__)
    await submission.submit(TaskRequest(input="hello"), "other", None, None)
    await submission.submit(TaskRequest(input="hello"), "paused", None, None)
    assert await counts(connection, TASKS.name) == {"tasks.default.normal.other": 1}
    assert await counts(connection) == {"backlog.default.normal.paused": 4}
    paused.clear()
    await mover._round()
    assert not any(lane.held for lane in (await said(connection)).lanes)


async def test_how_full_it_is_is_told_and_leaves_what_is_left_to_those_with_little(connection: Connection) -> None:
    await limit(connection.requests, BACKLOG.name, max_msgs=40)
    await put(connection, "flood", 38)
    mover = Mover(connection, TenantsConfiguration().of, "steward")
    mover.add_condition(lambda *_: False)
    mover.crowd([("default", "normal")])
    await mover._round()
    assert (await said(connection)).used_percent == 95
    submission = Submission(connection.requests)
    for tenant in ("few", "flood"):  # 38 is no more than anybody may have of so much.
        await submission.submit(TaskRequest(input="hello"), tenant, None, None)
    flood = LaneBacklog(pool="default", priority="normal", waiting=600, tenants_waiting=1, tenants={"flood": 600})
    full = BacklogRecord(mover="steward", time=now(), lanes=(flood,), used_percent=95)
    await key_value.put_json(connection.requests, "lanes", BACKLOG_KEY, full)
    await connection.requests.delete_message(BACKLOG.name, 1)
    await connection.requests.backlog_lanes.refresh()
    with pytest.raises(QueueFull):
        await submission.submit(TaskRequest(input="hello"), "flood", None, None)
    await submission.submit(TaskRequest(input="hello"), "few", None, None)


@pytest.mark.parametrize(("used_percent", "share"), [(0, 5_000), (50, 5_000), (75, 2_500), (95, 500), (100, SHARE_MIN)])
def test_the_share_of_a_tenant_is_less_the_fuller_it_is(used_percent: int, share: int) -> None:
    assert share_of(used_percent) == share


async def test_what_is_told_is_small_however_many_lanes_and_tenants_there_are(connection: Connection) -> None:
    mover = Mover(connection, TenantsConfiguration().of, "steward")
    mover._waiting = {
        (f"a-pool-with-a-name-{number:03}", priority): {f"a-tenant-with-a-name-{one:04}": 1 for one in range(1_000)}
        for number in range(100)
        for priority in ("high", "normal", "low")
    }
    assert len(encode(BacklogRecord(mover="steward", time=now(), lanes=mover._told()))) < 128 * 1024


async def test_a_task_that_ends_is_taken_out_from_behind_any_number_of_large_ones(connection: Connection) -> None:
    before = await put(connection, "acme", 44, text="x" * 300_000)

    async def is_a_while_ago() -> bool:
        assert before[-1].accepted_at is not None
        return now() - before[-1].accepted_at > 2 * backlog.STORED_WITHIN

    await until(is_a_while_ago)
    [last] = await put(connection, "acme")
    assert last.accepted_at is not None
    assert await backlog.withdraw(connection.requests, backlog.queue_of(last), last.task, last.accepted_at)
    assert await counts(connection) == {"backlog.default.normal.acme": 44}


async def test_messages_that_are_large_are_not_all_kept_in_hand(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steward.admission.lane_moves.READ_AHEAD_BYTES_MAX", 300_000)
    for number in range(8):
        await put(connection, f"tenant-{number}", 3, text="x" * 100_000)
    mover = Mover(connection, TenantsConfiguration().of, "steward")
    for _ in range(3):
        await mover._round()
        assert sum(queue.size_bytes for queue in mover._lane("default", "normal")._queues.values()) <= 300_000
    assert sum((await counts(connection, TASKS.name)).values()) > 0, "it moves all the same"


async def test_what_waits_in_a_lane_is_told_with_what_waits_behind_it(connection: Connection) -> None:
    await put(connection, "acme", 3)
    await connection.requests.publish("tasks.default.normal.acme", b"{}")
    await LaneKeeper(connection, ("default",)).update()
    entry = await key_value.get_from_leader(connection.requests, "lanes", "default.normal")
    assert entry is not None
    assert entry.value is not None
    lane = decode(entry.value, LaneStatistics)
    assert (lane.depth, lane.backlog, lane.waiting_tasks) == (4, 3, 4)
