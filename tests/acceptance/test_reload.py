"""A changed mesh.toml while processes run: taken by all or by none, and what runs ends by what it began with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mesh.broker.embedded import is_alive
from tests.acceptance.test_own_model import SERVICES, journal_of, of_type, run_task
from tests.support.checker import Recorded
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.model_server import DONE, Exchange, chunk, model_server, openai, usage
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.up import Up, meshctl, up
from tests.support.waiting import until
from tests.support.webhook_receiver import SECRET, webhook_receiver

pytestmark = pytest.mark.acceptance


def pool(base_url: str, more: str = "") -> str:
    return (
        f'[providers.local]\nkind = "openai"\nbase_url = "{base_url}"\n{more}\n'
        '[pools.default]\nprovider = "local"\nmodel = "m"\n'
    )


async def hung_up(mesh: Mesh, process: Process, event: str) -> dict[str, Any]:
    """SIGHUP to a process, and the line that it logs then."""

    def lines() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line["event"] == event]

    before = len(lines())
    process.signal(signal.SIGHUP)
    await until(lambda: len(lines()) > before)
    return lines()[-1]


async def test_a_turn_ends_at_the_server_that_it_began_at_and_the_next_goes_to_the_new_one(tmp_path: Path) -> None:
    recorded, file, go_on = Recorded(), tmp_path / "mesh.toml", asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.say(chunk({"content": "Hel"}))
        await go_on.wait()
        await exchange.say(chunk({"content": "lo"}), chunk({}, "stop"), usage(9, 2))
        await exchange.send(DONE)
        await exchange.end()

    async with model_server(slow) as old, model_server(openai) as new:
        file.write_text(pool(old.base_url))
        async with running_mesh(tmp_path, *SERVICES, MESH_CONFIG=str(file)) as mesh:
            worker = mesh.processes[-1]
            async with PatientClient() as client:
                task = await submit(client, mesh.ingress_url, recorded, "first")
            viewer = Viewer(str(mesh.settings.edge_address), task)
            following = asyncio.create_task(viewer.follow())
            await until(lambda: any("output.delta" in frame for frame in viewer.history.frames))

            file.write_text(pool(new.base_url, "breaker = { open_seconds = 3 }"))
            taken = await hung_up(mesh, worker, "configuration.taken")
            assert taken["configuration"] != taken["before"]
            events = await journal_of(mesh, await run_task(mesh, recorded, "second"))
            assert of_type(events, "task.completed")[0]["output"] == "Hello"
            go_on.set()
            await following
            events = await journal_of(mesh, task)
            assert of_type(events, "task.completed")[0]["output"] == "Hello"
            assert not of_type(events, "turn.restarted")
            assert (len(old.exchanges), len(new.exchanges)) == (1, 1)
            # The connections of the old one end with its last turn.
            await until(old.exchanges[0].gone.is_set)

            file.write_text(pool(old.base_url, "first_token_secs = 3"))
            kept = await hung_up(mesh, worker, "configuration.kept")
            assert "first_token_secs" in kept["mistakes"][0]
            file.write_text(pool(old.base_url) + "[pools.more]\n")
            kept = await hung_up(mesh, worker, "configuration.kept")
            assert "pools.more" in kept["fixed"][0]
            file.write_text(pool(old.base_url, 'api_key_env = "NOT_SET"'))
            kept = await hung_up(mesh, worker, "configuration.kept")
            assert "NOT_SET is not set" in kept["mistakes"][0]
            await run_task(mesh, recorded, "third")
            assert (len(old.exchanges), len(new.exchanges)) == (1, 2)
            assert mesh.tracebacks() == []


async def reload(mesh: Up, status: int = 0) -> list[dict[str, Any]]:
    ended = await meshctl("reload", environment=mesh.environment)
    assert ended.returncode == status, (ended.stdout, ended.stderr)
    return [json.loads(line) for line in ended.stdout.splitlines()]


async def test_all_processes_of_a_mesh_take_a_file_or_none_does(tmp_path: Path) -> None:
    file, home = tmp_path / "mesh.toml", tmp_path / "home"
    file.write_text("[pools.default]\n")
    async with (
        webhook_receiver() as receiver,
        up(home, variables={"MESH_CONFIG": str(file), "HOOK": SECRET}) as mesh,
        PatientClient(base_url=mesh.ready["ingress_url"]) as client,
    ):
        before = mesh.pids()

        async def task(**request: object) -> dict[str, Any]:
            answer = await client.post("/v1/tasks?", json={"input": "!say 1", **request}, headers={"Prefer": "wait=20"})
            record: dict[str, Any] = answer.json()
            return record

        assert "deadline" not in await task()
        hook = f'[webhooks.w]\nurl = "{receiver.url}"\nallow_private = true\nsecret_env = "HOOK"\non = ["ended"]\n'
        file.write_text(f"[pools.default]\ndeadline_seconds = 300\n{hook}[tools.add]\napproval = 'always'\n")
        [taken] = await reload(mesh)
        assert (taken["processes"], taken["changed"], taken["late"]) == (5, 5, [])
        assert mesh.pids() == before

        async def digests() -> bool:
            told = (await meshctl("workers", environment=mesh.environment)).stdout.splitlines()
            return bool([json.loads(line)["configuration"] for line in told] == taken["configurations"] * 5)

        await until(digests)
        # The ingress, the steward, and worker and runner go by it.
        assert "deadline" in await task()
        await until(lambda: len(receiver.received) == 1)
        called = (await client.post("/v1/tasks", json={"input": '!call add {"a": 1, "b": 2}', "tools": ["add"]})).json()

        async def waits() -> bool:
            record = (await client.get(f"/v1/tasks/{called['id']}")).json()
            return bool(record["status"] == "waiting" and record["approvals"])

        await until(waits)

        # A mistake: nobody takes it, commands that ask the mesh go on, and so does who is started again.
        good = file.read_text()
        file.write_text(f"{good}\n[pools.default.x]\n[results]\ntenant_share = 7\n")
        told = await reload(mesh, status=1)
        assert [line["event"] for line in told] == ["reload.objection", "reload.objection", "reload.refused"]
        running = {**mesh.environment, "MESH_CONFIG": str(file)}
        assert (await meshctl("workers", environment=running)).returncode == 0
        assert (await meshctl("list", environment=running)).returncode == 0
        await mesh.killed("ingress")
        assert "deadline" in await task()
        doctor = await meshctl("doctor", environment={**running, "MESH_HOME": str(home)})
        [said] = [line for line in map(json.loads, doctor.stdout.splitlines()) if line["check"] == "configuration"]
        assert said["status"] == "warn", said

        # One that is silent keeps it from all.
        file.write_text(good.replace("300", "400"))
        [runner] = mesh.pids()["tool_runner"]
        os.kill(runner, signal.SIGSTOP)
        try:
            told = await reload(mesh, status=1)
        finally:
            os.kill(runner, signal.SIGCONT)
        assert f"tool_runner-{runner}" in told[0]["reason"]
        shown = await meshctl("config", "show", "--running", environment={**running, "MESH_HOME": str(home)})
        values = {line.get("key"): line.get("value") for line in map(json.loads, shown.stdout.splitlines())}
        assert values["pools.default.deadline_seconds"] == 300
        [taken] = await reload(mesh)
        assert taken["late"] == []
        assert is_alive(runner)
