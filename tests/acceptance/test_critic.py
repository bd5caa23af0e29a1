"""The critic over real processes: a model proposes, a person decides over HTTP, and every step is in the journals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from contracts.journal import events
from mesh.broker.connection import Connection, connect
from mesh.configuration.critic_table import INSTRUCTIONS
from mesh.errors import BrokerError
from mesh.task.state import TaskState
from steward.critic import critics_task
from tests.support.agents import TENANT, Agents
from tests.support.checker import read_stored
from tests.support.http_client import PatientClient
from tests.support.model_server import DONE, Exchange, chunk, model_server, openai, usage
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

SERVICES = ("ingress", "inference_worker", "tool_runner", "steward")
POISON = "!fail server_error 1000"
GOOD = "!say 2"
CODE = "provider-error"
PROPOSALS_MAX = 2


async def call_of(exchange: Exchange, arguments: dict[str, Any]) -> None:
    """A turn that calls `propose_replay`."""
    function = {"name": "propose_replay", "arguments": json.dumps(arguments)}
    await exchange.begin()
    await exchange.say(
        chunk({"role": "assistant", "content": "Let me see."}),
        chunk({"tool_calls": [{"index": 0, "id": "call_0", "type": "function", "function": function}]}),
        chunk({}, "tool_calls"),
        usage(9, 4),
    )
    await exchange.send(DONE)
    await exchange.end()


@dataclass
class Model:
    """Plays the critic, by what the work that gave up has in its metadata."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of all requests."""

    async def __call__(self, exchange: Exchange) -> None:
        self.asked.append(exchange.body)
        messages = exchange.body["messages"]
        if messages[-1]["role"] == "tool":
            await openai(exchange, ("So ", "it ", "is."))
            return
        record = json.loads(messages[-1]["content"])
        wanted = record["request"]["metadata"]["critic_is_to"]
        arguments = {"task": record["task"], "reason": "It asks for a failure."}
        if wanted == "fail":
            await exchange.refuse(500, {"error": {"message": "it broke"}})
        elif wanted == "decline":
            await openai(exchange, ("No ", "edit ", "helps."))
        elif wanted == "misspell":
            await call_of(exchange, arguments | {"edits": {"inputs": GOOD}})
        else:
            await call_of(exchange, arguments | {"edits": {"input": GOOD if wanted == "mend" else POISON}})


@dataclass
class Bench:
    """A mesh with a critic, whose model is a server of the test's own."""

    mesh: Mesh
    connection: Connection
    agents: Agents
    model: Model

    async def give_up(self, critic_is_to: str) -> str:
        """A task that gives up; its id."""
        task = await self.agents.submit(POISON, metadata={"critic_is_to": critic_is_to})
        await self.agents.until_status(task, "dead_lettered")
        return task

    async def decide(self, task: str, decision: str, reason: str | None = None) -> None:
        """A person's decision, over HTTP."""
        body = {"kind": "approval", "call": "1-0", "decision": decision, **({"reason": reason} if reason else {})}
        async with PatientClient(base_url=self.mesh.ingress_url) as client:
            response = await client.post(f"/v1/tasks/{task}/inputs", json=body)
        assert response.status_code == 202, response.text

    async def until_left(self, task: str, reason: str) -> None:
        """Wait until the steward says that it leaves a task's dead letter to people."""

        def said() -> bool:
            lines = [line for line in self.mesh.logs() if line.get("event") == "critic.left"]
            return any((line["task"], line["reason"]) == (task, reason) for line in lines)

        await until(said)

    async def output(self, task: str) -> str:
        """The output of a task that must complete."""
        state = await self.agents.until_status(task, "completed")
        assert isinstance(state.terminal, events.TaskCompleted)
        return state.terminal.output

    async def types(self, task: str) -> list[str]:
        """The milestones of a journal."""
        stored = await read_stored(self.connection.requests)
        return [event.event["type"] for event in stored.journals[task] if event.event["type"] != "output.delta"]

    async def replays(self, task: str) -> list[dict[str, Any]]:
        """The replays of a task."""
        stored = await read_stored(self.connection.requests)
        return [event.event for event in stored.journals[task] if event.event["type"] == "task.replayed"]

    async def judge(self) -> None:
        """Nothing is left over, and nothing broke."""
        await until_no_work_is_left(self.connection)
        assert self.mesh.tracebacks() == []


