"""Following a journal against a real broker: history and live joined, holes, overflows, gaps, ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import msgspec
import pytest

from contracts import subjects
from contracts.identifiers import new_id
from contracts.journal.edge_events import Snapshot, StreamGap
from mesh.broker.connection import Connection, connect
from mesh.configuration.settings import Settings
from mesh.journal import live_buffer
from mesh.journal.following import Followed, Follower, Following, TaskNotFound
from mesh.journal.journal import Journal
from tests.support.broker import Broker
from tests.support.checker import read_stored
from tests.support.patience import within
from tests.support.slow_link import SlowLink, slow_link
from tests.support.tasks import append_text, begin_journal, complete_turn, end_task, turn_work, until_written
from tests.support.waiting import until

pytestmark = pytest.mark.integration


async def follow_to_end(hub: Following, task: str, after: int = 0, tenant: str = "default") -> list[Followed]:
    """Everything up to the end."""
    follower = await hub.open(tenant, task, after)
    assert follower is not None
    received: list[Followed] = []
    async with within(20), aclosing(follower.batches(0.2)) as batches:
        async for batch in batches:
            received += batch
    return received


async def stored_frames(connection: Connection, task: str) -> list[tuple[int, bytes]]:
    stored = await read_stored(connection.requests)
    return [(event.sequence, event.data) for event in stored.journals[task]]


async def write(journal: Journal, count: int) -> None:
    for number in range(count):
        await append_text(journal, f"{number} ")
    await complete_turn(journal)
    await end_task(journal)


async def test_history_and_live_are_joined_exactly_whenever_a_follower_comes(connection: Connection) -> None:
    hub = Following(connection)
    work = turn_work()
    journal = await begin_journal(connection.requests, work)
    writing = asyncio.create_task(write(journal, 300))
    followers = []
    for at in (1, 3, 10, 50, 120, 200, 290):
        await until_written(journal, at)
        followers.append(asyncio.create_task(follow_to_end(hub, work.task)))
    await writing
    expected = await stored_frames(connection, work.task)
    for follower in followers:
        assert [(followed.sequence, followed.payload) for followed in await follower] == expected


async def test_a_follower_resumes_behind_any_event(connection: Connection) -> None:
    hub = Following(connection)
    work = turn_work()
    await write(await begin_journal(connection.requests, work), 12)
    expected = await stored_frames(connection, work.task)
    for index, (sequence, _) in enumerate(expected[:-1]):
        received = await follow_to_end(hub, work.task, after=sequence)
        assert [(followed.sequence, followed.payload) for followed in received] == expected[index + 1 :]


async def test_a_cursor_at_or_behind_the_end_has_nothing_more_to_come(connection: Connection) -> None:
    hub = Following(connection)
    work = turn_work()
    await write(await begin_journal(connection.requests, work), 2)
    other = await begin_journal(connection.requests, turn_work())
    await append_text(other, "later in the stream")
    last = (await stored_frames(connection, work.task))[-1][0]
    assert await hub.open("default", work.task, last) is None
    assert await hub.open("default", work.task, last + 1) is None


async def test_an_unknown_task_and_a_foreign_one_look_the_same(connection: Connection) -> None:
    hub = Following(connection)
    work = turn_work(tenant="acme")
    await begin_journal(connection.requests, work)
    for tenant, task in (("default", new_id()), ("default", work.task)):
        with pytest.raises(TaskNotFound):
            await hub.open(tenant, task, 0)


async def test_a_reader_that_is_too_slow_gets_everything_from_the_journal(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_buffer, "BUFFER_EVENTS_MAX", 4)
    hub = Following(connection)
    work = turn_work()
    journal = await begin_journal(connection.requests, work)
    follower = await hub.open("default", work.task, 0)
    assert follower is not None
    received: list[Followed] = []
    async with within(20), aclosing(follower.batches(0.2)) as batches:
        received += await anext(batches)
        await write(journal, 100)
        async for batch in batches:
            received += batch
    expected = await stored_frames(connection, work.task)
    assert [(followed.sequence, followed.payload) for followed in received] == expected


async def test_live_events_lost_with_the_connection_are_read_from_the_journal(
    connection: Connection, broker: Broker
) -> None:
    hub = Following(connection)
    work = turn_work()
    journal = await begin_journal(connection.requests, work)
    follower = asyncio.create_task(follow_to_end(hub, work.task))
    writing = asyncio.create_task(write(journal, 300))
    await until_written(journal, 100)
    await broker.kill()
    await broker.start()
    await writing
    expected = await stored_frames(connection, work.task)
    assert [(followed.sequence, followed.payload) for followed in await follower] == expected


async def test_purged_history_shows_as_a_gap_and_a_snapshot_and_the_end_follows(connection: Connection) -> None:
    hub = Following(connection)
    work = turn_work()
    await write(await begin_journal(connection.requests, work), 5)
    expected = await stored_frames(connection, work.task)
    await connection.requests.api("STREAM.PURGE.EVENTS", {"filter": subjects.journal_delta("default", work.task)})

    received = await follow_to_end(hub, work.task, after=expected[2][0])

    gap = msgspec.json.decode(received[0].payload, type=StreamGap)
    snapshot = msgspec.json.decode(received[1].payload, type=Snapshot)
    assert [followed.type for followed in received] == ["stream.gap", "snapshot", "task.completed"]
    assert (gap.from_sequence, gap.to_sequence) == (expected[2][0], expected[-2][0])
    assert snapshot.turns[0].text == "0 1 2 3 4 "
    assert received[1].sequence == expected[-2][0]
    assert received[2] == Followed(expected[-1][0], "task.completed", expected[-1][1])


async def test_a_cursor_of_a_stream_that_was_recreated_gets_a_gap(connection: Connection) -> None:
    hub = Following(connection)
    work = turn_work()
    await write(await begin_journal(connection.requests, work), 2)
    received = await follow_to_end(hub, work.task, after=10**9)
    assert [followed.type for followed in received] == ["stream.gap", "snapshot", "task.completed"]


async def test_followers_leave_no_subscription_behind(connection: Connection) -> None:
    hub = Following(connection)
    work = turn_work()
    journal = await begin_journal(connection.requests, work)
    before = connection.client._subs.copy()
    followers = [asyncio.create_task(follow_to_end(hub, work.task)) for _ in range(10)]
    await write(journal, 10)
    await asyncio.gather(*followers)
    assert connection.client._subs.keys() == before.keys()


@asynccontextmanager
async def nothing_goes_out(connection: Connection, link: SlowLink) -> AsyncIterator[None]:
    """Meanwhile so much waits to be sent that each command waits as well."""
    client = connection.client

    def publish(count: int) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(client.publish("nobody.listens", bytes(512 * 1024))) for _ in range(count)]

    await link.silence()
    publishing = publish(80)  # more than the link and two sockets hold
    try:
        await until(lambda: publishing[0].done() and client.pending_data_size == 0)
        publishing += publish(8)  # more than the client gathers before it waits
        await until(lambda: client.pending_data_size > 2 * 1024 * 1024)
        yield
    finally:
        await link.restore()
        await asyncio.gather(*publishing)


async def leave(follower: asyncio.Task[Follower | None]) -> None:
    """Have a follower's client go: it ends at once. The client library takes no cancel of a command that waits."""
    follower.cancel()
    async with within(5):
        await asyncio.wait({follower})
    assert follower.cancelled()


