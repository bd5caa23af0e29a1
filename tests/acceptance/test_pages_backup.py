"""docs/backup.md: its commands, with the real `nats` CLI, between two brokers of the test's own.

The mesh runs while it is copied, with every kind of work in flight. What the copy does not have is made by hand here:
what happens between the copies of two streams, in the page's order.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import subjects_of
from mesh.broker.mesh_identity import mesh_id
from tests.support import children
from tests.support.agents import Agents
from tests.support.broker import Broker
from tests.support.checker import Recorded, check, read_stored
from tests.support.commands import meshctl
from tests.support.guarded import STRANGERS
from tests.support.http_client import PatientClient
from tests.support.pages import read_page
from tests.support.processes import Mesh, running_mesh
from tests.support.toolchains import nats_cli
from tests.support.waiting import until, until_no_work_is_left

pytestmark = [STRANGERS, pytest.mark.acceptance, pytest.mark.slow]

PAGE = read_page("docs/backup.md")
WALKS = (PAGE,)
QUICK = {"MESH_ACK_WAIT_SECONDS": "1", "MESH_RECONCILE_AFTER_SECONDS": "1"}
SOON = ("--reconcile-after-seconds", "0.1")
SERVICES = ("ingress", "inference_worker", "tool_runner", "steward")
CALLS = '!call add {"a": 1, "b": 2}\n!then\ndone'
CHILD = '!call spawn_task {"input": "!rate 3\\n!say 20"}\n!then\ndone'


def commands(section: str) -> list[str]:
    """The commands of a section of the page."""
    return [command.text for command in PAGE.section(section).commands]


async def typed(broker: Broker, mesh: Mesh, folder: Path, command: str) -> str:
    """Run a command of the page in a shell, with the `nats` CLI and meshctl on the PATH; what it prints."""
    variables = {
        **mesh.environment,
        **QUICK,
        "HOME": str(folder),
        "NATS_URL": broker.url,
        "MESH_NATS_URL": broker.url,
        "PATH": f"{nats_cli().parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    text = command.replace("/backup", str(folder / "backup"))
    ended = await children.run(["bash", "-euc", text], variables, seconds=300)
    assert ended.returncode == 0, (text, ended.stdout[-3000:], ended.stderr[-3000:])
    return ended.stdout


async def every_kind(agents: Agents) -> dict[str, str]:
    """One task of each kind that goes on by something that is stored, by what that is; each as far as that."""
    tasks = {
        "end": await agents.submit("!say 3"),
        "approval": await agents.submit(CALLS, tools=["add"], approval="always"),
        "later try": await agents.submit("!fail rate_limit 1 5\n!say 1"),
        "sub-task": await agents.submit(CHILD, tools=["spawn_task"]),
        "deadline": await agents.submit(CALLS, tools=["add"], approval="always", deadline_seconds=10),
        "stream": await agents.submit("!rate 3\n!say 20"),
        "queue": await agents.submit("!say 1", pool="unserved"),
    }
    await agents.until_status(tasks["end"], "completed")
    for kind in ("approval", "deadline"):
        await agents.until_asked(tasks[kind], "1-0")
    await agents.until_status(tasks["sub-task"], "waiting")
    await agents.until_status(tasks["stream"], "running")
    return tasks


async def all_end(agents: Agents, tasks: dict[str, str]) -> None:
    """Decide what waits for a person, and wait for every end."""
    await agents.decide(tasks["approval"], "1-0", "approved")
    for kind, task in tasks.items():
        await agents.until_status(task, "expired" if kind == "deadline" else "completed", 90)


@asynccontextmanager
async def old_mesh(folder: Path) -> AsyncIterator[Mesh]:
    """A mesh with a pool that somebody serves and one that nobody does, without a worker yet."""
    (folder / "both.toml").write_text("[pools.default]\n[pools.unserved]\n")
    (folder / "default.toml").write_text("[pools.default]\n")
    config = str(folder / "both.toml")
    async with running_mesh(folder, "ingress", "tool_runner", "steward", **QUICK, MESH_CONFIG=config) as mesh:
        yield mesh


@asynccontextmanager
async def new_mesh(folder: Path, mesh: Mesh, lines: list[str]) -> AsyncIterator[Mesh]:
    """Another broker, on which these commands were typed, and the mesh around it, of no process yet."""
    broker = Broker(folder / "another")
    restored = Mesh(folder / "another", broker, {**QUICK, "MESH_CONFIG": str(folder / "both.toml")})
    await broker.start()
    try:
        for line in lines:
            await typed(broker, mesh, folder, line)
        yield restored
        assert restored.tracebacks() == []
    finally:
        for process in restored.processes:
            await process.stop()
        await broker.stop()


async def judged(connection: Connection, tasks: Iterable[str], *, uncopied: int = 0) -> None:
    """Nothing is left to do, and nothing that the checker finds. TASKS was copied before so many were accepted."""
    await until_no_work_is_left(connection)
    accepted = len(set(tasks))
    fewer = (
        [f"I10: {accepted} tasks were accepted, TASKS has stored {accepted - uncopied} messages"] if uncopied else []
    )
    found: list[str] = []

    async def is_well() -> bool:
        found[:] = check(Recorded(accepted=set(tasks)), await read_stored(connection.requests))
        return found == fewer

    # A record is written behind the end that it tells of.
    with suppress(TimeoutError):
        await until(is_well)
    assert found == fewer


async def test_a_mesh_that_is_copied_while_it_runs_goes_on_at_another_broker(tmp_path: Path) -> None:
    [backup] = commands("Stream by stream")
    async with old_mesh(tmp_path) as mesh, connect(mesh.settings, "test") as connection:
        await mesh.start("inference_worker", MESH_CONFIG=str(tmp_path / "default.toml"))
        agents = Agents(connection)
        tasks = await every_kind(agents)
        await typed(mesh.broker, mesh, tmp_path, backup)
        mesh_before = await mesh_id(connection.requests)
        await agents.close()
        for process in mesh.processes:
            await process.kill()
        async with new_mesh(tmp_path, mesh, commands("Restore")) as restored:
            for service in SERVICES:
                await restored.start(service)
            async with connect(restored.settings, "test") as there:
                assert await mesh_id(there.requests) == mesh_before is not None
                agents = Agents(there)
                await all_end(agents, tasks)
                await judged(there, tasks.values())
                await agents.close()


async def test_what_happens_between_the_copies_of_two_streams_is_found_by_repair(tmp_path: Path) -> None:
    [backup] = commands("Stream by stream")
    before, _, behind = backup.replace("\\\n", " ").partition(" EVENTS ")
    queues, events = f"{before}; {behind.partition('; ')[2]}", f"for stream in EVENTS {behind}"
    async with old_mesh(tmp_path) as mesh, connect(mesh.settings, "test") as connection:
        agents = Agents(connection)
        old = await agents.submit("!say 2")
        waiting = await agents.submit(CALLS, tools=["add"])
        await typed(mesh.broker, mesh, tmp_path, queues)
        # The copy has two messages in TASKS, and knows nothing of all this.
        await mesh.start("inference_worker", MESH_CONFIG=str(tmp_path / "default.toml"))
        ended = await agents.submit("!say 4")
        asked = await agents.submit(CALLS, tools=["add"], approval="always")
        running = await agents.submit("!rate 3\n!say 20")
        for task in (old, waiting, ended):
            await agents.until_status(task, "completed")
        await agents.until_asked(asked, "1-0")
        await agents.until_status(running, "running")
        await typed(mesh.broker, mesh, tmp_path, events)
        await agents.close()
        for process in mesh.processes:
            await process.kill()
        restore, apply, repair, rebuild = commands("Restore")
        async with new_mesh(tmp_path, mesh, [restore, apply]) as restored, connect(restored.settings, "test") as there:
            prefix = "$KV.tasks.default."
            records = await subjects_of(there.requests, "KV_tasks", f"{prefix}>")
            assert {ended, asked, running}.isdisjoint(name.removeprefix(prefix) for name in records)

            async def is_quiet() -> bool:
                *_, told = await meshctl(restored, "repair", "--dry-run", *SOON)
                return bool(told["found"] >= 3)

            await until(is_quiet)
            assert repair == "meshctl repair"
            found = await meshctl(restored, "repair", *SOON)
            lost = {each["task"]: {item["kind"] for item in each["lost"]} for each in found[:-1]}
            assert "record" in lost[ended]
            assert {"record", "timer"} <= lost[asked]
            assert {"record", "work"} <= lost[running]
            *_, told = await meshctl(restored, "repair", "--dry-run", *SOON)
            assert told["found"] == 0
            # The copy's counters may be older than its journals.
            assert rebuild == "meshctl usage --rebuild"
            *_, told = await meshctl(restored, "usage", "--rebuild")
            assert told["turns"] >= 3
            await restored.start("ingress")
            async with PatientClient() as client:
                for task in (old, waiting, ended):
                    read = (await client.get(f"{restored.ingress_url}/v1/tasks/{task}")).json()
                    assert read["status"] == "completed"
            for service in SERVICES[1:]:
                await restored.start(service)
            agents = Agents(there)
            await agents.decide(asked, "1-0", "approved")
            for task in (asked, running):
                await agents.until_status(task, "completed", 90)
            await judged(there, [old, waiting, ended, asked, running], uncopied=3)
            *_, told = await meshctl(restored, "usage", "--verify")
            assert told["differences"] == 0
            await agents.close()


async def test_an_account_is_copied_and_restored_with_one_command_while_the_services_are_stopped(
    tmp_path: Path,
) -> None:
    backup, *restore = commands("With one command")
    async with old_mesh(tmp_path) as mesh, connect(mesh.settings, "test") as connection:
        await mesh.start("inference_worker", MESH_CONFIG=str(tmp_path / "default.toml"))
        agents = Agents(connection)
        tasks = await every_kind(agents)
        await agents.close()
        for process in mesh.processes:
            await process.stop()
        await typed(mesh.broker, mesh, tmp_path, backup)
        async with new_mesh(tmp_path, mesh, restore) as restored:
            for service in SERVICES:
                await restored.start(service)
            async with connect(restored.settings, "test") as there:
                agents = Agents(there)
                await all_end(agents, tasks)
                await judged(there, tasks.values())
                await agents.close()


def test_a_copy_of_the_folder_is_a_command_that_there_is() -> None:
    # tests/acceptance/test_meshctl.py starts a mesh again on the folder that it left.
    [command] = PAGE.section("A copy of the folder").commands
    assert command.text == "cp -a .mesh /backup/mesh"
