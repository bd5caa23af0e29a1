"""Who did it, and who may approve, over real processes and with API keys: journals, the audit log, and the steward."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from contracts import headers, subjects
from contracts.access import Key, Scope
from contracts.actors import BY_CRITIC
from contracts.codec import encode
from contracts.journal import events
from contracts.messages.control import ApprovalCommand, approval_message_id
from contracts.streams import DEAD_LETTERS
from mesh.broker.connection import Connection, connect
from tests.support.agents import Agents
from tests.support.commands import meshctl
from tests.support.http_client import PatientClient
from tests.support.keys import bearer, write_key
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

SERVICES = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
TOML = """
[auth]
mode = "keys"
[pools.default]
[approvals]
four_eyes = true
tools = ["add", "propose_replay"]
[tools.calculator]
approve_scope = "operate"
"""
ADD = '!call add {"a": 1, "b": 2}\n!then\ndone'
CALCULATE = '!call calculator {"expression": "1"}\n!then\ndone'
SPAWN = '!call spawn_task {"input": "!call add {\\"a\\": 3, \\"b\\": 4}", "tools": ["add"]}\n!then\ndone'


class Caller:
    """Somebody with a key of their own."""

    def __init__(self, client: httpx.AsyncClient, key: Key) -> None:
        self._client = client
        self.name = f"key:{key.id}"
        self.headers = bearer(key)

    async def submit(self, script: str, *tools: str) -> str:
        body = {"input": script, "tools": list(tools), "approval": "always"}
        answer = await self._client.post("/v1/tasks", json=body, headers=self.headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def decides(self, task: str, decision: str, call: str = "1-0") -> tuple[int, str | None]:
        body = {"kind": "approval", "call": call, "decision": decision}
        answer = await self._client.post(f"/v1/tasks/{task}/inputs", json=body, headers=self.headers)
        return answer.status_code, answer.json().get("code")

    async def record(self, task: str) -> dict[str, Any]:
        return dict((await self._client.get(f"/v1/tasks/{task}", headers=self.headers)).json())


@dataclass
class Bench:
    """A mesh with two callers who may submit and decide, and one who operates."""

    mesh: Mesh
    connection: Connection
    agents: Agents
    alice: Caller
    bob: Caller
    client: httpx.AsyncClient

    async def caller(self, *scopes: Scope, tenant: str = "default") -> Caller:
        return Caller(self.client, await write_key(self.connection.requests, tenant, *scopes))

    async def ends_with_approval_by(self, task: str, by: str, call: str = "1-0") -> None:
        state = await self.agents.until_status(task, "completed")
        assert (state.resolutions[call].decision, state.resolutions[call].by) == ("approved", by)

    def audited(self, task: str) -> list[tuple[object, ...]]:
        """What the audit log has of a task: what, by whom, from where, and what came of it."""
        return [
            (line["what"], line["by"], line["source"], line["result"])
            for line in self.mesh.logs_of("audit")
            if line["task"] == task
        ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("four-eyes")
    file = folder / "mesh.toml"
    file.write_text(TOML)
    async with (
        running_mesh(folder, *SERVICES, MESH_CONFIG=str(file), MESH_MAX_TRIES="1") as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        scopes: tuple[Scope, ...] = ("submit", "read", "answer")
        alice, bob = [Caller(client, await write_key(connection.requests, "default", *scopes)) for _ in range(2)]
        yield Bench(mesh, connection, Agents(connection), alice, bob, client)
        assert mesh.tracebacks() == []


async def test_the_submitter_can_deny_and_another_approves(bench: Bench) -> None:
    task = await bench.alice.submit(ADD, "add")
    await bench.agents.until_asked(task, "1-0")
    assert await bench.alice.decides(task, "approved") == (403, "four-eyes")
    assert await bench.bob.decides(task, "approved") == (202, None)
    await bench.ends_with_approval_by(task, bench.bob.name)
    assert (await bench.alice.record(task))["by"] == bench.alice.name
    assert bench.audited(task) == [
        ("approve", bench.alice.name, "127.0.0.1", "four-eyes"),
        ("approve", bench.bob.name, "127.0.0.1", "accepted"),
    ]
    denied = await bench.alice.submit(ADD, "add")
    await bench.agents.until_asked(denied, "1-0")
    assert await bench.alice.decides(denied, "denied") == (202, None)
    state = await bench.agents.until_status(denied, "completed")
    assert state.resolutions["1-0"].by == bench.alice.name
    assert bench.audited(denied) == [("deny", bench.alice.name, "127.0.0.1", "accepted")]


async def test_a_tool_can_take_a_scope_and_no_other_person(bench: Bench) -> None:
    task = await bench.alice.submit(CALCULATE, "calculator")
    await bench.agents.until_asked(task, "1-0")
    assert await bench.bob.decides(task, "approved") == (403, "scope-missing")
    operator = await bench.caller("answer", "operate")
    assert await operator.decides(task, "approved") == (202, None)
    await bench.ends_with_approval_by(task, operator.name)


async def test_an_approval_past_every_ingress_does_not_pass_and_takes_nobodys_place(bench: Bench) -> None:
    """The submitter writes it into CONTROL. The other's, which has the same message id, is carried out all the same."""
    task = await bench.alice.submit(ADD, "add")
    await bench.agents.until_asked(task, "1-0")
    command = ApprovalCommand(task=task, tenant="default", by=bench.alice.name, call="1-0", decision="approved")
    message_headers = {headers.MESSAGE_ID: approval_message_id(task, "1-0", "approved")}
    await bench.connection.requests.publish(subjects.control("approval", "default"), encode(command), message_headers)
    await until(lambda: ("approve", bench.alice.name, "broker", "four-eyes") in bench.audited(task))
    info = await bench.connection.requests.api(f"STREAM.INFO.{DEAD_LETTERS.name}")
    assert info["state"]["messages"] >= 1
    assert (await bench.agents.state(task)).status == "waiting"
    assert await bench.bob.decides(task, "approved") == (202, None)
    await bench.ends_with_approval_by(task, bench.bob.name)


