"""The critic against a real broker: one task for each dead letter, whoever dies, and a proposal that is carried out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts import subjects
from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.identifiers import new_id
from contracts.journal.events import TaskDeadLettered, TaskReplayed, decode_event
from contracts.journal.parts import StepGen
from contracts.messages.control import Edits
from contracts.messages.work import DeadLetter, TurnWork
from contracts.streams import CRITIC_CONSUMER
from mesh import faults
from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import apply, compare, declared
from mesh.clock import now
from mesh.configuration.critic_table import CriticConfiguration
from mesh.configuration.settings import Settings
from mesh.journal.journal import Journal
from mesh.journal.submission import Submission
from steward.critic import Critic, critics_task
from tests.chaos.points import Point, give_order, order_is_open, read_reached
from tests.integration.test_control import controlling
from tests.support.checker import Stored, read_stored
from tests.support.limits import narrow
from tests.support.processes import running_mesh
from tests.support.tasks import append_text, begin_journal, turn_work
from tests.support.waiting import until
from tests.unit.journals import TASK, FoldedStep, HandMadeJournal, tool_work
from tool_runner.tools.propose_replay import ProposeReplayArguments, Replayed, propose_replay, replayer
from tool_runner.tools.tool import Call, ToolRefused

pytestmark = pytest.mark.integration

CONFIGURED = CriticConfiguration(codes=["provider-error"])
ERROR = ErrorInfo("provider-error", "it broke")
TENANT = "default"


def with_critic(settings: Settings, configured: CriticConfiguration = CONFIGURED) -> Settings:
    """The settings of a mesh that has a critic."""
    return replace(settings, configuration=msgspec.structs.replace(settings.configuration, critic=configured))


@asynccontextmanager
async def criticising(
    connection: Connection, settings: Settings, configured: CriticConfiguration = CONFIGURED, stewards: int = 1
) -> AsyncIterator[None]:
    """Stewards' critics that run until the end of the block."""
    settings = with_critic(settings, configured)
    await apply(connection.requests, declared(settings), update=False)
    running = [asyncio.create_task(Critic(connection, settings, configured).run()) for _ in range(stewards)]
    try:
        yield
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def give_up(connection: Connection, *, copies: int = 1, **fields: Any) -> str:
    """A task whose first turn gives up, and its record, so many times; its id."""
    work = turn_work()
    journal = await begin_journal(connection.requests, work)
    await dead_letter(journal)
    await write_record(connection, work, copies=copies, **fields)
    return work.task


async def dead_letter(journal: Journal, gen: int = 0) -> None:
    await journal.append(
        lambda stamp: TaskDeadLettered(*stamp, step="1", gen=gen, error=ERROR, deliveries=1), lambda _: True
    )


async def write_record(connection: Connection, work: TurnWork, *, copies: int = 1, **fields: Any) -> None:
    """A step's record, without a message id: each copy is delivered, as one is that was not acked."""
    record = DeadLetter(
        **{
            "id": new_id(),
            "time": now(),
            "stream": "TASKS",
            "subject": "tasks.default.normal.default",
            "sequence": 1,
            "deliveries": 1,
            "message": encode(work).decode(),
            "errors": [ERROR],
            "tenant": TENANT,
            "task": work.task,
            "step": "1",
            "gen": 0,
            **fields,
        }
    )
    for _ in range(copies):
        await connection.requests.publish(subjects.dead_letter(TENANT, work.task), encode(record))


async def all_are_considered(connection: Connection) -> bool:
    """Whether the critic's consumer has handed out all that there is, and all of that is acked.

    How many are pending a busy broker says late; up to where all is acked it says as it is.
    """
    last = (await connection.requests.api("STREAM.INFO.DEAD_LETTERS"))["state"]["last_seq"]
    info = await connection.requests.api(f"CONSUMER.INFO.DEAD_LETTERS.{CRITIC_CONSUMER}")
    return bool(info["num_pending"] == info["num_ack_pending"] == 0 and info["ack_floor"]["stream_seq"] >= last)


def critics(stored: Stored) -> Counter[str]:
    """Messages in TASKS by task: what the critic has started, for nobody else has."""
    return Counter(message["task"] for message in stored.work)


async def test_a_dead_letter_becomes_one_task_in_its_tenant_with_the_record_as_input(
    connection: Connection, settings: Settings
) -> None:
    async with criticising(connection, settings):
        task = await give_up(connection)
        await until(lambda: all_are_considered(connection))
    stored = await read_stored(connection.requests)
    (message,) = stored.work
    assert (message["task"], message["tenant"]) == (critics_task(task, "1", 0), TENANT)
    (queued,) = stored.journals[message["task"]]
    assert queued.event["request"] == message["request"]
    assert queued.event["request"]["metadata"] == {"critic_of": task, "critic_step": "1", "critic_gen": 0}
    assert stored.records[message["task"]]["status"] == "queued"


