"""The work loop against a real broker, with handlers of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest

from contracts import subjects
from contracts.codec import encode
from contracts.journal.events import OutputDelta, TaskCompleted, TurnCompleted
from contracts.journal.parts import Timings, Usage
from contracts.messages.work import DeadLetter, Work
from contracts.streams import lane_consumer
from mesh.broker.connection import Connection
from mesh.broker.lanes import ConsumerSpec
from mesh.configuration.settings import Settings
from mesh.journal.journal import Journal
from mesh.steps.claimed_step import ClaimedStep
from mesh.steps.work_loop import WorkLoop
from mesh.task.failures import StepFailed
from mesh.task.state import TaskState
from tests.support.broker import Broker
from tests.support.checker import Recorded, check, read_stored
from tests.support.patience import within
from tests.support.tasks import begin_journal, claim_first_turn, publish_work, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.integration

LANES = [
    ConsumerSpec(stream, lane_consumer(stream, "default", priority))
    for stream in ("TURNS", "TASKS")
    for priority in subjects.PRIORITIES
]


class Handler:
    """Performs a turn as the test says."""

    def __init__(self, perform: Callable[[ClaimedStep], Awaitable[None]]) -> None:
        self._perform = perform
        self.running = 0
        self.running_max = 0

    def describe_claim(self, state: TaskState, work: Work) -> dict[str, str]:
        return {"provider": "test", "model": "test"}

    async def perform(self, step: ClaimedStep) -> None:
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            await self._perform(step)
        finally:
            self.running -= 1


async def answer(step: ClaimedStep) -> None:
    """A turn of one token."""
    if step.state.turn(1).completed is None:
        await step.append(lambda stamp: OutputDelta(*stamp, turn=1, text="ok"))
    await finish(step)


async def finish(step: ClaimedStep) -> None:
    """End the turn, unless whoever had the step before could still do that, and the task."""
    text = step.state.turn(1).text
    if step.state.turn(1).completed is None:
        await step.append(
            lambda stamp: TurnCompleted(
                *stamp, turn=1, text=text, finish_reason="stop", usage=Usage(), timings=Timings()
            )
        )
    await step.append(lambda stamp: TaskCompleted(*stamp, output=text, usage=Usage(), timings=Timings()))


@asynccontextmanager
async def working(
    connection: Connection, settings: Settings, handler: Handler, worker: str = "one"
) -> AsyncIterator[WorkLoop]:
    """A work loop that runs until the end of the block, and then drains."""
    loop = WorkLoop(connection, settings, LANES, handler, worker)
    stopping = asyncio.Event()
    running = asyncio.create_task(loop.run(stopping))
    try:
        yield loop
    finally:
        stopping.set()
        async with within(20):
            await running


async def status_is(connection: Connection, task: str, status: str) -> bool:
    stored = await read_stored(connection.requests)
    return stored.records.get(task, {}).get("status") == status


async def queues_are_empty(connection: Connection) -> bool:
    stored = await read_stored(connection.requests)
    return not stored.work


async def test_a_task_without_a_journal_gets_one_from_its_message_and_ends(
    connection: Connection, settings: Settings
) -> None:
    work = turn_work()
    async with working(connection, settings, Handler(answer)):
        await publish_work(connection.requests, work)
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    types = [event.event["type"] for event in stored.journals[work.task]]
    assert types == ["task.queued", "step.claimed", "output.delta", "turn.completed", "task.completed"]
    assert check(Recorded(accepted={work.task}), stored) == []


async def test_a_second_message_for_a_bound_step_is_dropped(connection: Connection, settings: Settings) -> None:
    work = turn_work()
    gate = asyncio.Event()

    async def wait_and_answer(step: ClaimedStep) -> None:
        await gate.wait()
        await answer(step)

    handler = Handler(wait_and_answer)
    async with working(connection, settings, handler):
        await publish_work(connection.requests, work)
        await until(lambda: status_is(connection, work.task, "running"))
        await publish_work(connection.requests, work)

        async def one_is_left() -> bool:
            stored = await read_stored(connection.requests)
            return stored.tasks_ever_stored == 2 and len(stored.work) == 1

        await until(one_is_left)
        gate.set()
        await until(lambda: queues_are_empty(connection))
    assert handler.running_max == 1
    stored = await read_stored(connection.requests)
    assert [event.event["type"] for event in stored.journals[work.task]].count("step.claimed") == 1


async def test_a_delivery_of_an_ended_task_is_settled_and_not_run(connection: Connection, settings: Settings) -> None:
    work = turn_work()
    ran: list[str] = []

    async def note(step: ClaimedStep) -> None:
        ran.append(step.work.task)
        await answer(step)

    async with working(connection, settings, Handler(note)):
        await publish_work(connection.requests, work)
        await until(lambda: queues_are_empty(connection))
        await publish_work(connection.requests, work)
        await until(lambda: queues_are_empty(connection))
    assert ran == [work.task]


async def test_a_retryable_failure_is_told_and_tried_again_until_it_is_a_dead_letter(
    connection: Connection, settings: Settings
) -> None:
    work = turn_work()

    async def fail(step: ClaimedStep) -> None:
        raise StepFailed("provider-overloaded", "too busy", retryable=True, retry_after_seconds=0.05)

    async with working(connection, replace(settings, max_tries=3), Handler(fail)):
        await publish_work(connection.requests, work)
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    types = [event.event["type"] for event in stored.journals[work.task]]
    assert types == [
        "task.queued",
        *["step.claimed", "task.retrying"] * 2,
        "step.claimed",
        "task.dead_lettered",
    ]
    assert stored.records[work.task]["status"] == "dead_lettered"
    record = msgspec.convert(stored.dead_letters[0], DeadLetter)
    assert (record.task, record.step, record.gen, record.tries) == (work.task, "1", 0, 3)
    assert record.errors[0].code == "provider-overloaded"
    assert check(Recorded(accepted={work.task}), stored) == []


async def test_a_bug_in_a_handler_is_retried_and_does_not_stop_the_loop(
    connection: Connection, settings: Settings
) -> None:
    broken, sound = turn_work(text="broken"), turn_work(text="sound")
    tries: list[int] = []

    async def perform(step: ClaimedStep) -> None:
        if step.work.task == broken.task and not tries:
            tries.append(1)
            raise KeyError("a bug")
        await answer(step)

    async with working(connection, settings, Handler(perform)):
        await publish_work(connection.requests, broken)
        await publish_work(connection.requests, sound)
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    assert check(Recorded(accepted={broken.task, sound.task}), stored) == []


async def test_a_terminal_failure_ends_the_task(connection: Connection, settings: Settings) -> None:
    work = turn_work()

    async def fail(step: ClaimedStep) -> None:
        raise StepFailed("provider-bad-request", "no", retryable=False, terminal=True)

    async with working(connection, settings, Handler(fail)):
        await publish_work(connection.requests, work)
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    assert stored.records[work.task]["status"] == "failed"
    assert stored.records[work.task]["error"]["code"] == "provider-bad-request"
    assert check(Recorded(accepted={work.task}), stored) == []


@pytest.mark.parametrize(
    ("subject", "payload"),
    [
        ("tasks.default.normal.default", b"not json"),
        ("tasks.default.normal.default", b"\xff\xfe"),
        ("tasks.default.normal.default", b'{"kind":"turn"}'),
        ("tasks.default.normal.default", b"[" * 5000),
        ("tasks.default.normal.acme", encode(turn_work(tenant="default"))),
        ("tasks.default.normal.UPPER", encode(turn_work())),
        ("tasks.default.normal.default", encode(msgspec.structs.replace(turn_work(), request=None))),
    ],
)
async def test_a_malformed_message_becomes_a_dead_letter_and_the_loop_goes_on(
    connection: Connection, settings: Settings, subject: str, payload: bytes
) -> None:
    work = turn_work()
    async with working(connection, settings, Handler(answer)):
        await connection.requests.publish(subject, payload)
        await publish_work(connection.requests, work)
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    assert len(stored.dead_letters) == 1
    assert stored.dead_letters[0]["errors"][0]["code"] == "malformed-message"
    assert stored.dead_letters[0]["subject"] == subject
    assert stored.records[work.task]["status"] == "completed"


async def test_a_deadline_that_passes_in_the_queue_expires_the_task(connection: Connection, settings: Settings) -> None:
    work = turn_work(deadline_seconds=0.01)
    await asyncio.sleep(0.02)
    async with working(connection, settings, Handler(answer)):
        await publish_work(connection.requests, work)
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    assert [event.event["type"] for event in stored.journals[work.task]] == ["task.queued", "task.expired"]
    assert stored.records[work.task]["status"] == "expired"


async def test_heartbeats_keep_a_step_that_takes_longer_than_its_lease(
    connection: Connection, settings: Settings
) -> None:
    work = turn_work()

    async def slow(step: ClaimedStep) -> None:
        await asyncio.sleep(settings.ack_wait_seconds * 2.5)
        await answer(step)

    async with working(connection, settings, Handler(slow)):
        await publish_work(connection.requests, work)
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    claims = [event for event in stored.journals[work.task] if event.event["type"] == "step.claimed"]
    assert len(claims) == 1


async def test_a_step_that_somebody_else_claims_is_lost_and_nothing_of_it_is_stored_or_acked(
    connection: Connection, settings: Settings
) -> None:
    work = turn_work()
    claimed, gate, outcomes = asyncio.Event(), asyncio.Event(), []

    async def hold(step: ClaimedStep) -> None:
        claimed.set()
        await gate.wait()
        try:
            await answer(step)
        except BaseException as error:
            outcomes.append(type(error).__name__)
            raise

    async with working(connection, settings, Handler(hold)):
        await publish_work(connection.requests, work)
        await claimed.wait()
        thief = await Journal.load(connection.requests, "default", work.task)
        await claim_first_turn(thief, "thief")
        gate.set()
        await until(lambda: bool(outcomes))
        stored = await read_stored(connection.requests)
    assert outcomes == ["StepLost"]
    assert thief.state.next_n == len(stored.journals[work.task])
    assert len(stored.work) == 1


async def test_draining_hands_over_what_does_not_end_in_time(connection: Connection, settings: Settings) -> None:
    work = turn_work()
    claimed = asyncio.Event()

    async def forever(step: ClaimedStep) -> None:
        claimed.set()
        await asyncio.sleep(3600)

    async with working(connection, replace(settings, drain_seconds=0.1), Handler(forever)):
        await publish_work(connection.requests, work)
        await claimed.wait()
    # Handed over, not timed out: the next worker has it at once.
    async with working(connection, settings, Handler(answer), "two"):
        await until(lambda: queues_are_empty(connection), seconds=settings.ack_wait_seconds * 5)
    stored = await read_stored(connection.requests)
    workers = [event.event["worker"] for event in stored.journals[work.task] if event.event["type"] == "step.claimed"]
    assert workers == ["one", "two"]
    assert check(Recorded(accepted={work.task}), stored) == []


async def test_no_more_steps_run_at_once_than_allowed_and_all_are_done(
    connection: Connection, settings: Settings
) -> None:
    works = [turn_work(text=f"{number}") for number in range(60)]

    async def short(step: ClaimedStep) -> None:
        await asyncio.sleep(0.01)
        await answer(step)

    handler = Handler(short)
    for work in works:
        await publish_work(connection.requests, work)
    async with working(connection, replace(settings, worker_concurrency=3), handler):
        await until(lambda: queues_are_empty(connection), seconds=30)
    assert handler.running_max == 3
    stored = await read_stored(connection.requests)
    assert check(Recorded(accepted={work.task for work in works}), stored) == []


async def test_the_loop_goes_on_after_the_broker_was_killed(
    connection: Connection, settings: Settings, broker: Broker
) -> None:
    works = [turn_work(text=f"{number}") for number in range(40)]
    async with working(connection, settings, Handler(answer)):
        for work in works[:20]:
            await publish_work(connection.requests, work)
        await broker.kill()
        await broker.start()
        for work in works[20:]:
            await publish_work(connection.requests, work)
        await until(lambda: queues_are_empty(connection), seconds=30)
    stored = await read_stored(connection.requests)
    assert check(Recorded(accepted={work.task for work in works}), stored) == []


async def test_a_journal_begun_by_the_submitter_is_used_as_it_is(connection: Connection, settings: Settings) -> None:
    work = turn_work()
    journal = await begin_journal(connection.requests, work)
    assert journal.state.bindings["1", 0] == 1
    async with working(connection, settings, Handler(answer)):
        await publish_work(connection.requests, work)
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    assert [event.event["type"] for event in stored.journals[work.task]].count("task.queued") == 1