def failed_turn(state: TaskState, gen: int) -> bool:
    return ("1", gen) in state.dead_letters


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("critic")
    model = Model()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(model_server(model))
        file = folder / "mesh.toml"
        file.write_text(
            f"""
            [providers.local]
            kind = "openai"
            base_url = "{server.base_url}"
            [pools.default]
            [pools.critics]
            provider = "local"
            model = "tiny"
            [critic]
            codes = ["{CODE}"]
            pool = "critics"
            model = "wise"
            proposals_max = {PROPOSALS_MAX}
            """
        )
        variables = {"MESH_CONFIG": str(file), "MESH_MAX_TRIES": "1"}
        mesh = await stack.enter_async_context(running_mesh(folder, *SERVICES, **variables))
        connection = await stack.enter_async_context(connect(mesh.settings, "test"))
        yield Bench(mesh, connection, Agents(connection), model)


async def test_a_proposal_that_a_person_approves_replays_the_task_with_its_edits(bench: Bench) -> None:
    task = await bench.give_up("mend")
    critic = critics_task(task, "1", 0)
    state = await bench.agents.until_asked(critic, "1-0")
    (asked,) = state.open_approvals
    assert (asked.tool, asked.arguments["task"], asked.arguments["edits"]) == ("propose_replay", task, {"input": GOOD})
    assert (await bench.agents.state(task)).status == "dead_lettered", "nothing is carried out before a person decides"
    async with PatientClient(base_url=bench.mesh.ingress_url) as client:
        record = (await client.get(f"/v1/tasks/{critic}")).json()
    assert (record["status"], record["metadata"]["critic_of"], record["pool"]) == ("waiting", task, "critics")
    assert record["approvals"][0]["arguments"]["reason"] == "It asks for a failure."

    await bench.decide(critic, "approved")
    assert await bench.output(task) == "t0 t1 "
    assert await bench.output(critic) == "So it is."
    (replayed,) = await bench.replays(task)
    assert replayed["edits"] == {"input": GOOD}
    assert replayed["steps"] == [{"step": "1", "gen": 0}]
    assert replayed["by"] == f"propose_replay:{critic}.1-0"
    assert replayed["reason"] == "It asks for a failure."
    result = (await bench.agents.state(critic)).call_results["1-0"]
    assert isinstance(result, events.ToolCompleted)
    assert result.result == {"task": task, "steps": [{"step": "1", "gen": 0}]}
    assert await bench.types(critic) == [
        "task.queued",
        "step.claimed",
        "turn.completed",
        "approval.requested",
        "approval.resolved",
        "step.claimed",
        "tool.completed",
        "step.claimed",
        "turn.completed",
        "task.completed",
    ]
    await bench.judge()


async def test_its_model_is_told_what_to_do_and_given_one_tool_and_the_record_as_data(bench: Bench) -> None:
    task = await bench.give_up("decline")
    assert await bench.output(critics_task(task, "1", 0)) == "No edit helps."
    body = next(body for body in bench.model.asked if task in body["messages"][-1]["content"])
    system, record = body["messages"]
    assert (body["model"], system["role"], system["content"]) == ("wise", "system", INSTRUCTIONS)
    shown = json.loads(record["content"])
    assert (record["role"], shown["task"], shown["request"]["input"]) == ("user", task, POISON)
    assert shown["errors"][-1]["code"] == CODE
    assert [tool["function"]["name"] for tool in body["tools"]] == ["propose_replay", "ask_user"]
    assert (await bench.agents.state(task)).status == "dead_lettered"
    await bench.judge()


async def test_a_proposal_that_is_denied_replays_nothing_and_the_critic_is_told(bench: Bench) -> None:
    task = await bench.give_up("mend")
    critic = critics_task(task, "1", 0)
    await bench.agents.until_asked(critic, "1-0")
    await bench.decide(critic, "denied", "we leave it")
    assert await bench.output(critic) == "So it is."
    assert "we leave it" in bench.model.asked[-1]["messages"][-1]["content"]
    assert await bench.replays(task) == []
    assert (await bench.agents.state(task)).status == "dead_lettered"
    await bench.judge()