@pytest.mark.parametrize("by", [None, "http"])
async def test_a_task_that_nobody_is_known_to_have_submitted_can_be_denied_alone(bench: Bench, by: str | None) -> None:
    task = await bench.agents.submit(ADD, by=by, tools=["add"], approval="always")
    await bench.agents.until_asked(task, "1-0")
    assert await bench.bob.decides(task, "approved") == (403, "four-eyes")
    assert await bench.bob.decides(task, "denied") == (202, None)
    await bench.agents.until_status(task, "completed")


async def test_a_sub_task_is_its_parents_submitters(bench: Bench) -> None:
    task = await bench.alice.submit(SPAWN, "spawn_task", "add")
    await bench.agents.until_asked(task, "1-0")
    assert await bench.alice.decides(task, "approved") == (202, None), "spawn_task is none of the tools"
    child = ""

    async def has_a_child() -> bool:
        nonlocal child
        started = (await bench.agents.state(task)).children.get("1-0")
        child = started.child if started is not None else ""
        return bool(child)

    await until(has_a_child)
    state = await bench.agents.until_asked(child, "1-0")
    assert state.queued is not None
    assert state.queued.by == bench.alice.name
    assert await bench.alice.decides(child, "approved") == (403, "four-eyes")
    assert await bench.bob.decides(child, "approved") == (202, None)
    await bench.agents.until_status(task, "completed")


