"""A work loop that is told to stop: what it waits for, what it hands over, and that no delivery is used up by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from contracts.journal.events import StepReleased
from mesh.broker import in_hand
from mesh.broker.connection import Connection
from mesh.configuration.settings import Settings
from mesh.steps.claimed_step import ClaimedStep
from mesh.steps.work_loop import WorkLoop
from tests.integration.test_work import LANES, Handler, answer, queues_are_empty, working
from tests.support.checker import Recorded, check, read_stored
from tests.support.patience import within
from tests.support.tasks import append_text, begin_journal, publish_work, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.integration


class Worker:
    """A work loop, and how to stop it."""

    def __init__(self, connection: Connection, settings: Settings, handler: Handler, name: str) -> None:
        self.loop = WorkLoop(connection, settings, LANES, handler, name)
        self.stopping, self.hurrying = asyncio.Event(), asyncio.Event()
        self.running = asyncio.create_task(self.loop.run(self.stopping, self.hurrying))


@asynccontextmanager
async def worker(
    connection: Connection, settings: Settings, handler: Handler, name: str = "one"
) -> AsyncIterator[Worker]:
    """It runs until the block stops it, or ends; then it hurries."""
    started = Worker(connection, settings, handler, name)
    try:
        yield started
    finally:
        started.hurrying.set()
        started.stopping.set()
        async with within(20):
            await started.running


async def events_of(connection: Connection, task: str, kind: str) -> list[dict[str, Any]]:
    stored = await read_stored(connection.requests)
    return [each.event for each in stored.journals.get(task, []) if each.event["type"] == kind]


def hanging() -> tuple[Handler, asyncio.Event]:
    """Steps that never end; and whether one has begun."""
    claimed = asyncio.Event()

    async def hang(step: ClaimedStep) -> None:
        claimed.set()
        await asyncio.Event().wait()

    return Handler(hang), claimed


async def test_a_step_is_handed_over_as_often_as_may_be_and_uses_up_no_delivery(
    connection: Connection, settings: Settings
) -> None:
    work, times = turn_work(), settings.max_deliver + 2
    brief = replace(settings, drain_seconds=0.0)
    await publish_work(connection.requests, work)
    for number in range(times):
        handler, claimed = hanging()
        async with worker(connection, brief, handler, str(number)), within(20):
            await claimed.wait()
    async with working(connection, settings, Handler(answer), "last"):
        await until(lambda: queues_are_empty(connection))
    claims = await events_of(connection, work.task, "step.claimed")
    assert [claim["worker"] for claim in claims] == [*map(str, range(times)), "last"]
    assert [claim["delivery"] for claim in claims] == [1] * (times + 1)
    released = await events_of(connection, work.task, "step.released")
    assert [(each["step"], each["gen"], each["reason"]) for each in released] == [("1", 0, "drain")] * times
    assert check(Recorded(accepted={work.task}), await read_stored(connection.requests)) == []


async def test_a_worker_that_dies_right_after_its_release_leaves_a_message_that_brings_the_next(
    connection: Connection, settings: Settings
) -> None:
    work = turn_work()
    await publish_work(connection.requests, work)
    journal = await begin_journal(connection.requests, work)
    await journal.append(lambda stamp: StepReleased(*stamp, step="1", gen=0, reason="drain"), lambda _: True)
    async with working(connection, settings, Handler(answer), "two"):
        await until(lambda: queues_are_empty(connection))
    claims = await events_of(connection, work.task, "step.claimed")
    assert [(claim["worker"], claim["delivery"]) for claim in claims] == [("test", 2), ("two", 1)]
    assert check(Recorded(accepted={work.task}), await read_stored(connection.requests)) == []


async def test_what_was_not_begun_goes_back_at_once_and_what_was_is_waited_for(
    connection: Connection, settings: Settings
) -> None:
    claimed, go_on = asyncio.Event(), asyncio.Event()

    async def wait_and_answer(step: ClaimedStep) -> None:
        claimed.set()
        await go_on.wait()
        await answer(step)

    patient = replace(settings, drain_seconds=60.0)
    works = [turn_work(text=str(number)) for number in range(3)]
    async with worker(connection, patient, Handler(wait_and_answer)) as first:
        first.loop._consumption._in_hand._at_once_max = 1  # the others were pulled, and wait for their place
        await asyncio.gather(*(publish_work(connection.requests, work) for work in works))
        await until(lambda: first.loop.steps_running == 3)
        first.stopping.set()
        await until(lambda: first.loop.steps_running == 1)
        await claimed.wait()
        async with working(connection, settings, Handler(answer), "two"):
            for work in works:
                held = (await events_of(connection, work.task, "step.claimed"))[:1]
                if not held or held[0]["worker"] != "one":
                    await until(lambda work=work: ended(connection, work.task))  # type: ignore[misc]  # mypy can't infer it
            assert not first.running.done()
            go_on.set()
            async with within(20):
                await first.running
            await until(lambda: queues_are_empty(connection))
    claims = [(await events_of(connection, work.task, "step.claimed"))[-1]["worker"] for work in works]
    assert sorted(claims) == ["one", "two", "two"]
    assert check(Recorded(accepted={work.task for work in works}), await read_stored(connection.requests)) == []


async def ended(connection: Connection, task: str) -> bool:
    return bool(await events_of(connection, task, "task.completed"))


async def test_what_was_not_begun_has_deliveries_again_once_half_of_them_are_used_up(
    connection: Connection, settings: Settings
) -> None:
    started = asyncio.Event()

    async def hang(step: ClaimedStep) -> None:
        started.set()
        await asyncio.Event().wait()

    # A gate would do it, too: a message that comes again and again, and never has a place.
    work, times = turn_work(), settings.max_deliver
    one_place = replace(settings, worker_concurrency=1, drain_seconds=0.0)
    await publish_work(connection.requests, work)
    for _ in range(times):
        async with worker(connection, one_place, Handler(hang)) as each:
            each.loop._consumption._in_hand._at_once_max = 0  # it never gets a place
            await until(lambda: each.loop.steps_running == 1)
    async with working(connection, settings, Handler(answer), "last"):
        await until(lambda: queues_are_empty(connection))
    assert not started.is_set()
    (claim,) = await events_of(connection, work.task, "step.claimed")
    assert claim["delivery"] <= settings.max_deliver // 2 + 1
    assert len(await events_of(connection, work.task, "step.released")) == 1
    assert check(Recorded(accepted={work.task}), await read_stored(connection.requests)) == []


async def test_a_second_word_ends_the_wait(connection: Connection, settings: Settings) -> None:
    work = turn_work()
    handler, claimed = hanging()
    await publish_work(connection.requests, work)
    async with worker(connection, replace(settings, drain_seconds=3600.0), handler) as first:
        await claimed.wait()
        first.stopping.set()
        async with working(connection, settings, Handler(answer), "two"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(first.running), 0.5)
            first.hurrying.set()
            await until(lambda: queues_are_empty(connection))
    claims = await events_of(connection, work.task, "step.claimed")
    assert [(claim["worker"], claim["delivery"]) for claim in claims] == [("one", 1), ("two", 1)]


async def test_what_a_step_has_said_is_gone_on_with(connection: Connection, settings: Settings) -> None:
    work = turn_work()
    said = asyncio.Event()

    async def say_and_hang(step: ClaimedStep) -> None:
        await append_text(step._journal, "so far")
        said.set()
        await asyncio.Event().wait()

    await publish_work(connection.requests, work)
    async with worker(connection, replace(settings, drain_seconds=0.0), Handler(say_and_hang)):
        await said.wait()

    async def go_on(step: ClaimedStep) -> None:
        assert step.state.turn(1).text == "so far"
        await answer(step)

    async with working(connection, settings, Handler(go_on), "two"):
        await until(lambda: queues_are_empty(connection))
    (end,) = await events_of(connection, work.task, "task.completed")
    assert end["output"] == "so farok"


async def test_a_handler_that_does_not_let_go_costs_a_delivery_and_no_more(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_hand, "RECALL_SECONDS_MAX", 0.2)
    work = turn_work()
    claimed = asyncio.Event()

    async def cling(step: ClaimedStep) -> None:
        claimed.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(1.0)
            raise

    await publish_work(connection.requests, work)
    async with worker(connection, replace(settings, drain_seconds=0.0), Handler(cling)):
        await claimed.wait()
    async with working(connection, settings, Handler(answer), "two"):
        await until(lambda: queues_are_empty(connection))
    claims = await events_of(connection, work.task, "step.claimed")
    assert [(claim["worker"], claim["delivery"]) for claim in claims] == [("one", 1), ("two", 2)]
