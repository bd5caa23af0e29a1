"""The operator's guide in deploy/nats: every command, as printed, with the real `nats` CLI against a running mesh."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from contracts import VERSION, subjects
from contracts.identifiers import task_id_for_key
from contracts.journal.events import TaskCancelled, TaskCompleted
from contracts.triggers.rules import TriggerRule, TriggerSource, task_id
from mesh.broker.connection import connect
from mesh.broker.direct_get import last_sequence
from mesh.broker.provisioning import compare, declared
from mesh.configuration.settings import Settings
from mesh.rules import trigger_bucket as bucket
from tests.support.agents import Agents
from tests.support.broker import Broker
from tests.support.http_client import PatientClient
from tests.support.processes import Mesh, running_mesh
from tests.support.terminal import Terminal
from tests.support.toolchains import REPOSITORY, nats_cli
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

DEPLOY = REPOSITORY / "deploy" / "nats"
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", (DEPLOY / "README.md").read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
DEFAULT = "default"
DEAD = task_id_for_key(DEFAULT, "dead")
RULES = (
    TriggerRule(
        name="reorder",
        tenant=DEFAULT,
        on=TriggerSource(signal="inventory.stock_level_zero"),
        task={"input": "{{payload.sku}} is sold out", "priority": "high"},
    ),
    TriggerRule(name="daily", tenant=DEFAULT, on=TriggerSource(schedule="@daily"), task={"input": "What is new?"}),
)

SHOWS = {
    "nats stream add --config deploy/nats/streams/TASKS.json": ["Information for Stream TASKS", "New Per Subject"],
    "nats consumer add TASKS --config deploy/nats/consumers/TASKS.default-normal.json": ["tasks.default.normal.*"],
    "nats micro ls": ["ingress", "inference_worker", "steward", VERSION],
    "nats stream report": ["EVENTS", "DEAD_LETTERS", "KV_tasks"],
    "nats consumer report TASKS": ["default-normal", "Ack Pending", "Unprocessed", "Redelivered"],
    "nats kv get lanes default.normal --raw": ['"depth":'],
    "nats kv ls tasks": [f"default.{DEAD}"],
    "nats kv get tasks default.TASK --raw": ['"status":"dead_lettered"', '"dead_letters":[{"step":"1","gen":0'],
    "nats stream view EVENTS --subject events.default.TASK.log": ["task.queued", "step.claimed", "task.dead_lettered"],
    "nats stream get EVENTS --last-for events.default.TASK.log": ["task.dead_lettered"],
    "nats consumer info TASKS default-normal": ["Outstanding Acks: 1", "Waiting Pulls"],
    "nats stream view TASKS --subject tasks.default.normal.default": ["!hang 600"],
    "nats stream view TIMERS --subject 'timers.at.>'": ["Reached apparent end of data"],
    "nats kv ls tools": ["No keys found"],
    "nats stream view SIGNALS --subject 'signals.default.>'": ["signals.default.before", "nobody takes this"],
    "nats consumer info SIGNALS steward": ["signals.>", "Outstanding Acks: 0", "Unprocessed Messages: 0"],
    "nats kv ls triggers": ["default.reorder"],
    "nats kv get triggers default.reorder --raw": ['"signal":"inventory.stock_level_zero"'],
    "nats stream view TIMERS --subject 'timers.at.cron.>'": ["timers.at.cron.default.daily", "@daily"],
    "nats consumer info TOOLS tool-add": ["tools.add", "Unprocessed Messages: 0"],
    "nats stream view DEAD_LETTERS --subject 'dead.default.*'": ["provider-overloaded", "malformed-message"],
    "nats stream view DEAD_LETTERS --subject dead.default.TASK": ["provider-overloaded", '"tries":1'],
    "nats stream get DEAD_LETTERS --last-for dead.default.TASK": ['"step":"1"', '"gen":0', '"journal_from":'],
    "nats stream view DEAD_LETTERS --subject 'dead.*.malformed'": ["malformed-message", "rubbish"],
}
"""Command → what it must show. TASK is a task whose only try has failed."""

FOLLOWS = {
    "nats sub live.events.default.TASK.log": (["task.queued", "turn.completed", "task.completed"], ["output.delta"]),
    "nats sub 'live.events.default.TASK.*'": (["task.queued", "output.delta", "task.completed"], []),
    "nats sub 'live.events.*.*.log'": (["task.queued", "turn.completed", "task.completed"], ["output.delta"]),
}
"""Command that goes on until Ctrl-C → what it must show of a task that is submitted meanwhile, and what not."""


@pytest.fixture(scope="module")
def program() -> Path:
    return nats_cli()


@asynccontextmanager
async def seen_mesh(folder: Path) -> AsyncIterator[Mesh]:
    """A mesh where one task is a dead letter, one is in hand for long, and one message was rubbish."""
    async with running_mesh(folder, "ingress", "inference_worker", "steward", MESH_MAX_TRIES="1") as running:
        await submit(running, "!fail overloaded 9", "dead")
        await submit(running, "!hang 600", "hanging")
        async with connect(running.settings, "test") as connection:
            await connection.requests.publish(subjects.tasks("default", "normal", "default"), b"rubbish")

            async def all_is_told() -> bool:
                letters = await connection.requests.api("STREAM.INFO.DEAD_LETTERS")
                lane = await connection.requests.api("STREAM.INFO.KV_lanes")
                tasks = await connection.requests.api("CONSUMER.INFO.TASKS.default-normal")
                return bool(
                    letters["state"]["messages"] == 2
                    and lane["state"]["messages"]
                    and tasks["num_ack_pending"] == 1
                    and tasks["num_pending"] == 0
                )

            await until(all_is_told)
            for rule in RULES:
                await bucket.add(connection.requests, rule, replace=False)
            await connection.requests.publish(subjects.signal(DEFAULT, "before"), b'"nobody takes this"')

            async def the_signal_is_settled() -> bool:
                signals = await connection.requests.api("CONSUMER.INFO.SIGNALS.steward")
                return bool(signals["num_pending"] == 0 and signals["num_ack_pending"] == 0)

            await until(the_signal_is_settled)
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """For tests that each have a task of their own in it."""
    async with seen_mesh(tmp_path_factory.mktemp("guide")) as running:
        yield running


async def submit(mesh: Mesh, script: str, key: str) -> str:
    """Post a task under a key, which says its id beforehand."""
    async with PatientClient() as client:
        answer = await client.post(
            f"{mesh.ingress_url}/v1/tasks", json={"input": script}, headers={"Idempotency-Key": key}
        )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def terminal(program: Path, broker: Broker, command: str, task: str, home: Path) -> Terminal:
    """A command of the guide on a terminal, with a task's id in the place of TASK."""
    words = shlex.split(re.sub(r"\bTASK\b", task, command))
    return Terminal([str(program), *words[1:]], {**os.environ, **broker.cli_variables(home)}, REPOSITORY)