async def test_a_proposal_that_can_not_be_is_refused_and_replays_nothing(bench: Bench) -> None:
    task = await bench.give_up("misspell")
    critic = critics_task(task, "1", 0)
    await bench.agents.until_asked(critic, "1-0")
    await bench.decide(critic, "approved")
    await bench.output(critic)
    result = (await bench.agents.state(critic)).call_results["1-0"]
    assert isinstance(result, events.ToolFailed)
    assert (result.error.code, "inputs" in result.error.message) == ("tool-arguments-invalid", True)
    assert await bench.replays(task) == []
    await bench.judge()


async def test_an_approval_that_comes_after_somebody_else_has_ended_the_task_does_no_harm(bench: Bench) -> None:
    task = await bench.give_up("mend")
    critic = critics_task(task, "1", 0)
    await bench.agents.until_asked(critic, "1-0")
    async with PatientClient(base_url=bench.mesh.ingress_url) as client:
        await client.post(f"/v1/tasks/{task}/cancel")
    await bench.agents.until_status(task, "cancelled")
    await bench.decide(critic, "approved")
    assert await bench.output(critic) == "So it is."
    result = (await bench.agents.state(critic)).call_results["1-0"]
    assert isinstance(result, events.ToolCompleted)
    assert isinstance(result.result, dict)
    assert result.result["steps"] == []
    assert "the task is cancelled" in result.result["note"]
    await bench.judge()


async def test_a_step_that_gives_up_again_gets_a_new_task_and_so_often_as_is_set(bench: Bench) -> None:
    task = await bench.give_up("fail again")
    for gen in range(PROPOSALS_MAX):
        critic = critics_task(task, "1", gen)
        await bench.agents.until_asked(critic, "1-0")
        await bench.decide(critic, "approved")
        await bench.output(critic)

        async def failed_again(gen: int = gen) -> bool:
            return failed_turn(await bench.agents.state(task), gen + 1)

        await until(failed_again)
    await bench.until_left(task, "proposals-spent")
    assert not (await bench.agents.state(critics_task(task, "1", PROPOSALS_MAX))).exists
    assert [replayed["steps"][0]["gen"] for replayed in await bench.replays(task)] == list(range(PROPOSALS_MAX))
    await bench.judge()


async def test_the_critics_own_dead_letters_are_left_to_people(bench: Bench) -> None:
    task = await bench.give_up("fail")
    critic = critics_task(task, "1", 0)
    await bench.agents.until_status(critic, "dead_lettered")
    await bench.until_left(critic, "critics-own")
    assert not (await bench.agents.state(critics_task(critic, "1", 0))).exists
    await bench.judge()


async def test_a_task_of_a_users_own_can_not_do_without_the_person(bench: Bench) -> None:
    task = await bench.give_up("decline")
    proposal = json.dumps({"task": task, "reason": "why", "edits": {"input": GOOD}})
    own = await bench.agents.submit(f"!call propose_replay {proposal}", tools=["propose_replay"], approval="never")
    await bench.agents.until_asked(own, "1-0")
    await bench.decide(own, "approved")
    assert await bench.output(task) == "t0 t1 "
    await bench.output(own)
    await bench.judge()


async def test_without_its_table_there_is_no_consumer_and_no_task(tmp_path: Path) -> None:
    async with (
        running_mesh(tmp_path, *SERVICES, MESH_MAX_TRIES="1") as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        agents = Agents(connection)
        task = await agents.submit(POISON)
        await agents.until_status(task, "dead_lettered")
        await until_no_work_is_left(connection)
        with pytest.raises(BrokerError, match="consumer not found"):
            await connection.requests.api("CONSUMER.INFO.DEAD_LETTERS.critic")
        stored = await read_stored(connection.requests)
        assert (set(stored.journals), stored.tasks_ever_stored) == ({task}, 1)
        assert [letter["tenant"] for letter in stored.dead_letters] == [TENANT]
        await agents.close()
