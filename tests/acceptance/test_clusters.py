"""deploy/nats: three servers on loopback, whichever of them is away; and a box at the edge whose hub goes away."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import last_sequence, read_page, subjects_of
from mesh.configuration.settings import load_settings
from tests.support import children
from tests.support.agents import Agents
from tests.support.deployed import EDGE_PASSWORD, deployed_cluster, deployed_edge, with_login
from tests.support.processes import Mesh, serving
from tests.support.waiting import until, until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

SERVICES = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
TASKS = 5
AWAY_SECONDS = float(os.environ.get("TASKMESH_HUB_AWAY_SECONDS", "0"))
"""How long the hub is away at the least. Tasks run all the while."""


async def test_services_and_meshctl_find_a_cluster_whichever_of_its_servers_is_away(tmp_path: Path) -> None:
    async with deployed_cluster(tmp_path) as cluster:
        mesh = Mesh(tmp_path, cluster.nodes[0], {"MESH_NATS_URL": with_login(cluster.url)})
        assert (await meshctl(mesh, "streams", "apply")).returncode == 0
        await cluster.nodes[0].kill()
        await cluster.until_led()
        async with serving(mesh, *SERVICES), connect(mesh.settings, "test") as connection:
            agents = Agents(connection)
            await agents.until_status(await agents.submit("hello"), "completed")
            told = {
                line["check"]: line for line in map(json.loads, (await meshctl(mesh, "doctor")).stdout.splitlines())
            }
            assert told["servers"]["status"] == "warn"
            assert told["servers"]["detail"].startswith(f"1 of 3 of MESH_NATS_URL are away: {cluster.nodes[0].url}")
            assert told["replicas"]["status"] == "warn"
            assert "nats-1 behind" in told["replicas"]["detail"]

            await cluster.nodes[0].start()
            await cluster.until_serving()
            await cluster.nodes[1].kill()
            await cluster.until_led()
            await agents.until_status(await agents.submit("hello again"), "completed")
            await until_no_work_is_left(connection)
        assert mesh.tracebacks() == []


async def meshctl(mesh: Mesh, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await children.run([sys.executable, "-m", "meshctl", *arguments], mesh.environment)


async def deliveries_of(connection: Connection, task: str) -> list[int]:
    """By which delivery each claim of a task's steps came about."""
    page = await read_page(connection.requests, "EVENTS", f"events.default.{task}.log", 0)
    events = [json.loads(message.payload) for message in page.messages]
    return [event["delivery"] for event in events if event["type"] == "step.claimed"]


async def test_the_mesh_of_a_leaf_goes_on_without_its_hub_and_nothing_is_doubled_once_that_is_back(
    tmp_path: Path,
) -> None:
    async with deployed_edge(tmp_path) as edge:
        hub = Mesh(tmp_path / "at-hub", edge.hub, {"MESH_NATS_URL": with_login(edge.hub.url)})
        leaf = Mesh(tmp_path / "at-leaf", edge.leaf, {"MESH_NATS_URL": with_login(edge.leaf.url)})
        hub.folder.mkdir()
        leaf.folder.mkdir()
        watch = load_settings({"MESH_NATS_URL": with_login(edge.hub.url, "watch", EDGE_PASSWORD)})
        async with (
            serving(hub, "inference_worker", "steward"),
            serving(leaf, "inference_worker", "steward"),
            connect(hub.settings, "test") as at_hub,
            connect(leaf.settings, "test") as at_leaf,
            connect(watch, "test") as watching,
        ):
            heard: list[str] = []
            await watching.requests.on_announced(
                "edge-1.live.events.>", lambda subject: heard.append(subject) if subject else None
            )
            agents = {at_hub: Agents(at_hub), at_leaf: Agents(at_leaf)}

            async def run_tasks(*places: Connection) -> list[str]:
                tasks = [(at, await agents[at].submit("hello")) for at in places for _ in range(TASKS)]
                await asyncio.gather(*(agents[at].until_status(task, "completed") for at, task in tasks))
                return [task for _, task in tasks]

            done = await run_tasks(at_hub, at_leaf)
            await edge.hub.kill()
            back_at = time.monotonic() + AWAY_SECONDS
            without_hub = await run_tasks(at_leaf)
            while time.monotonic() < back_at:
                without_hub += await run_tasks(at_leaf)
            await edge.hub.start()
            await edge.until_linked()
            await until(lambda: at_hub.is_connected)
            after = await run_tasks(at_hub, at_leaf)

            ours = {*done[TASKS:], *without_hub, *after[TASKS:]}
            for at, tasks in ((at_leaf, ours), (at_hub, {*done[:TASKS], *after[:TASKS]})):
                await until_no_work_is_left(at)
                journals = await subjects_of(at.requests, "EVENTS", "events.*.*.log")
                assert {subject.split(".")[2] for subject in journals} == tasks
                for task in tasks:
                    assert await deliveries_of(at, task) == [1]

            # Out goes what happens to tasks, in come signals for this box, and nothing else crosses.
            await until(lambda: {subject.split(".")[4] for subject in heard} >= {*done[TASKS:], *after[TASKS:]})
            assert {subject.split(".")[4] for subject in heard} <= ours
            before = await last_sequence(at_leaf.requests, "SIGNALS")
            await watching.client.publish("edge-1.signals.default.probe", b"{}")

            async def arrived() -> bool:
                return await last_sequence(at_leaf.requests, "SIGNALS") == before + 1

            await until(arrived)
            assert await last_sequence(at_hub.requests, "SIGNALS") == 0
        assert hub.tracebacks() == []
        assert leaf.tracebacks() == []