def changes(*kinds: str) -> list[str]:
    """The guide's commands that publish commands of these kinds, in its order."""
    return [each for each in COMMANDS if each.startswith(tuple(f"nats pub control.{kind}." for kind in kinds))]


DECIDES = changes("approval", "input")
REPLAYS = changes("replay")
GIVES_UP = changes("cancel")


async def test_every_command_of_the_guide_is_tried() -> None:
    signals = [command for command in COMMANDS if command.startswith("nats pub signals.")]
    assert (len(DECIDES), len(REPLAYS), len(GIVES_UP), len(signals)) == (2, 2, 1, 1)
    assert set(COMMANDS) == set(SHOWS) | set(FOLLOWS) | {*DECIDES, *REPLAYS, *GIVES_UP, *signals}


async def carry_out(program: Path, mesh: Mesh, command: str, task: str, home: Path) -> None:
    """Run a command of the guide that publishes something."""
    shown = terminal(program, mesh.broker, command, task, home)
    assert await shown.run() == 0, f"{command}: {shown.output}"


async def test_a_dead_letter_is_replayed_as_it_was_and_then_repaired_with_it(
    program: Path, mesh: Mesh, tmp_path: Path
) -> None:
    async with connect(mesh.settings, "test") as connection:
        agents = Agents(connection)
        task = await submit(mesh, "!fail overloaded 9", "repaired")
        assert (await agents.until_status(task, "dead_lettered")).open_dead_letters[0].gen == 0
        as_it_was, repaired = REPLAYS
        await carry_out(program, mesh, as_it_was, task, tmp_path)

        async def gave_up_again() -> bool:
            return [letter.gen for letter in (await agents.state(task)).open_dead_letters] == [1]

        await until(gave_up_again)
        await carry_out(program, mesh, repaired, task, tmp_path)
        state = await agents.until_status(task, "completed")
        assert isinstance(state.terminal, TaskCompleted)
        assert "You said: hello" in state.terminal.output
        assert state.request is not None
        assert state.request.instructions == "Be brief."


