"""Cancelling against a real broker: one end, whoever is faster; a silent step notices; queues drain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from contracts import headers, subjects
from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.journal.events import OutputDelta
from contracts.journal.parts import Reserved
from contracts.messages.control import CancelCommand, cancel_message_id
from mesh.broker.connection import Connection
from mesh.broker.requests import PubAck
from mesh.budgets.account import hold, taken_of
from mesh.budgets.accounts import Accounts
from mesh.budgets.limits import Amount
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.journal.journal import Journal
from mesh.journal.submission import begin
from mesh.steps.claimed_step import ClaimedStep
from steward.control_loop import ControlLoop
from tests.integration.test_work import Handler, answer, queues_are_empty, status_is, working
from tests.support.checker import Recorded, check, read_stored
from tests.support.patience import within
from tests.support.tasks import append_text, begin_journal, claim_first_turn, publish_work, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.integration

RACES = 60


@asynccontextmanager
async def controlling(connection: Connection, settings: Settings, stream: str = "CONTROL") -> AsyncIterator[None]:
    """A steward's control loop that runs until the end of the block."""
    running = asyncio.create_task(ControlLoop(connection, settings, "steward", stream).run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def ask_to_cancel(connection: Connection, task: str) -> PubAck:
    command = CancelCommand(task=task, tenant="default", by="test", reason="enough")
    message_headers = {headers.MESSAGE_ID: cancel_message_id(task)}
    return await connection.requests.publish(subjects.control("cancel", "default"), encode(command), message_headers)


async def control_is_empty(connection: Connection) -> bool:
    info = await connection.requests.api("STREAM.INFO.CONTROL")
    return bool(info["state"]["messages"] == 0)


async def test_a_silent_step_notices_the_cancel_is_stopped_and_its_message_is_settled(
    connection: Connection, settings: Settings
) -> None:
    work = turn_work()
    silent, stopped = asyncio.Event(), asyncio.Event()

    async def hang(step: ClaimedStep) -> None:
        await step.append(lambda stamp: OutputDelta(*stamp, turn=1, text="so far"))
        silent.set()
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()

    async with controlling(connection, settings), working(connection, settings, Handler(hang)) as loop:
        await publish_work(connection.requests, work)
        await silent.wait()
        began = time.perf_counter()
        await ask_to_cancel(connection, work.task)
        async with within(10):
            await stopped.wait()
        print(f"from the command to the stopped handler: {(time.perf_counter() - began) * 1000:.1f} ms")  # noqa: T201 - a figure, for who runs it with -s
        await until(lambda: queues_are_empty(connection))
        await until(lambda: loop.steps_running == 0)
        await until(lambda: control_is_empty(connection))
    stored = await read_stored(connection.requests)
    end = stored.journals[work.task][-1].event
    assert (end["type"], end["output"], end["by"], end["reason"]) == ("task.cancelled", "so far", "test", "enough")
    claims = [event for event in stored.journals[work.task] if event.event["type"] == "step.claimed"]
    assert len(claims) == 1, "settled, not taken over"
    assert check(Recorded(accepted={work.task}), stored) == []


async def test_a_silent_step_that_somebody_else_claims_is_stopped_and_sends_nothing(
    connection: Connection, settings: Settings
) -> None:
    work = turn_work()
    silent, stopped = asyncio.Event(), asyncio.Event()

    async def hang(step: ClaimedStep) -> None:
        silent.set()
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()

    async with working(connection, settings, Handler(hang)) as loop:
        await publish_work(connection.requests, work)
        await silent.wait()
        thief = await Journal.load(connection.requests, "default", work.task)
        await claim_first_turn(thief, "thief")
        async with within(10):
            await stopped.wait()
        await until(lambda: loop.steps_running == 0)
        stored = await read_stored(connection.requests)
        assert len(stored.work) == 1
        assert len(stored.journals[work.task]) == thief.state.next_n


async def test_a_cancel_and_a_completion_at_the_same_moment_leave_exactly_one_end(
    connection: Connection, settings: Settings
) -> None:
    works = [turn_work(text=f"{number}") for number in range(RACES)]
    gates = {work.task: asyncio.Event() for work in works}

    async def finish_at_the_gate(step: ClaimedStep) -> None:
        await gates[step.work.task].wait()
        await answer(step)

    async def race(number: int, task: str) -> None:
        # Some cancels get a start, some completions do.
        asyncio.get_running_loop().call_later(0.002 * (number % 8), gates[task].set)
        await ask_to_cancel(connection, task)

    handler = Handler(finish_at_the_gate)
    async with controlling(connection, settings), working(connection, settings, handler):
        for work in works:
            await publish_work(connection.requests, work)
        await until(lambda: handler.running == RACES)
        for number, work in enumerate(works):
            await race(number, work.task)
        await until(lambda: control_is_empty(connection))
        await until(lambda: queues_are_empty(connection))
    stored = await read_stored(connection.requests)
    ends = [stored.journals[work.task][-1].event["type"] for work in works]
    print({end: ends.count(end) for end in set(ends)})  # noqa: T201 - a figure, for who runs it with -s
    assert set(ends) <= {"task.completed", "task.cancelled"}
    assert check(Recorded(accepted={work.task for work in works}), stored) == []


async def test_a_cancelled_task_in_the_queue_is_never_begun_and_twice_is_the_same_as_once(
    connection: Connection, settings: Settings
) -> None:
    work = turn_work()
    handler = Handler(answer)
    async with controlling(connection, settings):
        journal = await begin_journal(connection.requests, work)
        await append_text(journal, "before")
        assert not (await ask_to_cancel(connection, work.task)).duplicate
        assert (await ask_to_cancel(connection, work.task)).duplicate
        await until(lambda: status_is(connection, work.task, "cancelled"))
    await publish_work(connection.requests, work)
    async with working(connection, settings, handler):
        await until(lambda: queues_are_empty(connection))
    assert handler.running_max == 0
    assert check(Recorded(accepted={work.task}), await read_stored(connection.requests)) == []


@pytest.mark.parametrize(
    ("subject", "payload", "code"),
    [
        ("control.cancel.default", b"not json", "malformed-message"),
        ("control.cancel.default", b"[" * 5000, "malformed-message"),
        ("control.replay.default", b"{}", "malformed-message"),
        ("control.cancel.UPPER", b"{}", "malformed-message"),
        ("control.cancel.default", None, "task-unknown"),
    ],
)
async def test_a_command_that_cannot_be_carried_out_becomes_a_dead_letter_and_the_loop_goes_on(
    connection: Connection, settings: Settings, subject: str, payload: bytes | None, code: str
) -> None:
    work = turn_work()
    await begin_journal(connection.requests, work)
    async with controlling(connection, settings):
        absent = encode(CancelCommand(task=new_id(), tenant="default", by="test"))
        await connection.requests.publish(subject, absent if payload is None else payload)
        await ask_to_cancel(connection, work.task)
        await until(lambda: control_is_empty(connection))
        await until(lambda: status_is(connection, work.task, "cancelled"))
    stored = await read_stored(connection.requests)
    (letter,) = stored.dead_letters
    assert (letter["errors"][0]["code"], letter["subject"], letter["stream"]) == (code, subject, "CONTROL")


async def test_what_was_set_aside_for_a_task_that_never_began_goes_back_once(
    connection: Connection, settings: Settings
) -> None:
    """However often it is cancelled; of one that has begun its first turn has given it back."""
    accounts = Accounts(connection.requests)
    waiting, running = (replace(turn_work(), reserved=Reserved(tokens=50)) for _ in range(2))
    for tokens in (50, 50, 7):
        await accounts.change("default", lambda account, tokens=tokens: hold(account, now(), Amount(tokens)))  # type: ignore[misc]  # mypy can't infer it
    await begin(connection.requests, waiting, None)
    await begin_journal(connection.requests, running)
    async with controlling(connection, settings):
        for work in (waiting, running):
            await ask_to_cancel(connection, work.task)
            again = CancelCommand(task=work.task, tenant="default", by="test", reason="again")
            await connection.requests.publish(subjects.control("cancel", "default"), encode(again))
        await until(lambda: control_is_empty(connection))
    account = await Accounts(connection.requests).change("default", lambda _: None)
    assert taken_of(account)["month"].tokens == 50 + 7
