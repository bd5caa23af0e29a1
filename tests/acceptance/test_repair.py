"""Work that is gone from the broker comes back: by the steward, which finds it by itself, and by `meshctl repair`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.broker.connection import Connection, connect
from tests.support.agents import Agents
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import submit
from tests.support.commands import meshctl
from tests.support.http_client import PatientClient
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

TASKS = 6
TWO_CALLS = '!call add {"a": 1, "b": 2}\n!call add {"a": 3, "b": 4}\n!then\ndone'


async def accepted(mesh: Mesh, recorded: Recorded) -> list[str]:
    """Tasks that wait for a worker."""
    async with PatientClient() as client:
        return [await submit(client, mesh.ingress_url, recorded, "!say 1") for _ in range(TASKS)]


async def until_recorded(connection: Connection, tasks: list[str]) -> None:
    """Wait until each task has its record."""

    async def recorded() -> bool:
        return (await read_stored(connection.requests)).records.keys() >= set(tasks)

    await until(recorded)


async def test_tasks_whose_queue_was_purged_by_hand_all_go_on_by_the_steward(tmp_path: Path) -> None:
    recorded = Recorded()
    variables = {"MESH_RECONCILE_AFTER_SECONDS": "0.5", "MESH_ACK_WAIT_SECONDS": "1"}
    async with (
        running_mesh(tmp_path, "ingress", "tool_runner", **variables) as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        agents = Agents(connection)
        tasks = await accepted(mesh, recorded)
        await until_recorded(connection, tasks)
        await connection.requests.api("STREAM.PURGE.TASKS")
        await mesh.start("inference_worker")
        await mesh.start("steward")
        for task in tasks:
            await agents.until_status(task, "completed", 60)

        # And calls that were asked for, while nobody runs their tool.
        await next(each for each in mesh.processes if each.service == "tool_runner").stop()
        agent = await agents.submit(TWO_CALLS, tools=["add"])
        recorded.accepted.add(agent)

        async def calls_wait() -> bool:
            return len((await read_stored(connection.requests)).work) == 2

        await until(calls_wait)
        await connection.requests.api("STREAM.PURGE.TOOLS")
        await mesh.start("tool_runner")
        await agents.until_status(agent, "completed", 60)
        await until_no_work_is_left(connection)
        assert len(mesh.logs_of("task.put_back")) == TASKS + 1
        assert check(recorded, await read_stored(connection.requests)) == []
        assert mesh.tracebacks() == []
        await agents.close()


async def test_meshctl_says_what_it_would_put_back_and_puts_it_back(tmp_path: Path) -> None:
    recorded = Recorded()
    async with running_mesh(tmp_path, "ingress") as mesh, connect(mesh.settings, "test") as connection:
        agents = Agents(connection)
        tasks = await accepted(mesh, recorded)
        await until_recorded(connection, tasks)
        soon = ["--reconcile-after-seconds", "0.1"]
        *_, told = await meshctl(mesh, "repair", "--dry-run", *soon)
        assert told == {"event": "repair.done", "dry_run": True, "looked_at": TASKS, "found": 0, "unreadable": 0}
        await connection.requests.api("STREAM.PURGE.TASKS")
        *found, told = await meshctl(mesh, "repair", "--dry-run", *soon)
        assert {each["task"] for each in found} == set(tasks)
        assert {each["event"] for each in found} == {"task.found"}
        assert all(each["lost"] == [{"kind": "work", "name": "1.g0"}] for each in found)
        assert told["found"] == TASKS
        *found, told = await meshctl(mesh, "repair", *soon)
        assert {each["event"] for each in found} == {"task.put_back"}
        *found, told = await meshctl(mesh, "repair", *soon)
        assert (found, told["found"]) == ([], 0)
        await mesh.start("inference_worker")
        for task in tasks:
            await agents.until_status(task, "completed", 60)
        await until_no_work_is_left(connection)
        assert check(recorded, await read_stored(connection.requests)) == []
        await agents.close()
