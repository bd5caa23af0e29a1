"""Streams and buckets at their size limit: nothing is lost, and each goes on once there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import msgspec
import pytest

from contracts.identifiers import new_id
from contracts.journal.events import Stamp, StepClaimed, ToolCompleted, TurnCompleted
from contracts.journal.parts import Parent, Timings, ToolCall, Usage
from contracts.records.tools import RESULT_BYTES_MAX
from mesh.broker.connection import Connection
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.errors import NoRoom
from mesh.journal import dead_letter_records
from mesh.journal.journal import Journal
from mesh.journal.settling import settle
from mesh.steps.claimed_step import ClaimedStep
from mesh.task.failures import StepFailed
from steward.stranded import Stranded
from tests.integration.test_control import controlling
from tests.integration.test_work import Handler, answer, queues_are_empty, status_is, working
from tests.support.checker import Recorded, check, read_stored
from tests.support.limits import level, limit, unlimit
from tests.support.tasks import begin_journal, end_task, publish_work, turn_work
from tests.support.waiting import until
from tool_runner.result_store import ResultStore
from tool_runner.results import ResultUnusable, recorded

pytestmark = pytest.mark.integration

TASKS = 40
LEASES = 3
"""How many leases it stays full: whoever gave its deliveries back, or let them go, would be found out."""


async def messages_in(connection: Connection, stream: str) -> int:
    """How many messages a stream holds."""
    info = await connection.requests.api(f"STREAM.INFO.{stream}")
    return int(info["state"]["messages"])


async def redeliveries(connection: Connection, stream: str) -> int:
    """Deliveries after the first of what its consumers still hold."""
    consumers = (await connection.requests.api(f"CONSUMER.LIST.{stream}"))["consumers"]
    return sum(int(consumer["num_redelivered"]) for consumer in consumers)


async def asking(connection: Connection, parent: Parent | None = None) -> Journal:
    """A task whose first turn has asked for a call."""
    work = msgspec.structs.replace(turn_work(), parent=parent)
    journal = await begin_journal(connection.requests, work)
    await journal.append(
        lambda stamp: TurnCompleted(
            *stamp,
            turn=1,
            text="",
            calls=[ToolCall("1-0", "add", {"a": 1, "b": 2})],
            finish_reason="tool_calls",
            usage=Usage(),
            timings=Timings(),
        ),
        lambda _: True,
    )
    return journal


async def answered(connection: Connection) -> Journal:
    """One whose call has its result."""
    journal = await asking(connection)
    await journal.append(
        lambda stamp: ToolCompleted(*stamp, turn=1, call="1-0", tool="add", result=3, timings=Timings()),
        lambda _: True,
    )
    return journal


async def ended_child(connection: Connection) -> Journal:
    """A sub-task that has ended."""
    journal = await asking(connection, Parent(new_id(), "1-0", 1))
    await end_task(journal)
    return journal


@pytest.mark.parametrize(
    ("stream", "make", "step"),
    [("TOOLS", asking, "1"), ("TURNS", answered, "1-0"), ("CONTROL", ended_child, "1")],
    ids=["TOOLS", "TURNS", "CONTROL"],
)
async def test_what_a_full_queue_refuses_is_brought_by_a_timer(
    connection: Connection, settings: Settings, stream: str, make: Callable[[Connection], Awaitable[Journal]], step: str
) -> None:
    await limit(connection.requests, stream, max_bytes=1)
    journals = [await make(connection) for _ in range(TASKS)]
    await asyncio.gather(*(settle(connection.requests, journal.state, (step,), None) for journal in journals))
    assert await messages_in(connection, stream) == 0
    assert await messages_in(connection, "TIMERS") == TASKS
    async with controlling(connection, settings, "TIMERS"):

        async def was_refused_again() -> bool:
            consumer = await connection.requests.api("CONSUMER.INFO.TIMERS.steward")
            return int(consumer["ack_floor"]["consumer_seq"]) >= TASKS

        await until(was_refused_again)
        await unlimit(connection.requests, stream)

        async def all_are_there() -> bool:
            return await messages_in(connection, stream) == TASKS and await messages_in(connection, "TIMERS") == 0

        await until(all_are_there, seconds=90)
    assert await messages_in(connection, "DEAD_LETTERS") == 0


async def test_a_full_bucket_of_records_uses_up_no_delivery_and_loses_no_end(
    connection: Connection, settings: Settings
) -> None:
    await limit(connection.requests, "KV_tasks", max_bytes=4096)
    works = [turn_work(text=f"{number}") for number in range(TASKS)]
    handler = Handler(answer)
    async with working(connection, settings, handler) as loop:
        for work in works:
            await publish_work(connection.requests, work)

        async def all_have_ended() -> bool:
            stored = await read_stored(connection.requests)
            return all(
                stored.journals.get(work.task, [])[-1:] != []
                and stored.journals[work.task][-1].event["type"] == "task.completed"
                for work in works
            )

        await until(all_have_ended)
        waiting = loop.steps_running
        assert waiting > 0, "the bucket took them all: it was not full"
        await asyncio.sleep(LEASES * settings.ack_wait_seconds)
        assert loop.steps_running == waiting, "each is in hand"
        assert await redeliveries(connection, "TASKS") == 0
        assert (await level(connection.requests, "KV_tasks")).percent <= 100
        await unlimit(connection.requests, "KV_tasks")
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    assert check(Recorded(accepted={work.task for work in works}), stored) == []
    assert {stored.records[work.task]["status"] for work in works} == {"completed"}
    claims = [event.event for journal in stored.journals.values() for event in journal if "delivery" in event.event]
    assert {claim["delivery"] for claim in claims} == {1}


async def test_dead_letters_without_room_hold_nothing_and_each_is_written_once_there_is(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letter_records, "NO_ROOM_SECONDS", 0.1)
    await limit(connection.requests, "DEAD_LETTERS", max_bytes=1)
    failing = [turn_work(text="fails") for _ in range(TASKS)]

    async def perform(step: ClaimedStep) -> None:
        if step.state.request is not None and step.state.request.input == "fails":
            raise StepFailed("quota-exhausted", "no more", retryable=False)
        await answer(step)

    small = replace(settings, worker_concurrency=2)
    async with working(connection, small, Handler(perform)):
        for work in failing:
            await publish_work(connection.requests, work)
        other = turn_work()
        await publish_work(connection.requests, other)
        await until(lambda: status_is(connection, other.task, "completed"))

        async def all_deliveries_are_used_up() -> bool:
            consumers = (await connection.requests.api("CONSUMER.LIST.TASKS"))["consumers"]
            return all(not each["num_pending"] and not each["num_ack_pending"] for each in consumers)

        await until(all_deliveries_are_used_up, seconds=60)
    assert await messages_in(connection, "TASKS") == TASKS, "each lies in its queue, and holds nothing"

    stranded = Stranded(connection.requests, "steward")

    for _ in range(3):
        with suppress(NoRoom):
            await stranded.round()
    assert await messages_in(connection, "TASKS") == TASKS
    await unlimit(connection.requests, "DEAD_LETTERS")
    for _ in range(3):
        await stranded.round()
    assert await queues_are_empty(connection)
    stored = await read_stored(connection.requests)
    assert await messages_in(connection, "DEAD_LETTERS") == TASKS
    assert {stored.records[work.task]["status"] for work in failing} == {"dead_lettered"}


async def test_a_result_that_finds_no_room_is_a_failure_of_its_call_and_leaves_no_half_of_it(
    connection: Connection,
) -> None:
    await limit(connection.requests, "OBJ_results", max_bytes=1024 * 1024)
    journal = await asking(connection)
    claim = StepClaimed(
        *Stamp(new_id(), journal.state.task, "default", 5, now()),
        step="1-0",
        gen=0,
        message=1,
        worker="test",
        delivery=1,
        turn=1,
        call="1-0",
        tool="add",
    )

    store = ResultStore(connection.requests, tenant_share=1.0)
    with pytest.raises(ResultUnusable) as refused:
        await recorded("x" * (1024 * 1024 - 2), claim, store.store)
    assert refused.value.code == "result-not-stored"
    assert await messages_in(connection, "OBJ_results") == 0
    kept = await recorded("x" * (RESULT_BYTES_MAX + 1), claim, store.store)
    assert kept.object is not None, "what is smaller still fits"