async def test_copies_of_a_record_and_several_stewards_make_one_task(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with criticising(connection, settings, stewards=3):
        tasks = [await give_up(connection, copies=5) for _ in range(4)]
        await until(lambda: all_are_considered(connection))
        # TASKS forgets message ids after ten minutes; a record may come again after a day.
        monkeypatch.setattr(faults, "MESSAGE_ID_ON", False)
        for task in tasks:
            await write_record(connection, turn_work(task))
        await until(lambda: all_are_considered(connection))
    assert critics(await read_stored(connection.requests)) == {critics_task(task, "1", 0): 1 for task in tasks}


async def test_what_is_not_chosen_forged_or_rubbish_makes_no_task_and_stops_nothing(
    connection: Connection, settings: Settings
) -> None:
    requests = connection.requests
    async with criticising(connection, settings):
        other = await give_up(connection, errors=[ErrorInfo("tool-error", "x")])
        forged = await give_up(connection, task=other)
        closed = turn_work()
        journal = await begin_journal(requests, closed)
        await append_text(journal, "it goes on")
        await write_record(connection, closed)
        await write_record(connection, turn_work())
        for payload in (b"", b"rubbish", b"{}"):
            await requests.publish(subjects.dead_letter(TENANT, forged), payload)
        await requests.publish(subjects.malformed_dead_letter(None), b"rubbish")
        await until(lambda: all_are_considered(connection))
        taken = await give_up(connection)
        await until(lambda: all_are_considered(connection))
    await requests.api("STREAM.PURGE.DEAD_LETTERS")  # What is no JSON can't be read below.
    stored = await read_stored(requests)
    assert critics(stored) == {critics_task(taken, "1", 0): 1}


async def test_beyond_the_hours_tasks_dead_letters_are_left_to_people(
    connection: Connection, settings: Settings
) -> None:
    configured = CriticConfiguration(codes=["provider-error"], per_hour_max=2)
    async with criticising(connection, settings, configured):
        for _ in range(4):
            await give_up(connection, copies=2)
        await until(lambda: all_are_considered(connection))
    assert sorted(critics(await read_stored(connection.requests)).values()) == [1, 1]


async def test_the_hours_tasks_are_those_of_all_stewards_and_of_those_before_them(
    connection: Connection, settings: Settings
) -> None:
    configured = CriticConfiguration(codes=["provider-error"], per_hour_max=2)
    for _ in range(2):  # the second time all of them are new
        async with criticising(connection, settings, configured, stewards=3):
            for _ in range(6):
                await give_up(connection)
            await until(lambda: all_are_considered(connection))
    assert sorted(critics(await read_stored(connection.requests)).values()) == [1, 1]


async def test_a_full_lane_delays_the_critic_and_costs_it_nothing(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steward.critic.ROOM_SECONDS", 0.2)
    await narrow(connection.requests, 1, TENANT)
    lane = subjects.tasks("default", "normal", TENANT)
    waiting = await connection.requests.publish(lane, encode(turn_work()))
    configured = CriticConfiguration(codes=["provider-error"], per_hour_max=1)

    async def refused() -> bool:
        info = await connection.requests.api(f"CONSUMER.INFO.DEAD_LETTERS.{CRITIC_CONSUMER}")
        return bool(info["num_redelivered"])

    async with criticising(connection, settings, configured):
        task = await give_up(connection)
        await until(refused)
        await connection.requests.api("STREAM.MSG.DELETE.TASKS", {"seq": waiting.seq})
        await until(lambda: all_are_considered(connection))
    assert critics(await read_stored(connection.requests)) == {critics_task(task, "1", 0): 1}


async def test_a_critic_that_is_new_gets_no_dead_letter_from_before(connection: Connection, settings: Settings) -> None:
    await give_up(connection)
    async with criticising(connection, settings):
        await until(lambda: all_are_considered(connection))
        later = await give_up(connection)
        await until(lambda: all_are_considered(connection))
    assert critics(await read_stored(connection.requests)) == {critics_task(later, "1", 0): 1}


async def test_a_plan_shows_its_consumer_where_it_is_missing(connection: Connection, settings: Settings) -> None:
    assert [str(each) for each in await compare(connection.requests, declared(with_critic(settings)))] == [
        "consumer DEAD_LETTERS/critic: missing"
    ]


async def test_a_submission_under_an_id_is_one_task_and_what_was_asked_for_first_stays(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = Submission(connection.requests)
    first, other = turn_work(text="first").request, turn_work(text="other").request
    assert first is not None
    assert other is not None
    task = new_id()
    started = await submission.start(first, TENANT, task, None)
    monkeypatch.setattr(faults, "MESSAGE_ID_ON", False)
    again = await submission.start(other, TENANT, task, None)
    await submission.close()
    assert (started.existing, again.existing, again.created_at) == (False, True, started.created_at)
    stored = await read_stored(connection.requests)
    assert [message["request"]["input"] for message in stored.work] == ["first"]


# A steward that dies

VARIABLES = {"MESH_ACK_WAIT_SECONDS": "1"}
POINTS = {
    "before-publish:tasks.default",
    "after-publish:tasks.default",
    "append:task.queued",
    "before-project:queued",
    "after-project:queued",
    "before-ack:dead.default",
    "after-ack:dead.default",
}


async def test_a_steward_that_is_killed_at_any_point_leaves_one_task_of_the_critic(tmp_path: Path) -> None:
    """No worker runs: what lies in TASKS in the end is all that was ever started."""
    file = tmp_path / "mesh.toml"
    file.write_text('[critic]\ncodes = ["provider-error"]\n')
    async with (
        running_mesh(tmp_path, MESH_CONFIG=str(file), **VARIABLES) as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        folder = tmp_path / "points"
        folder.mkdir()
        steward = await mesh.start("steward", **{faults.POINTS_VARIABLE: str(folder)})
        tasks = [await give_up(connection)]
        # Its record is written in the background, and may be the last.
        await until(lambda: {reached.what for reached in read_reached(folder)} >= POINTS)
        for number, point in enumerate(sorted(POINTS)):
            give_order(folder, str(number), Point("kill", "steward", point, 1), 0)
            tasks.append(await give_up(connection))
            await until(lambda: not order_is_open(folder) and not steward.is_running)
            await steward.start()
            await until(lambda: all_are_considered(connection))
        stored = await read_stored(connection.requests)
        assert critics(stored) == {critics_task(task, "1", 0): 1 for task in tasks}
        assert stored.tasks_ever_stored == len(tasks)
        assert mesh.tracebacks() == []


# Its tool


def called(call: str = "1-0") -> Call:
    """A call of the tool, of a task of the default tenant."""
    journal = HandMadeJournal()
    journal.queued()
    work = msgspec.structs.replace(tool_work(call, tool="propose_replay", arguments={}), tenant=TENANT)
    return Call(FoldedStep(journal, work, journal.claimed(call)), lambda *_: None)


async def run_tool(connection: Connection, arguments: ProposeReplayArguments, call: str = "1-0") -> Replayed:
    result = await propose_replay(("default",), connection.requests).run(arguments, called(call))
    assert isinstance(result, Replayed)
    return result


async def replays_of(connection: Connection, task: str) -> list[TaskReplayed]:
    stored = (await read_stored(connection.requests)).journals[task]
    events = [event for event in stored if event.event["type"] == "task.replayed"]
    return [event for event in (decode_event(each.data) for each in events) if isinstance(event, TaskReplayed)]


async def test_a_proposal_that_is_agreed_to_is_carried_out_once_however_often_its_call_runs(
    connection: Connection, settings: Settings
) -> None:
    task = await give_up(connection)
    arguments = ProposeReplayArguments(task=task, reason="why", edits=Edits(input="good"))
    async with controlling(connection, settings):
        results = [await run_tool(connection, arguments) for _ in range(2)]
    assert results == [Replayed(task=task, steps=[StepGen("1", 0)])] * 2
    (replayed,) = await replays_of(connection, task)
    assert (replayed.by, replayed.reason) == (replayer(TASK, "1-0", 0), "why")
    assert replayed.edits == Edits(input="good").recorded()


async def test_a_proposal_whose_runner_died_before_the_steward_was_there_waits_for_it(
    connection: Connection, settings: Settings
) -> None:
    task = await give_up(connection)
    arguments = ProposeReplayArguments(task=task, reason="why")
    first = asyncio.create_task(run_tool(connection, arguments))

    async def asked_for() -> bool:
        return bool((await connection.requests.api("STREAM.INFO.CONTROL"))["state"]["messages"])

    await until(asked_for)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    again = asyncio.create_task(run_tool(connection, arguments))
    async with controlling(connection, settings):
        assert await again == Replayed(task=task, steps=[StepGen("1", 0)])
    assert len(await replays_of(connection, task)) == 1


async def test_of_two_proposals_one_is_carried_out_and_the_other_is_told(
    connection: Connection, settings: Settings
) -> None:
    task = await give_up(connection)
    arguments = ProposeReplayArguments(task=task, reason="why")
    async with controlling(connection, settings):
        results = await asyncio.gather(*(run_tool(connection, arguments, call) for call in ("1-0", "1-1")))
    done = [result for result in results if result.steps]
    told = [result for result in results if not result.steps]
    assert (len(done), len(told)) == (1, 1)
    assert "nothing was replayed" in (told[0].note or "")
    assert len(await replays_of(connection, task)) == 1


async def test_a_proposal_for_a_task_of_another_tenant_is_refused(connection: Connection) -> None:
    work = turn_work(tenant="acme")
    await dead_letter(await begin_journal(connection.requests, work))
    with pytest.raises(ToolRefused, match="there is no task"):
        await run_tool(connection, ProposeReplayArguments(task=work.task, reason="why"))


async def test_a_replay_that_nobody_carries_out_is_said_to_be_asked_for(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tool_runner.tools.propose_replay.REPLAYED_SECONDS_MAX", 0.3)
    task = await give_up(connection)
    result = await run_tool(connection, ProposeReplayArguments(task=task, reason="why"))
    assert result == Replayed(task=task, steps=[], note="the replay is asked for, and not carried out yet")
