"""Processes that are taken away and replaced under `meshctl up`: drained, told to end, restarted one after another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh.background import background
from tests.support.clients import Viewer, post_task
from tests.support.http_client import PatientClient
from tests.support.model_server import DONE, Exchange, chunk, model_server, usage
from tests.support.processes import running_mesh
from tests.support.up import Up, meshctl, runs, up
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance


def lines(text: str) -> list[dict[str, Any]]:
    """What a command printed, line by line."""
    return [json.loads(line) for line in text.splitlines()]


def logged(mesh: Up, event: str) -> list[dict[str, Any]]:
    """What `meshctl up` has logged of one kind."""
    return [line for line in lines(mesh.log.read_text()) if line["event"] == event]


async def begun(client: PatientClient, mesh: Up, text: str) -> str:
    """A task that a worker has begun."""
    answer = await post_task(client, mesh.ready["ingress_url"], text)
    assert answer.status_code == 202, answer.text
    task = str(answer.json()["id"])
    url = f"{mesh.ready['ingress_url']}/v1/tasks/{task}"

    async def runs_now() -> bool:
        return bool((await client.get(url)).json()["status"] == "running")

    await until(runs_now)
    return task


async def worker_of(mesh: Up, service: str) -> str:
    """The name of the process of a service."""
    answer = await meshctl("workers", environment=mesh.environment)
    [name] = [line["worker"] for line in lines(answer.stdout) if line["service"] == service]
    return str(name)


class HeldModel:
    """A model that says nothing until it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.begin()
        await self.go.wait()
        await exchange.say(chunk({"content": "done"}, usage=None))
        await exchange.say(chunk(finish_reason="stop", usage=None), usage(9, 1))
        await exchange.send(DONE)
        await exchange.end()


async def test_a_drained_worker_ends_its_step_leaves_and_stays_away(tmp_path: Path) -> None:
    file, model = tmp_path / "mesh.toml", HeldModel()
    variables = {"MESH_DRAIN_SECONDS": "1", "MESH_LOG_FORMAT": "json", "MESH_CONFIG": str(file)}
    async with model_server(model) as server:
        file.write_text(
            f'[providers.local]\nkind = "openai"\nbase_url = "{server.base_url}"\n'
            '[pools.default]\nprovider = "local"\nmodel = "tiny"\n'
        )
        async with up(tmp_path / "home", variables=variables) as mesh, PatientClient() as client:
            await drain_and_stay_away(mesh, client, model)


async def drain_and_stay_away(mesh: Up, client: PatientClient, model: HeldModel) -> None:
    """Drain the worker of a mesh that runs a step of this model, and have nobody in its place."""
    task = await begun(client, mesh, "Hello")
    worker, pid = await worker_of(mesh, "inference_worker"), mesh.pids()["inference_worker"][0]
    draining = asyncio.create_task(meshctl("drain", "--wait", worker, environment=mesh.environment))
    log = mesh.home / "logs" / "inference_worker-1.log"
    await until(lambda: "service.draining" in log.read_text())
    # Its step takes longer than a stop would wait for, and is not handed over: that much time passes here.
    await asyncio.sleep(3)
    assert runs(pid)
    model.go.set()
    drained = await draining
    assert (drained.returncode, drained.stderr) == (0, "")
    said = lines(drained.stdout)
    assert [(line["event"], line["worker"]) for line in said] == [
        ("process.draining", worker),
        ("process.left", worker),
    ]
    assert said[0]["running"] == 1
    record = (await client.get(f"{mesh.ready['ingress_url']}/v1/tasks/{task}")).json()
    assert record["status"] == "completed"
    await until(lambda: bool(logged(mesh, "process.drained")))
    assert not runs(pid)
    assert mesh.pids()["inference_worker"] == []
    assert logged(mesh, "process.died") == logged(mesh, "process.ended") == []
    # A restart leaves the place empty, too; and who is not there can't be drained.
    assert (await meshctl("restart", "--rolling", environment=mesh.environment)).returncode == 0
    assert mesh.pids()["inference_worker"] == []
    again = await meshctl("drain", worker, environment=mesh.environment)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"meshctl: there is no process '{worker}': `meshctl workers` lists them\n"


async def test_all_workers_of_a_machine_are_drained_and_a_frozen_one_is_called_so(tmp_path: Path) -> None:
    services = ("ingress", "stream_edge", "steward", "inference_worker", "tool_runner")
    async with running_mesh(tmp_path, *services) as mesh:
        by_service = {process.service: process for process in mesh.processes}
        environment = {**mesh.environment, "MESH_NATS_URL": mesh.broker.url}
        unknown = await meshctl("drain", "--all-of", "nowhere", environment=environment)
        assert unknown.returncode == 1
        assert "'nowhere'" in unknown.stderr
        os.kill(by_service["tool_runner"].pid, signal.SIGSTOP)
        host = os.uname().nodename
        drained = await meshctl("drain", "--all-of", host, environment=environment)
        assert drained.returncode == 1
        told = {(line["event"], line["worker"].split("-")[0]) for line in lines(drained.stdout)}
        assert told == {
            ("process.draining", "inference_worker"),
            ("process.left", "inference_worker"),
            ("process.no_answer", "tool_runner"),
        }
        await until(lambda: not by_service["inference_worker"].is_running)
        assert await by_service["inference_worker"].stop() == 3
        assert all(by_service[service].is_running for service in services if service != "inference_worker")


