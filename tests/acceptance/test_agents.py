"""Agent runs over real processes: calls, approvals, questions, redirects, conversations, waiting for a person."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from contracts.journal import events
from mesh.broker.connection import Connection, connect
from tests.support.agents import Agents
from tests.support.checker import Recorded, check, read_stored
from tests.support.http_client import PatientClient
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

SERVICES = ("ingress", "inference_worker", "tool_runner", "steward")
TWO_CALLS = '!call add {"a": 1, "b": 2}\n!call add {"a": 3, "b": 4}\n!then\ndone'


@dataclass
class Bench:
    """A mesh with all that agents need."""

    mesh: Mesh
    connection: Connection
    agents: Agents

    async def output(self, task: str) -> str:
        """The output of a task that must complete."""
        state = await self.agents.until_status(task, "completed")
        assert isinstance(state.terminal, events.TaskCompleted)
        return state.terminal.output

    async def judge(self, *tasks: str) -> None:
        """Nothing is left over, and the checker has nothing to say."""
        await until_no_work_is_left(self.connection)
        recorded = Recorded()
        recorded.accepted.update(tasks)
        stored = await read_stored(self.connection.requests)
        assert stored.work == []
        assert self.mesh.tracebacks() == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with (
        running_mesh(tmp_path_factory.mktemp("agents"), *SERVICES, MESH_WAITING_HOURS="24") as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        yield Bench(mesh, connection, Agents(connection))


async def test_parallel_calls_join_into_one_next_turn(bench: Bench) -> None:
    task = await bench.agents.submit(TWO_CALLS, tools=["add"])
    assert await bench.output(task) == "done\n"
    state = await bench.agents.state(task)
    assert {call: result.result for call, result in state.call_results.items()} == {"1-0": 3, "1-1": 7}  # type: ignore[union-attr]  # both completed
    assert state.turns.keys() == {1, 2}
    await bench.judge(task)


async def test_a_call_waits_for_its_approval_alone_and_a_denied_one_is_told_to_the_model(bench: Bench) -> None:
    script = '!call add {"a": 1, "b": 2}\n!call add {"a": 3, "b": 4}'
    task = await bench.agents.submit(script, tools=["add"], approval="always")
    state = await bench.agents.until_asked(task, "1-0", "1-1")
    assert [asked.call for asked in state.open_approvals] == ["1-0", "1-1"]
    await bench.agents.decide(task, "1-0", "approved")

    async def the_first_is_done() -> bool:
        return "1-0" in (await bench.agents.state(task)).call_results

    await until(the_first_is_done)
    assert (await bench.agents.state(task)).status == "waiting"
    await bench.agents.decide(task, "1-1", "denied", "too much")
    output = await bench.output(task)
    assert "1-0 = 3" in output
    assert "denied by test: too much" in output
    await bench.judge(task)


async def test_a_question_waits_for_the_user_and_the_answer_begins_the_next_turn(bench: Bench) -> None:
    task = await bench.agents.submit("!ask Which quarter?")
    state = await bench.agents.until_status(task, "waiting")
    assert [asked.question for asked in state.open_questions] == ["Which quarter?"]
    async with PatientClient(base_url=bench.mesh.ingress_url) as client:
        record = (await client.get(f"/v1/tasks/{task}")).json()
    assert record["questions"][0]["call"] == "1-0"
    await bench.agents.say(task, "the third")
    assert "the third" in await bench.output(task)
    await bench.judge(task)


async def test_a_redirect_in_mid_stream_begins_the_turn_again_with_it(bench: Bench) -> None:
    task = await bench.agents.submit("!rate 20\n!say 1000")

    async def it_streams() -> bool:
        return (await bench.agents.state(task)).turn(1).text != ""

    await until(it_streams)
    await bench.agents.say(task, "!say 3", "redirect")
    assert await bench.output(task) == "t0 t1 t2 "
    await bench.judge(task)


async def test_a_redirect_reaches_a_model_that_is_silent(bench: Bench) -> None:
    task = await bench.agents.submit("!hang 600")
    await bench.agents.until_status(task, "running")
    await bench.agents.say(task, "!say 2", "redirect")
    assert await bench.output(task) == "t0 t1 "
    await bench.judge(task)


async def test_a_redirect_calls_off_what_waits_for_a_person(bench: Bench) -> None:
    script = '!call add {"a": 1, "b": 2}\n!ask First?\n!ask Second?'
    task = await bench.agents.submit(script, tools=["add"], approval="always")
    await bench.agents.until_asked(task, "1-0", "1-1", "1-2")
    await bench.agents.say(task, "forget it", "redirect")
    output = await bench.output(task)
    assert "1-1 = forget it" in output
    assert "1-0 failed" in output
    assert "1-2 failed" in output
    await bench.judge(task)


async def test_a_message_in_mid_run_is_seen_by_the_next_turn(bench: Bench) -> None:
    task = await bench.agents.submit("!rate 20\n!say 20")
    await bench.agents.until_status(task, "running")
    await bench.agents.say(task, "and then?")
    assert "and then?" in await bench.output(task)
    assert (await bench.agents.state(task)).turns.keys() == {1, 2}
    await bench.judge(task)


async def test_what_cannot_be_carried_out_is_told_to_the_model(bench: Bench) -> None:
    script = '!call no_such_tool {}\n!call add {"a": 1, "b": "x"}\n!call add nonsense'
    task = await bench.agents.submit(script, tools=["add"])
    output = await bench.output(task)
    assert output.count("failed") == 3
    assert "tool-unknown" in output
    assert "tool-arguments-invalid" in output
    await bench.judge(task)


async def test_a_run_ends_at_its_last_turn_with_what_there_is(bench: Bench) -> None:
    script = 'one\n!call add {"a": 1, "b": 2}\n!then\ntwo\n!call add {"a": 1, "b": 2}\n!then\nthree'
    task = await bench.agents.submit(script, tools=["add"], max_turns=2)
    assert await bench.output(task) == "two\n"
    end = (await bench.agents.state(task)).terminal
    assert isinstance(end, events.TaskCompleted)
    assert end.incomplete == "max_turns"
    await bench.judge(task)


async def test_a_task_continues_the_conversation_of_an_ended_one(bench: Bench) -> None:
    first = await bench.agents.submit("My name is Ada.")
    await bench.output(first)
    second = await bench.agents.submit("And mine is Grace.", continues=first)
    await bench.output(second)
    state = await bench.agents.state(second)
    completed = state.turn(1).completed
    assert completed is not None
    words = sum(len(text.split()) for text in ("My name is Ada.", "And mine is Grace."))
    assert completed.usage.input_tokens > words, "the model has read what was said before"
    await bench.judge(first, second)


async def test_a_cancel_ends_what_waits_for_a_person(bench: Bench) -> None:
    task = await bench.agents.submit("!ask Which?")
    await bench.agents.until_status(task, "waiting")
    async with PatientClient(base_url=bench.mesh.ingress_url) as client:
        assert (await client.post(f"/v1/tasks/{task}/cancel")).status_code == 202
    await bench.agents.until_status(task, "cancelled")
    await bench.agents.say(task, "too late")
    await bench.judge(task)


async def test_nobody_decides_in_time(tmp_path: Path) -> None:
    """The broker's clock brings what nobody decided, also when the steward was away at that time."""
    script = '!call add {"a": 1, "b": 2}\n!ask Which?'
    async with (
        running_mesh(tmp_path, "inference_worker", "tool_runner", MESH_WAITING_HOURS="0.0005") as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        agents = Agents(connection)
        task = await agents.submit(script, tools=["add"], approval="always")
        await agents.until_status(task, "waiting")

        async def both_have_fired() -> bool:
            info = await connection.requests.api("CONSUMER.INFO.TIMERS.steward")
            return bool(info["num_pending"] == 2)

        await until(both_have_fired)
        await mesh.start("steward")
        state = await agents.until_status(task, "completed")
        assert isinstance(state.terminal, events.TaskCompleted)
        assert "1-0 failed: expired" in state.terminal.output
        assert "input-expired" in state.terminal.output
        await until_no_work_is_left(connection)
        assert mesh.tracebacks() == []


async def test_what_waits_goes_on_after_every_process_was_started_anew(tmp_path: Path) -> None:
    """A suspended task is a few events in a stream, and nothing else."""
    script = '!ask Which?\n!call add {"a": 1, "b": 2}\n!then\ndone'
    async with (
        running_mesh(tmp_path, *SERVICES) as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        agents = Agents(connection)
        task = await agents.submit(script, tools=["add"])
        await agents.until_status(task, "waiting")
        for process in list(mesh.processes):
            await process.kill()
        await mesh.broker.kill()
        await mesh.broker.start()
        await until(lambda: connection.is_connected)
        for service in SERVICES:
            await mesh.start(service)
        await agents.say(task, "this one")
        state = await agents.until_status(task, "completed")
        assert isinstance(state.terminal, events.TaskCompleted)
        assert state.terminal.output == "done\n"
        await until_no_work_is_left(connection)
        recorded = Recorded()
        recorded.accepted.add(task)
        assert check(recorded, await read_stored(connection.requests)) == []