async def test_a_task_is_given_up_with_it(program: Path, mesh: Mesh, tmp_path: Path) -> None:
    task = await submit(mesh, "!fail overloaded 9", "given up")
    async with connect(mesh.settings, "test") as connection:
        agents = Agents(connection)
        await agents.until_status(task, "dead_lettered")
        await carry_out(program, mesh, GIVES_UP[0], task, tmp_path)
        state = await agents.until_status(task, "cancelled")
    assert isinstance(state.terminal, TaskCancelled)
    assert (state.terminal.by, state.terminal.reason) == ("ops", "given up")


async def test_a_person_decides_and_answers_with_it(program: Path, mesh: Mesh, tmp_path: Path) -> None:
    await mesh.start("tool_runner")
    async with connect(mesh.settings, "test") as connection:
        agents = Agents(connection)
        task = await agents.submit('!call add {"a": 1, "b": 2}\n!ask Which?', tools=["add"], approval="always")
        await agents.until_asked(task, "1-0", "1-1")
        for command in DECIDES:
            await carry_out(program, mesh, command, task, tmp_path)
        state = await agents.until_status(task, "completed")
        assert isinstance(state.terminal, TaskCompleted)
        assert "1-0 = 3; 1-1 = the third" in state.terminal.output


async def test_a_signal_starts_a_task(program: Path, mesh: Mesh, tmp_path: Path) -> None:
    [command] = [command for command in COMMANDS if command.startswith("nats pub signals.")]
    shown = terminal(program, mesh.broker, command, DEAD, tmp_path)
    assert await shown.run() == 0, shown.output
    async with connect(mesh.settings, "test") as connection:
        sequence = await last_sequence(connection.requests, "SIGNALS")
        state = await Agents(connection).until_status(task_id(RULES[0], sequence), "completed")
    assert state.queued is not None
    assert state.queued.request.input == "widget-7 is sold out"


async def test_commands_show_what_the_guide_says(program: Path, tmp_path: Path) -> None:
    async with seen_mesh(tmp_path) as mesh:
        for command, expected in SHOWS.items():
            shown = terminal(program, mesh.broker, command, DEAD, tmp_path)
            status = await shown.run()
            assert status == 0, f"{command}: {shown.output}"
            for text in expected:
                assert text in shown.output, f"{command} does not show {text}: {shown.output}"


@pytest.mark.parametrize("command", FOLLOWS)
async def test_a_task_is_followed_live(program: Path, mesh: Mesh, tmp_path: Path, command: str) -> None:
    expected, unexpected = FOLLOWS[command]
    key = f"live {command}"
    task = task_id_for_key(DEFAULT, key)
    follower = terminal(program, mesh.broker, command, task, tmp_path)

    def all_shown(output: str) -> bool:
        return all(text in output for text in expected)

    following = asyncio.create_task(follower.run(all_shown))
    async with connect(mesh.settings, "test") as connection:

        async def it_listens() -> bool:
            # It says so before its subscription is at the broker.
            await connection.client.publish(subjects.live(DEFAULT, task).replace("*", "log"), b"are you there?")
            return "are you there?" in follower.output

        await until(it_listens)
    assert await submit(mesh, "!say 5", key) == task
    await following
    assert not [text for text in unexpected if text in follower.output]


async def test_the_files_create_what_is_declared(program: Path, tmp_path: Path) -> None:
    """A team without Python has the same streams, buckets and consumers."""
    broker = Broker(tmp_path / "broker")
    await broker.start()
    try:
        settings = replace(Settings(), nats_url=broker.url)
        commands = [f"nats stream add --config {path}" for path in sorted(DEPLOY.glob("streams/*.json"))]
        for path in sorted(DEPLOY.glob("consumers/*.json")):
            commands.append(f"nats consumer add {path.name.partition('.')[0]} --config {path}")
        for command in commands:
            shown = terminal(program, broker, command, DEAD, tmp_path)
            assert await shown.run() == 0, f"{command}: {shown.output}"
        async with connect(settings, "test") as connection:
            assert await compare(connection.requests, declared(settings)) == []
    finally:
        await broker.stop()
