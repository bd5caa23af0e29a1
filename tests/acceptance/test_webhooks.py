"""Webhooks over real processes: an agent's run tells of its milestones, whatever happens to the steward."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.broker.connection import Connection, connect
from tests.support import children
from tests.support.agents import Agents
from tests.support.processes import Mesh, running_mesh
from tests.support.tasks import begin_journal, end_task, turn_work
from tests.support.waiting import until
from tests.support.webhook_receiver import SECRET, WebhookReceiver, webhook_receiver

pytestmark = pytest.mark.acceptance

AGENTS = ("ingress", "inference_worker", "tool_runner", "steward")


def configuration(folder: Path, receiver: WebhookReceiver, more: str = "allow_private = true") -> str:
    """A file with one webhook."""
    file = folder / "mesh.toml"
    file.write_text(
        f'[webhooks.ops]\nurl = "{receiver.url}"\nsecret_env = "HOOK_SECRET"\n'
        f'on = ["approval", "question", "ended", "dead_letter"]\n{more}\n'
    )
    return str(file)


@dataclass
class Bench:
    """A steward, its webhook's endpoint, and a connection of the test's own."""

    mesh: Mesh
    connection: Connection
    receiver: WebhookReceiver

    async def ended_task(self) -> str:
        """A task that has just ended."""
        journal = await begin_journal(self.connection.requests, turn_work())
        await end_task(journal)
        return journal.state.task

    async def until_none_is_left(self) -> None:
        """Wait until each milestone has its answer."""

        async def none() -> bool:
            info = await self.connection.requests.api("CONSUMER.INFO.EVENTS.webhook-ops")
            return bool(info["num_pending"] == 0 and info["num_ack_pending"] == 0)

        await until(none)


@pytest.fixture
async def receiver() -> AsyncIterator[WebhookReceiver]:
    async with webhook_receiver() as running:
        yield running


@pytest.fixture
async def bench(tmp_path: Path, receiver: WebhookReceiver) -> AsyncIterator[Bench]:
    variables = {"MESH_CONFIG": configuration(tmp_path, receiver), "MESH_ACK_WAIT_SECONDS": "1", "HOOK_SECRET": SECRET}
    async with (
        running_mesh(tmp_path, "steward", **variables) as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        yield Bench(mesh, connection, receiver)


async def test_an_agents_run_tells_of_approvals_questions_dead_letters_and_its_end(
    tmp_path: Path, receiver: WebhookReceiver
) -> None:
    variables = {"MESH_CONFIG": configuration(tmp_path, receiver), "MESH_MAX_TRIES": "1", "HOOK_SECRET": SECRET}
    async with running_mesh(tmp_path, *AGENTS, **variables) as mesh, connect(mesh.settings, "test") as connection:
        agents = Agents(connection)
        script = '!call add {"a": 1, "b": 2}\n!then\n!ask Which one?\n!then\ndone'
        task = await agents.submit(script, tools=["add", "ask_user"], approval="always")
        broken = await agents.submit("!fail server_error\nnever")
        await agents.until_asked(task, "1-0")
        await until(lambda: bool(receiver.ids("approval.requested")))
        await agents.decide(task, "1-0", "approved")
        await agents.until_asked(task, "2-0")
        await until(lambda: bool(receiver.ids("input.requested")))
        await agents.say(task, "the third")
        await agents.until_status(task, "completed")
        await agents.until_status(broken, "dead_lettered")
        await until(lambda: bool(receiver.ids("task.completed")) and bool(receiver.ids("task.dead_lettered")))
        await Bench(mesh, connection, receiver).until_none_is_left()
        await agents.close()
        assert mesh.tracebacks() == []
    told = {each.type: each.body["data"] for each in receiver.received}
    assert sorted(each.type for each in receiver.received) == [
        "approval.requested",
        "input.requested",
        "task.completed",
        "task.dead_lettered",
    ], "each once"
    assert all(each.valid for each in receiver.received)
    assert (told["approval.requested"]["task"], told["task.dead_lettered"]["task"]) == (task, broken)
    assert told["approval.requested"]["event"]["arguments"] == {"a": 1, "b": 2}
    assert told["input.requested"]["event"]["question"] == "Which one?"
    assert told["task.completed"]["event"]["output"] == "done\n"


async def test_a_steward_that_dies_before_its_ack_has_the_same_notification_sent_again(bench: Bench) -> None:
    bench.receiver.held = True
    task = await bench.ended_task()
    await until(lambda: len(bench.receiver.received) == 1)
    await bench.mesh.processes[0].kill()
    bench.receiver.held = False
    await bench.mesh.start("steward")
    await until(lambda: len(bench.receiver.received) == 2)
    await bench.until_none_is_left()
    first, second = bench.receiver.received
    assert first.id == second.id
    assert first.body == second.body
    assert first.body["data"]["task"] == task
    assert second.valid


async def test_errors_of_the_endpoint_pass(bench: Bench) -> None:
    bench.receiver.answers = ["500 Oops"]
    await bench.ended_task()
    await until(lambda: len(bench.receiver.received) == 2)
    await bench.until_none_is_left()
    assert len({each.id for each in bench.receiver.received}) == 1
    [failed] = [line for line in bench.mesh.logs() if line.get("event") == "webhook.failed"]
    assert (failed["code"], failed["tries"], failed["webhook"]) == ("webhook-failed", 1, "ops")
    assert "key=v" not in bench.mesh.processes[0].log.read_text(), "a URL may hold a secret"
    assert SECRET not in bench.mesh.processes[0].log.read_text()


async def test_an_endpoint_that_hangs_stops_nothing_else_of_the_steward(bench: Bench) -> None:
    """Nor its end: what it holds comes back to the next one."""
    bench.receiver.held = True
    for _ in range(40):
        await bench.ended_task()
    await until(lambda: bench.receiver.open_now > 1)
    agents = Agents(bench.connection)
    journal = await begin_journal(bench.connection.requests, turn_work())
    await agents.say(journal.state.task, "are you there?")

    async def carried_out() -> bool:
        return bool((await agents.state(journal.state.task)).inputs)

    await until(carried_out)
    assert await bench.mesh.processes[0].stop() == 0
    assert bench.mesh.tracebacks() == []


async def test_a_private_address_is_refused_at_the_start(tmp_path: Path, receiver: WebhookReceiver) -> None:
    line = await refusal(tmp_path, {"MESH_CONFIG": configuration(tmp_path, receiver, ""), "HOOK_SECRET": SECRET})
    assert line.startswith(f"steward: {tmp_path / 'mesh.toml'}: webhooks.ops.url: must be https; ")
    file = tmp_path / "mesh.toml"
    file.write_text(file.read_text().replace("http:", "https:"))
    line = await refusal(tmp_path, {"MESH_CONFIG": str(file), "HOOK_SECRET": SECRET})
    assert "127.0.0.1 is not a public address" in line


async def test_a_missing_secret_stops_the_steward_with_one_line(bench: Bench, tmp_path: Path) -> None:
    variables = {
        **bench.mesh.environment,
        "MESH_NATS_URL": bench.mesh.broker.url_of("steward"),
        "HOOK_SECRET": "",
    }
    line = await refusal(tmp_path, variables)
    assert line == (f"steward: {tmp_path / 'mesh.toml'}: webhooks.ops.secret_env: the variable HOOK_SECRET is not set")


async def refusal(folder: Path, variables: dict[str, str]) -> str:
    """The one line with which a steward refuses to start."""
    variables = {**os.environ, "MESH_HOME": str(folder / "home"), "MESH_LOG_LEVEL": "error", **variables}
    refused = await children.run([sys.executable, "-m", "steward"], variables, stderr=children.STDOUT)
    assert refused.returncode == 2
    [line] = refused.stdout.splitlines()
    return line