async def test_a_follower_that_leaves_while_its_subscription_is_under_way_disturbs_no_other(
    connection: Connection, settings: Settings, broker: Broker
) -> None:
    work = turn_work()
    journal = await begin_journal(connection.requests, work)
    async with (
        slow_link(broker.port, 0.0) as link,
        connect(replace(settings, nats_url=link.url), "test") as distant,
    ):
        hub = Following(distant)
        async with nothing_goes_out(distant, link):
            first = asyncio.create_task(hub.open("default", work.task, 0))
            await until(lambda: bool(hub._subjects))
            others = [asyncio.create_task(follow_to_end(hub, work.task)) for _ in range(2)]
            await until(lambda: [len(entry.buffers) for entry in hub._subjects.values()] == [3])
            await leave(first)
        await write(journal, 20)
        expected = await stored_frames(connection, work.task)
        for other in others:
            assert [(each.sequence, each.payload) for each in await other] == expected
        assert hub._subjects == {}


async def test_a_subscription_that_all_have_left_while_it_was_under_way_is_given_back(
    connection: Connection, settings: Settings, broker: Broker
) -> None:
    work = turn_work()
    await begin_journal(connection.requests, work)
    async with (
        slow_link(broker.port, 0.0) as link,
        connect(replace(settings, nats_url=link.url), "test") as distant,
    ):
        hub = Following(distant)
        before = set(distant.client._subs)
        async with nothing_goes_out(distant, link):
            follower = asyncio.create_task(hub.open("default", work.task, 0))
            await until(lambda: set(distant.client._subs) != before)
            await leave(follower)
            assert hub._subjects == {}
        await until(lambda: set(distant.client._subs) == before)


async def test_who_asks_is_told_what_a_worker_can_not_store_and_only_behind_the_last_event(
    connection: Connection,
) -> None:
    hub = Following(connection)
    work = turn_work()
    journal = await begin_journal(connection.requests, work)
    asking, plain = [await hub.open("default", work.task, 0, previews=each) for each in (True, False)]
    assert asking is not None
    assert plain is not None
    subject = subjects.live_preview("default", work.task)

    async def tell(n: int, text: str, **more: str) -> None:
        said = {"type": "output.preview", "task": work.task, "tenant": "default", "n": n, "turn": 1, "text": text}
        await connection.client.publish(subject, msgspec.json.encode({**said, **more}))

    received: list[Followed] = []

    async def read(follower: Follower, into: list[Followed]) -> None:
        async with aclosing(follower.batches(0.2)) as batches:
            async for batch in batches:
                into += batch

    others: list[Followed] = []
    reading = asyncio.gather(read(asking, received), read(plain, others))
    last = journal.state.next_n - 1
    await until(lambda: len(received) == last + 1)
    await connection.client.publish(subject, b"rubbish")
    await tell(last - 1, "of yesterday")
    await tell(last, "of another", task=new_id())
    await tell(last, "It is ")
    await until(lambda: received[-1].type == "output.preview")
    await tell(last, "It is so.")
    await until(lambda: b"so." in received[-1].payload)
    await append_text(journal, "It is so.")
    await complete_turn(journal)
    await end_task(journal)
    async with within(20):
        await reading
    seen = [str(msgspec.json.decode(each.payload)["text"]) for each in received if each.sequence is None]
    assert seen == ["It is ", "It is so."]
    expected = await stored_frames(connection, work.task)
    assert [(each.sequence, each.payload) for each in received if each.sequence is not None] == expected
    assert [(each.sequence, each.payload) for each in others] == expected
