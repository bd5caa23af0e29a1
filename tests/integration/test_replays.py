"""Replays, later tries and deadlines against a real broker: what goes on does so once, and what waits holds nothing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from contracts import headers, subjects
from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.journal.events import TaskDeadLettered
from contracts.journal.parts import StepGen
from contracts.messages.control import Edits, ReplayCommand, replay_message_id
from mesh.broker.connection import Connection
from mesh.configuration.settings import Settings
from mesh.journal.settling import publish_outbox
from mesh.steps.claimed_step import ClaimedStep
from mesh.task import failures
from mesh.task.failures import StepFailed
from mesh.task.outbox import deadline_timer
from steward.advisories import Advisories
from steward.stranded import DELIVERIES_EXHAUSTED, Stranded
from tests.integration.test_control import controlling
from tests.integration.test_stranded import LANE, poisoned, take
from tests.integration.test_work import Handler, answer, queues_are_empty, status_is, working
from tests.support.checker import Recorded, check, read_stored
from tests.support.tasks import append_text, begin_journal, publish_work, turn_work
from tests.support.waiting import until

__all__ = ["poisoned"]  # a fixture of this name is meant

pytestmark = pytest.mark.integration


async def ask_to_replay(connection: Connection, task: str, gen: int, edits: Edits | None, *, again: bool) -> None:
    """Publish a replay of the first turn; `again`: as if CONTROL had forgotten the one before."""
    steps = [StepGen("1", gen)]
    command = ReplayCommand(task=task, tenant="default", by="test", steps=steps, edits=edits)
    message_headers = {} if again else {headers.MESSAGE_ID: replay_message_id(task, steps)}
    await connection.requests.publish(subjects.control("replay", "default"), encode(command), message_headers)


async def types_of(connection: Connection, task: str) -> list[str]:
    stored = await read_stored(connection.requests)
    return [event.event["type"] for event in stored.journals[task] if event.event["type"] != "output.delta"]


async def test_a_replayed_turn_goes_on_in_its_journal_with_the_edits_and_once(
    connection: Connection, settings: Settings
) -> None:
    work = turn_work(text="poison")
    seen: list[object] = []

    async def perform(step: ClaimedStep) -> None:
        request = step.state.request
        seen.append(request.input if request else None)
        if seen[-1] == "poison":
            raise StepFailed("quota-exhausted", "no more", retryable=False)
        await answer(step)

    async with controlling(connection, settings), working(connection, settings, Handler(perform)):
        await publish_work(connection.requests, work)
        await until(lambda: status_is(connection, work.task, "dead_lettered"))
        for again in (False, True, True):
            await ask_to_replay(connection, work.task, 0, Edits(input="good"), again=again)
        await until(lambda: status_is(connection, work.task, "completed"))
        await until(lambda: queues_are_empty(connection))
    assert seen == ["poison", "good"]
    assert await types_of(connection, work.task) == [
        "task.queued",
        "step.claimed",
        "task.dead_lettered",
        "task.replayed",
        "step.claimed",
        "turn.completed",
        "task.completed",
    ]
    stored = await read_stored(connection.requests)
    assert check(Recorded(accepted={work.task}), stored) == []


async def test_a_try_that_comes_late_holds_no_message_and_a_timer_brings_it(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "NAK_SECONDS_MAX", 1.0)
    work = turn_work()
    tried: list[datetime] = []

    async def perform(step: ClaimedStep) -> None:
        tried.append(datetime.now(UTC))
        if len(tried) == 1:
            raise StepFailed("rate-limited", "come back", retryable=True, retry_after_seconds=1.5)
        await answer(step)

    async with working(connection, settings, Handler(perform)):
        await publish_work(connection.requests, work)
        # The steward is not there when the timer fires.
        await until(lambda: fired(connection, "retry"))
        assert await queues_are_empty(connection)
        assert len(tried) == 1
        async with controlling(connection, settings, "TIMERS"):
            await until(lambda: status_is(connection, work.task, "completed"))
            await until(lambda: queues_are_empty(connection))
    assert len(tried) == 2
    assert (tried[1] - tried[0]).total_seconds() >= 1.5
    assert (await types_of(connection, work.task)).count("task.retrying") == 1
    assert check(Recorded(accepted={work.task}), await read_stored(connection.requests)) == []


async def fired(connection: Connection, kind: str) -> bool:
    info = await connection.requests.api("STREAM.INFO.TIMERS", {"subjects_filter": f"timers.fired.{kind}.>"})
    return bool(info["state"].get("subjects"))


@pytest.mark.parametrize(
    ("text", "end"),
    [(None, ("task.expired", None, None)), ("so far", ("task.completed", "so far", "deadline"))],
    ids=["nothing yet", "some output"],
)
async def test_a_deadline_ends_what_nobody_is_at_work_on_also_after_the_steward_was_away(
    connection: Connection, settings: Settings, text: str | None, end: tuple[str, str | None, str | None]
) -> None:
    work = turn_work(deadline_seconds=0.5)
    journal = await begin_journal(connection.requests, work)
    if text is not None:
        await append_text(journal, text)
    for _ in range(2):
        await publish_outbox(connection.requests, deadline_timer(journal.state), None)
    await until(lambda: fired(connection, "deadline"))
    async with controlling(connection, settings, "TIMERS"):
        await until(lambda: status_is(connection, work.task, end[0].removeprefix("task.")))
    stored = await read_stored(connection.requests)
    ends = [event.event for event in stored.journals[work.task] if event.event["type"] == end[0]]
    assert [(each["type"], each.get("output"), each.get("incomplete")) for each in ends] == [end]


async def test_an_advisory_makes_a_dead_letter_at_once_also_after_the_steward_was_away(
    poisoned: Connection, settings: Settings
) -> None:
    work = turn_work()
    await publish_work(poisoned.requests, work)
    await take(poisoned, 1)

    async def told() -> bool:
        return bool((await poisoned.requests.api("STREAM.INFO.ADVISORIES"))["state"]["messages"])

    await until(told)
    stranded = Stranded(poisoned.requests, "steward")
    running = asyncio.create_task(Advisories(poisoned, settings, stranded, "steward").run())
    try:
        await until(lambda: status_is(poisoned, work.task, "dead_lettered"))
        await until(lambda: queues_are_empty(poisoned))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    (letter,) = (await read_stored(poisoned.requests)).dead_letters
    assert (letter["task"], letter["errors"][-1]["code"]) == (work.task, DELIVERIES_EXHAUSTED)


async def test_an_advisory_about_a_step_that_was_replayed_since_only_takes_its_message_away(
    poisoned: Connection, settings: Settings
) -> None:
    work = turn_work()
    ack = await publish_work(poisoned.requests, work)
    journal = await begin_journal(poisoned.requests, work)
    error = ErrorInfo("internal", "it broke")
    await journal.append(
        lambda stamp: TaskDeadLettered(*stamp, step="1", gen=0, error=error, deliveries=1), lambda _: True
    )
    await ask_to_replay(poisoned, work.task, 0, None, again=False)
    async with controlling(poisoned, settings):
        await until(lambda: gens_in_queues_are(poisoned, [0, 1]))
    await Stranded(poisoned.requests, "steward").exhausted("TASKS", ack.seq, 1)
    assert await gens_in_queues_are(poisoned, [1])
    assert (await types_of(poisoned, work.task))[-1] == "task.replayed"


async def gens_in_queues_are(connection: Connection, gens: list[int]) -> bool:
    stored = await read_stored(connection.requests)
    return sorted(message.get("gen", 0) for message in stored.work if message["kind"] == "turn") == gens


@pytest.mark.parametrize("payload", [b"", b"advisory", b"{}", b'{"stream": "TASKS"}', b'{"stream_seq": 1}'])
async def test_rubbish_among_the_advisories_is_put_aside(
    connection: Connection, settings: Settings, payload: bytes
) -> None:
    subject = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.TASKS.{LANE}"
    await connection.requests.publish(subject, payload)
    running = asyncio.create_task(
        Advisories(connection, settings, Stranded(connection.requests, "steward"), "steward").run()
    )
    try:
        await until(lambda: one_dead_letter(connection))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def one_dead_letter(connection: Connection) -> bool:
    letters = (await read_stored(connection.requests)).dead_letters
    return [letter["errors"][0]["code"] for letter in letters] == ["malformed-message"]
