"""Workers that are restarted one after the other, while models generate what can't be continued."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mesh.broker.connection import connect
from tests.support.checker import Recorded, Stored, check, read_stored
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.model_server import model_server
from tests.support.patience import ended, within
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.slow_model import SlowModel
from tests.support.up import up
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

TOKENS = 30
TASKS = 4
ROLLS = 2


async def roll(workers: list[Process]) -> None:
    """Restart all of them, one after the other, so many times."""
    for _ in range(ROLLS):
        for worker in workers:
            worker.signal(signal.SIGTERM)
            assert worker._popen is not None
            assert await ended(worker._popen, 60) == 0
            await worker.start()


async def rolled(folder: Path, model: SlowModel, drain_seconds: float) -> tuple[Recorded, Stored, list[str]]:
    """Tasks over rolling restarts, and what came of them."""
    recorded = Recorded()
    async with model_server(model) as server:
        file = folder / "mesh.toml"
        file.write_text(
            f'[providers.local]\nkind = "openai"\nbase_url = "{server.base_url}"\n'
            '[pools.default]\nprovider = "local"\nmodel = "tiny"\n'
        )
        variables = {"MESH_CONFIG": str(file), "MESH_DRAIN_SECONDS": str(drain_seconds)}
        async with (
            running_mesh(folder, "ingress", "stream_edge", "steward", **variables) as mesh,
            PatientClient() as client,
        ):
            workers = [await mesh.start("inference_worker") for _ in range(2)]
            tasks = [await submit(client, mesh.ingress_url, recorded, f"Say {number}") for number in range(TASKS)]
            viewers = [Viewer(str(mesh.settings.edge_address), task) for task in tasks]
            following = [asyncio.create_task(viewer.follow()) for viewer in viewers]
            await until(lambda: model.said > TASKS)
            await roll(workers)
            async with within(60):
                recorded.histories += await asyncio.gather(*following)
            async with connect(mesh.settings, "test") as connection:
                await until_no_work_is_left(connection)
                return recorded, await read_stored(connection.requests), tasks


def of_type(stored: Stored, tasks: list[str], kind: str) -> list[dict[str, Any]]:
    return [each.event for task in tasks for each in stored.journals[task] if each.event["type"] == kind]


async def test_restarts_in_the_middle_of_turns_use_up_no_deliveries_and_what_they_waste_is_told(tmp_path: Path) -> None:
    model = SlowModel(TOKENS, token_seconds=0.1)
    recorded, stored, tasks = await rolled(tmp_path, model, 0.5)
    assert check(recorded, stored) == []
    assert {stored.records[task]["status"] for task in tasks} == {"completed"}
    claims, released = of_type(stored, tasks, "step.claimed"), of_type(stored, tasks, "step.released")
    assert {claim["delivery"] for claim in claims} == {1}
    assert len(claims) == TASKS + len(released)
    assert released, "otherwise nothing was shown"
    # Each restart says what it takes back, and each task's usage what it has lost.
    restarts = of_type(stored, tasks, "turn.restarted")
    lost: Counter[str] = Counter()
    for restart in restarts:
        lost[restart["task"]] += restart.get("discarded_tokens", 0)
    assert sum(lost.values()) > 0
    told = {task: stored.records[task]["usage"].get("discarded_tokens", 0) for task in tasks}
    assert told == {task: lost[task] for task in tasks}


async def test_a_drain_waits_for_turns_and_throws_nothing_away(tmp_path: Path) -> None:
    model = SlowModel(TOKENS, token_seconds=0.1)
    recorded, stored, tasks = await rolled(tmp_path, model, 120)
    assert check(recorded, stored) == []
    assert model.said == TASKS * TOKENS
    assert of_type(stored, tasks, "step.released") == []
    assert of_type(stored, tasks, "turn.restarted") == []


async def test_a_second_signal_does_not_wait_for_the_turn(tmp_path: Path) -> None:
    recorded = Recorded()
    variables = {"MESH_DRAIN_SECONDS": "3600", "MESH_ACK_WAIT_SECONDS": "30"}
    async with running_mesh(tmp_path, "ingress", "stream_edge", **variables) as mesh, PatientClient() as client:
        first = await mesh.start("inference_worker")
        task = await submit(client, mesh.ingress_url, recorded, "!say 4\n!hang 3\n!say 1")
        viewer = Viewer(str(mesh.settings.edge_address), task)
        following = asyncio.create_task(viewer.follow())
        await until(lambda: any(frame.type == "output.delta" for frame in viewer.history.frames))
        await mesh.start("inference_worker")
        first.signal(signal.SIGTERM)
        await until(lambda: bool(mesh.logs_of("drain.waiting")))
        first.signal(signal.SIGTERM)
        assert first._popen is not None
        assert await ended(first._popen, 5) == 0
        recorded.histories.append(await following)
        await assert_handed_over(mesh, recorded, task)


async def test_a_mesh_that_is_stopped_whole_does_not_wait_for_turns_and_goes_on_with_them_when_it_is_there_again(
    tmp_path: Path,
) -> None:
    recorded, home = Recorded(), tmp_path / "home"
    async with PatientClient() as client:
        async with up(home) as mesh:
            task = await submit(client, mesh.ready["ingress_url"], recorded, "!say 2\n!hang 15\n!say 1")
            url = f"{mesh.ready['ingress_url']}/v1/tasks/{task}"
            await until(lambda: status_is(client, url, "running"))
            await mesh.end(signal.SIGTERM)
        log = (home / "logs" / "inference_worker-1.log").read_text()
        assert "step.handed_over" in log
        async with up(home) as mesh:
            url = f"{mesh.ready['ingress_url']}/v1/tasks/{task}"
            await until(lambda: status_is(client, url, "completed"))


async def status_is(client: PatientClient, url: str, status: str) -> bool:
    return bool((await client.get(url)).json()["status"] == status)


async def assert_handed_over(mesh: Mesh, recorded: Recorded, task: str) -> None:
    """One worker has left the turn to another, which went on with its text."""
    async with connect(mesh.settings, "test") as connection:
        await until_no_work_is_left(connection)
        stored = await read_stored(connection.requests)
    assert [claim["delivery"] for claim in of_type(stored, [task], "step.claimed")] == [1, 1]
    assert len(of_type(stored, [task], "step.released")) == 1
    assert of_type(stored, [task], "turn.restarted") == []
    assert check(recorded, stored) == []