async def test_a_proposed_replay_is_approved_by_neither_of_the_two_whose_tasks_they_are(bench: Bench) -> None:
    """Of an agent as of the critic, whose own tasks bear no person's name."""
    poisoned = await bench.alice.submit("!fail server_error 1000")
    await bench.agents.until_status(poisoned, "dead_lettered")
    arguments = json.dumps({"task": poisoned, "reason": "it helps", "edits": {"input": "!say 2"}})
    script = f"!call propose_replay {arguments}\n!then\ndone"
    carol = await bench.caller("submit", "read", "answer")
    of_bob, of_critic = [
        await bench.bob.submit(script, "propose_replay"),
        await bench.agents.submit(script, by=BY_CRITIC, tools=["propose_replay"]),
    ]
    for proposal, refused in ((of_bob, (bench.alice, bench.bob)), (of_critic, (bench.alice,))):
        await bench.agents.until_asked(proposal, "1-0")
        for caller in refused:
            assert await caller.decides(proposal, "approved") == (403, "four-eyes")
    # The steward looks for itself: alice is nobody's submitter in the journal of the proposal.
    command = ApprovalCommand(task=of_critic, tenant="default", by=bench.alice.name, call="1-0", decision="approved")
    await bench.connection.requests.publish(subjects.control("approval", "default"), encode(command))
    await until(lambda: ("approve", bench.alice.name, "broker", "four-eyes") in bench.audited(of_critic))
    assert await carol.decides(of_bob, "approved") == (202, None)
    await bench.ends_with_approval_by(of_bob, carol.name)
    state = await bench.agents.until_status(poisoned, "completed")
    assert isinstance(state.terminal, events.TaskCompleted)
    assert state.terminal.output == "t0 t1 "


async def test_each_act_has_one_line_and_each_refusal_too(bench: Bench) -> None:
    """A cancel, a message, a link; who has no scope, who shows nothing, who shows a link that is none."""
    task = await bench.alice.submit("!ask Well?")
    await bench.agents.until_status(task, "waiting")
    path = f"/v1/tasks/{task}"
    nobody = await bench.caller("read")
    message = {"kind": "message", "text": "yes"}
    asked: list[tuple[str, str, dict[str, str], Any, int]] = [
        ("POST", "/links", bench.alice.headers, {}, 200),
        ("POST", "/cancel", nobody.headers, None, 403),
        ("POST", "/inputs", nobody.headers, message, 403),
        ("POST", "/cancel", {}, None, 401),
        ("GET", "", {}, None, 401),
        ("GET", "/events?link=tm_made_up", {}, None, 401),
        ("GET", "", bench.alice.headers, None, 200),
        ("POST", "/inputs", bench.alice.headers, message, 202),
        ("POST", "/cancel", bench.alice.headers, None, 202),
    ]
    for method, end, shown, body, status in asked:
        sent = {"json": body} if body is not None else {}
        answer = await bench.client.request(method, path + end, headers=shown, **sent)
        assert answer.status_code == status, (method, end, answer.text)
    await bench.agents.until_status(task, "cancelled")
    lines = [(what, by, result) for what, by, _, result in bench.audited(task)]
    alice = bench.alice.name
    assert lines == [
        ("link", alice, "accepted"),
        ("cancel", nobody.name, "scope-missing"),
        ("input", nobody.name, "scope-missing"),
        ("cancel", None, "unauthorized"),
        ("read", None, "unauthorized"),
        ("follow", None, "unauthorized"),
        ("input", alice, "accepted"),
        ("cancel", alice, "accepted"),
    ]
    state = await bench.agents.state(task)
    assert isinstance(state.terminal, events.TaskCancelled)
    assert state.terminal.by == alice
    fields = {"what", "task", "tenant", "by", "source", "result"}
    assert all(fields <= line.keys() for line in bench.mesh.logs_of("audit"))
    assert "tm_made_up" not in "".join(process.log.read_text() for process in bench.mesh.processes)


async def test_an_operators_act_at_the_broker_is_written_down_by_a_steward(bench: Bench) -> None:
    (said,) = await meshctl(bench.mesh, "keys", "rotate-links")
    assert said["event"] == "link_key.rotated"
    acts = [line for line in bench.mesh.logs_of("audit") if line["what"] == "rotate-links"]
    assert len(acts) == 1
    assert str(acts[0]["by"]).startswith("operator:")
    assert acts[0]["source"] == "broker"
