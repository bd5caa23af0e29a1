"""Breakers of several workers on one bucket, and lanes whose gate shuts, against a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from contracts.codec import encode
from contracts.journal.events import OutputDelta, TaskCompleted, TurnCompleted
from contracts.journal.parts import Timings, Usage
from contracts.messages.work import Work
from contracts.records.providers import Probe, ProviderRecord
from contracts.streams import lane_consumer
from inference_worker.models.breakers import Breakers
from inference_worker.models.candidates import Source
from inference_worker.models.chunks import Chunk, Finished, TextDelta, TurnInput
from mesh.background import background
from mesh.broker import key_value
from mesh.broker.connection import Connection
from mesh.broker.gates import UNLIMITED, AlwaysOpen, Permit
from mesh.broker.lanes import ConsumerSpec
from mesh.clock import lease_clock, now
from mesh.configuration.breaker_table import BreakerSettings
from mesh.configuration.settings import Settings
from mesh.providers.breaker_records import ProviderRecords
from mesh.steps.claimed_step import ClaimedStep
from mesh.steps.work_loop import WorkLoop
from mesh.task.failures import StepFailed
from mesh.task.state import TaskState
from tests.support.checker import Recorded, Stored, check, read_stored
from tests.support.patience import within
from tests.support.tasks import publish_work, turn_work
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.integration

SETTINGS = BreakerSettings(samples_min=3, open_seconds=0.1, open_seconds_max=0.2)
TURN = TurnInput(messages=(), model="any")
CONSUMER = ("TASKS", lane_consumer("TASKS", "default", "normal"))


class Model:
    """A source that does as it is told. `calls` counts what reached it."""

    name = "main"

    def __init__(self) -> None:
        self.failure: StepFailed | None = None
        self.calls = 0
        self.silent = asyncio.Event()
        self.silent.set()
        """Cleared, it says nothing until it is set."""

    def continues(self, text: str) -> bool:
        return False

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        self.calls += 1
        await self.silent.wait()
        if self.failure is not None:
            raise self.failure
        yield TextDelta("ok")
        yield Finished(finish_reason="stop", usage=Usage())


@asynccontextmanager
async def fleet(
    connection: Connection, *workers: str, settings: BreakerSettings = SETTINGS
) -> AsyncIterator[list[Breakers]]:
    """The breakers of these workers, kept until the end of the block."""
    fleet = [Breakers(connection.requests, {"main": settings}, worker) for worker in workers]
    async with background(*(breakers.run(asyncio.Event()) for breakers in fleet)):
        yield fleet


async def call(source: Source) -> StepFailed | None:
    """One turn; what it failed with."""
    try:
        async with aclosing(source.stream(TURN)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, Finished):
                    break
    except StepFailed as error:
        return error
    return None


async def fail(model: Model, source: Source, count: int, code: str = "provider-overloaded") -> list[StepFailed]:
    """So many calls that fail."""
    failed = []
    for _ in range(count):
        model.failure = StepFailed(code, "made up", retryable=True)
        error = await call(source)
        assert error is not None
        failed.append(error)
    return failed


async def record_of(connection: Connection) -> ProviderRecord | None:
    return (await ProviderRecords(connection.requests, ["main"]).refresh("main")).record


async def test_what_one_worker_concludes_holds_for_all_and_one_of_them_probes(connection: Connection) -> None:
    model = Model()
    await publish_work(connection.requests, turn_work())  # There is something to probe with.
    async with fleet(connection, "one", "two", "three") as workers:
        sources = [breakers.guard(model) for breakers in workers]
        for breakers in workers:
            breakers.gate(("main",), (CONSUMER,))
        counted = [error.counts for error in await fail(model, sources[0], 3)]
        assert counted == [True, True, False]
        assert not workers[0].available("main")
        await until(lambda: not any(breakers.is_closed("main") for breakers in workers))
        calls = model.calls
        await until(lambda: any(breakers.available("main") for breakers in workers))
        answers = [await call(source) for source in sources]
        assert sorted(answer.code for answer in answers if answer is not None) == [
            "provider-overloaded",
            "provider-unavailable",
            "provider-unavailable",
        ]
        assert not any(answer.counts for answer in answers if answer is not None)
        assert model.calls == calls + 1
        model.failure = None

        async def closed() -> bool:
            for source in sources:
                await call(source)
            return all(breakers.is_closed("main") for breakers in workers)

        await until(closed)
        record = await record_of(connection)
        assert record is not None
        assert (record.state, record.opened_times) == ("closed", 0)


@pytest.mark.parametrize(
    "code", ["rate-limited", "provider-bad-request", "context-too-long", "quota-exhausted", "provider-unauthorized"]
)
async def test_a_refusal_says_nothing_about_a_providers_health(connection: Connection, code: str) -> None:
    model = Model()
    async with fleet(connection, "one") as (breakers,):
        errors = await fail(model, breakers.guard(model), 2 * SETTINGS.samples_min, code)
        assert all(error.counts for error in errors)
        assert breakers.is_closed("main")


async def test_a_probe_whose_worker_died_is_taken_over_after_its_lease(connection: Connection) -> None:
    model = Model()
    at = now()
    dead = ProviderRecord(
        provider="main",
        state="half_open",
        since=at,
        time=at,
        reason="failures",
        opened_times=1,
        probe=Probe(worker="dead", until=at + timedelta(seconds=1)),
    )
    await key_value.put(connection.requests, "providers", "main", encode(dead))
    await publish_work(connection.requests, turn_work())
    async with fleet(connection, "one") as (breakers,):
        source = breakers.guard(model)
        breakers.gate(("main",), (CONSUMER,))
        await until(lambda: not breakers.is_closed("main"))
        assert not breakers.available("main")
        await until(lambda: breakers.available("main"))
        assert await call(source) is None
        await until(lambda: breakers.is_closed("main"))


async def test_slow_first_tokens_open_and_a_slow_probe_opens_again(connection: Connection) -> None:
    """A stream that says nothing counts as slow while it is silent, and not only when it ends."""
    model = Model()
    model.silent.clear()
    await publish_work(connection.requests, turn_work())
    slow = msgspec.structs.replace(SETTINGS, slow_first_token_seconds=0.05)
    async with fleet(connection, "one", settings=slow) as (breakers,):
        source = breakers.guard(model)
        breakers.gate(("main",), (CONSUMER,))
        running = [asyncio.create_task(call(source)) for _ in range(3)]
        await until(lambda: not breakers.is_closed("main"))
        await until(lambda: breakers.available("main"))
        running.append(asyncio.create_task(call(source)))

        async def opened_again() -> bool:
            record = await record_of(connection)
            return record is not None and (record.state, record.reason, record.opened_times) == ("open", "latency", 2)

        await until(opened_again)
        model.silent.set()
        assert await asyncio.gather(*running) == [None] * 4


async def test_a_probe_that_nobody_has_a_step_for_is_left_alone(connection: Connection) -> None:
    """An idle mesh claims nothing; the first message brings the probe about."""
    model = Model()
    async with fleet(connection, "one") as (breakers,):
        source = breakers.guard(model)
        gate = breakers.gate(("main",), (CONSUMER,))
        await fail(model, source, 3)
        records = ProviderRecords(connection.requests, ["main"])

        async def due() -> bool:
            sighting = await records.refresh("main")
            return (
                sighting.record is not None
                and sighting.record.state == "open"
                and sighting.age_seconds(lease_clock()) > 1
            )

        await until(due)
        assert gate.room() == 0
        await publish_work(connection.requests, turn_work())
        await until(lambda: gate.room() == 1)
        entry = gate.acquire()
        assert entry is not None
        assert (gate.room(), gate.acquire()) == (0, None)
        entry.release()
        assert gate.room() == 1


# Lanes


class Gate(AlwaysOpen):
    """A gate that a test shuts and opens. Whoever enters takes a place."""

    def __init__(self) -> None:
        super().__init__()
        self._room = 0
        self._callbacks: list[Callable[[], None]] = []
        self.let_in(UNLIMITED)

    @property
    def is_valid(self) -> bool:
        return self._room >= UNLIMITED

    def release(self) -> None:
        """Nobody else may come instead."""

    def room(self) -> int:
        return self._room

    @property
    def leaves_pulls_open(self) -> bool:
        return self._room >= UNLIMITED

    def acquire(self) -> Permit | None:
        if self._room == 0:
            return None
        if self._room < UNLIMITED:
            self.let_in(self._room - 1)
            return Place()
        return self

    def on_changed(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def let_in(self, room: int) -> None:
        self._room = room
        if room:
            self.opened.set()
        else:
            self.opened.clear()
        for callback in self._callbacks:
            callback()


class Place:
    """The one place that there was."""

    is_valid = True

    def release(self) -> None:
        """It stays taken."""


class Handler:
    """Performs a turn as the test says."""

    def __init__(self, perform: Callable[[ClaimedStep], Awaitable[None]]) -> None:
        self._perform = perform

    def describe_claim(self, state: TaskState, work: Work) -> dict[str, str]:
        return {"provider": "test", "model": "test"}

    async def perform(self, step: ClaimedStep) -> None:
        await self._perform(step)


async def answer(step: ClaimedStep) -> None:
    """A turn of one token."""
    await step.append(lambda stamp: OutputDelta(*stamp, turn=1, text="ok"))
    await step.append(
        lambda stamp: TurnCompleted(*stamp, turn=1, text="ok", finish_reason="stop", usage=Usage(), timings=Timings())
    )
    await step.append(lambda stamp: TaskCompleted(*stamp, output="ok", usage=Usage(), timings=Timings()))


@asynccontextmanager
async def working(
    connection: Connection, settings: Settings, gate: Gate, perform: Callable[[ClaimedStep], Awaitable[None]]
) -> AsyncIterator[None]:
    """A work loop on one lane behind the gate, until the end of the block."""
    loop = WorkLoop(connection, settings, [ConsumerSpec(*CONSUMER, gate=gate)], Handler(perform), "one")
    stopping = asyncio.Event()
    running = asyncio.create_task(loop.run(stopping))
    try:
        yield
    finally:
        stopping.set()
        async with within(20):
            await running


async def consumer(connection: Connection) -> dict[str, Any]:
    stream, name = CONSUMER
    return await connection.requests.api(f"CONSUMER.INFO.{stream}.{name}")


async def pulls_are(connection: Connection, count: int) -> bool:
    return bool((await consumer(connection))["num_waiting"] == count)


async def test_a_pull_that_is_open_when_its_gate_shuts_gets_nothing(connection: Connection, settings: Settings) -> None:
    gate, work = Gate(), turn_work()
    async with working(connection, settings, gate, answer):
        await until(lambda: pulls_are(connection, 1))
        gate.let_in(0)
        await until(lambda: pulls_are(connection, 0))
        await publish_work(connection.requests, work)
        info = await consumer(connection)
        assert (info["num_pending"], info["delivered"]["consumer_seq"]) == (1, 0)
        gate.let_in(UNLIMITED)
        await until_no_work_is_left(connection)
    stored = await read_stored(connection.requests)
    assert [claim["delivery"] for claim in claims(stored, work.task)] == [1]
    assert check(Recorded(accepted={work.task}), stored) == []


async def test_a_step_whose_provider_is_down_waits_in_hand_and_uses_up_nothing(
    connection: Connection, settings: Settings
) -> None:
    """It fails more often than it has tries and deliveries."""
    gate, work, failures = Gate(), turn_work(), settings.max_deliver + settings.max_tries
    attempts = 0

    async def fail_first(step: ClaimedStep) -> None:
        nonlocal attempts
        attempts += 1
        if step.claim.attempt is not None and step.claim.attempt > failures:
            await answer(step)
            return
        gate.let_in(0)
        error = StepFailed("provider-overloaded", "made up", retryable=True)
        error.counts = False
        raise error

    async with working(connection, settings, gate, fail_first):
        await publish_work(connection.requests, work)
        for attempt in range(1, failures + 1):
            await until(lambda attempt=attempt: attempts == attempt and gate.waiting == 1)  # type: ignore[misc]  # mypy can't infer it
            gate.let_in(UNLIMITED)
        await until_no_work_is_left(connection)
    stored = await read_stored(connection.requests)
    assert {claim["delivery"] for claim in claims(stored, work.task)} == {1}
    retries = [event.event for event in stored.journals[work.task] if event.event["type"] == "task.retrying"]
    assert [retry["tries"] for retry in retries] == [1] * failures
    assert check(Recorded(accepted={work.task}), stored) == []


async def test_what_waits_in_hand_for_a_gate_leaves_room_for_what_can_run(
    connection: Connection, settings: Settings
) -> None:
    """With one place for steps, and one step that waits; the second lane is another pool's."""
    shut, high = Gate(), ("TASKS", lane_consumer("TASKS", "default", "high"))
    normal, urgent = turn_work(), msgspec.structs.replace(turn_work(), priority="high")

    async def fail_normal(step: ClaimedStep) -> None:
        if step.work.task == urgent.task or step.claim.attempt == 2:
            await answer(step)
            return
        shut.let_in(0)
        error = StepFailed("provider-overloaded", "made up", retryable=True)
        error.counts = False
        raise error

    lanes = [ConsumerSpec(*CONSUMER, gate=shut), ConsumerSpec(*high)]
    stopping = asyncio.Event()
    loop = WorkLoop(connection, replace(settings, worker_concurrency=1), lanes, Handler(fail_normal), "one")
    running = asyncio.create_task(loop.run(stopping))
    await publish_work(connection.requests, normal)
    await until(lambda: shut.waiting == 1)
    await publish_work(connection.requests, urgent)

    async def urgent_ended() -> bool:
        stored = await read_stored(connection.requests)
        return stored.records.get(urgent.task, {}).get("status") == "completed"

    await until(urgent_ended)
    assert shut.waiting == 1
    shut.let_in(UNLIMITED)
    await until_no_work_is_left(connection)
    stopping.set()
    await running


async def test_a_gate_with_one_place_lets_one_message_through(connection: Connection, settings: Settings) -> None:
    gate, done = Gate(), asyncio.Event()
    begun: list[str] = []

    async def wait_and_answer(step: ClaimedStep) -> None:
        begun.append(step.work.task)
        await done.wait()
        await answer(step)

    async with working(connection, settings, gate, wait_and_answer):
        await until(lambda: pulls_are(connection, 1))
        gate.let_in(0)
        await until(lambda: pulls_are(connection, 0))
        for _ in range(5):
            await publish_work(connection.requests, turn_work())
        gate.let_in(1)
        await until(lambda: bool(begun))
        assert (gate.room(), (await consumer(connection))["num_pending"]) == (0, 4)
        gate.let_in(UNLIMITED)
        done.set()
        await until_no_work_is_left(connection)
    assert len(begun) == 5


def claims(stored: Stored, task: str) -> list[dict[str, Any]]:
    """The claims of a task."""
    return [event.event for event in stored.journals[task] if event.event["type"] == "step.claimed"]