async def test_who_was_told_to_end_by_a_stranger_ended_and_did_not_die(tmp_path: Path) -> None:
    async with up(tmp_path / "home", variables={"MESH_LOG_FORMAT": "json"}) as mesh:
        pid = mesh.pids()["tool_runner"][0]
        os.kill(pid, signal.SIGTERM)
        await until(lambda: bool(logged(mesh, "process.restarted")))
        [ended] = logged(mesh, "process.ended")
        assert (ended["process"], ended["status"], ended["reason"]) == (
            "tool_runner-1",
            0,
            "told to end, not by meshctl",
        )
        assert logged(mesh, "process.died") == []
        await mesh.killed("tool_runner")
        [died] = logged(mesh, "process.died")
        assert (died["process"], died["signal"]) == ("tool_runner-1", "SIGKILL")


class Gaps:
    """Asks for health again and again, on new connections and on kept ones, and notes what was not answered."""

    def __init__(self, urls: list[str]) -> None:
        self.asked = 0
        self.failed: list[str] = []
        self._urls = urls

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Ask during the body."""
        async with background(*(self._ask(url, is_kept=kept) for url in self._urls for kept in (False, True))):
            yield

    async def _ask(self, url: str, *, is_kept: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=1 if is_kept else 0)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            while True:
                try:
                    answer = await client.get(f"{url}/health/live")
                    if answer.status_code != 200:
                        self.failed.append(f"{url}: {answer.status_code}")
                except httpx.TransportError as error:
                    self.failed.append(f"{url}, {'kept' if is_kept else 'new'}: {error!r}")
                self.asked += 1
                await asyncio.sleep(0.01)


async def test_a_rolling_restart_replaces_every_process_without_a_gap(tmp_path: Path) -> None:
    variables = {"MESH_LOG_FORMAT": "json", "MESH_OPS_ADDRESS": "127.0.0.1:0", "MESH_DRAIN_SECONDS": "60"}
    async with up(tmp_path / "home", "--workers", "2", variables=variables) as mesh, PatientClient() as client:
        before = mesh.pids()
        task = await begun(client, mesh, "!say 3\n!hang 3\n!say 3")
        viewer = Viewer(mesh.ready["edge_url"].removeprefix("http://"), task)
        following = asyncio.create_task(viewer.follow())
        await until(lambda: any(frame.type == "output.delta" for frame in viewer.history.frames))
        gaps = Gaps([mesh.ready["ingress_url"], mesh.ready["edge_url"]])
        async with gaps.watched():
            restarted = await meshctl("restart", "--rolling", "--broker", environment=mesh.environment, seconds=240)
        assert (restarted.returncode, restarted.stderr) == (0, "")
        assert gaps.asked > 100
        assert gaps.failed == []
        history = await following
        assert history.frames[-1].type == "task.completed"
        assert [frame.type for frame in history.frames].count("step.claimed") == 1
        after = mesh.pids()
        assert {service: len(pids) for service, pids in after.items()} == {
            service: len(pids) for service, pids in before.items()
        }
        assert after["meshctl"] == before["meshctl"]
        gone = {pid for service, pids in before.items() if service != "meshctl" for pid in pids}
        assert not gone & set(mesh.all_pids)
        assert not [pid for pid in gone if runs(pid)]
        said = lines(restarted.stdout)
        replaced = [line["process"] for line in said if line["event"] == "process.replaced"]
        assert replaced == [
            "stream_edge",
            "ingress",
            "inference_worker-1",
            "inference_worker-2",
            "tool_runner-1",
            "steward",
            "nats_server",
        ]
        assert logged(mesh, "process.died") == []
        assert "process.killed" not in mesh.log.read_text()
        # And it goes on.
        await begun(client, mesh, "!hang 1")


async def test_a_successor_that_does_not_serve_leaves_its_predecessor_in_place(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text("")
    variables = {"MESH_LOG_FORMAT": "json", "MESH_CONFIG": str(file)}
    async with up(tmp_path / "home", variables=variables) as mesh, PatientClient() as client:
        before = mesh.pids()
        file.write_text("[pools.default]\nmodel = 7\n")
        refused = await meshctl("restart", "--rolling", environment=mesh.environment)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"meshctl: nothing was restarted: {file}: pools.default.model:")
        file.write_text("")
        log = mesh.home / "logs" / "stream_edge.log"
        log.rename(log.with_suffix(".old"))
        log.mkdir()  # Where nobody can write.
        restarted = await meshctl("restart", "--rolling", environment=mesh.environment)
        assert restarted.returncode == 1
        assert restarted.stderr.startswith("meshctl: stream_edge does not start: its predecessor goes on")
        assert mesh.pids() == before
        answer = await post_task(client, mesh.ready["ingress_url"], "Hello")
        assert answer.status_code == 202


async def test_a_restart_needs_a_mesh_and_drain_somebody(tmp_path: Path) -> None:
    nobody = await meshctl("restart", "--rolling", "--home", str(tmp_path / "home"))
    assert nobody.returncode == 1
    assert nobody.stderr.startswith("meshctl: unreachable: no mesh runs on ")
    assert (await meshctl("restart")).returncode == 2
    assert (await meshctl("drain")).returncode == 1
