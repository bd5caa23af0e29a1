"""Cancelling over HTTP: a silent task ends at once, stays cancelled, and leaves its worker free; and a full store."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest

from contracts.identifiers import new_id
from contracts.streams import EVENTS
from mesh.broker.connection import connect
from tests.support import children
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.patience import within
from tests.support.processes import running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance


async def test_a_cancel_reaches_a_silent_task_ends_it_once_and_frees_its_worker(tmp_path: Path) -> None:
    recorded = Recorded()
    services = ("ingress", "stream_edge", "inference_worker", "steward")
    async with (
        running_mesh(tmp_path, *services, MESH_WORKER_CONCURRENCY="1") as mesh,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        task = await submit(client, mesh.ingress_url, recorded, "!say 5\n!hang 30\n!say 5")
        viewer = Viewer(str(mesh.settings.edge_address), task)
        following = asyncio.create_task(viewer.follow())
        await until(lambda: any(frame.type == "output.delta" for frame in viewer.history.frames))
        record = (await client.get(f"/v1/tasks/{task}")).json()
        assert record["links"]["cancel"] == f"/v1/tasks/{task}/cancel"

        began = time.perf_counter()
        asked = await client.post(record["links"]["cancel"])
        again = await client.post(record["links"]["cancel"])
        assert asked.status_code == 202
        assert asked.json()["id"] == task
        assert again.status_code in (200, 202)
        async with within(10):  # A bound far below the 30 s of silence.
            recorded.histories.append(await following)
        print(f"from the request to the viewer's end: {(time.perf_counter() - began) * 1000:.0f} ms")  # noqa: T201 - a figure, for who runs it with -s
        assert viewer.history.frames[-1].type == "task.cancelled"

        # The only slot is free again: another task runs to its end.
        after = await submit(client, mesh.ingress_url, recorded, "!say 3")
        recorded.histories.append(await Viewer(str(mesh.settings.edge_address), after).follow())
        print(f"from the request to the next task's end: {(time.perf_counter() - began) * 1000:.0f} ms")  # noqa: T201 - a figure, for who runs it with -s

        over = await client.post(f"/v1/tasks/{task}/cancel")
        assert over.status_code == 200
        assert over.json()["status"] == "cancelled"
        completed = await client.post(f"/v1/tasks/{after}/cancel")
        assert (completed.status_code, completed.json()["status"]) == (200, "completed")
        for absent in (new_id(), "nonsense"):
            assert (await client.post(f"/v1/tasks/{absent}/cancel")).status_code == 404
        foreign = await client.post(f"/v1/tasks/{task}/cancel", headers={"Mesh-Tenant": "other"})
        assert foreign.status_code == 404

        async with connect(mesh.settings, "test") as connection:
            await until_no_work_is_left(connection)
            stored = await read_stored(connection.requests)
        assert stored.records[task]["output"] == "".join(f"t{number} " for number in range(5))
        assert check(recorded, stored) == []
        assert mesh.tracebacks() == []


async def test_the_ingress_refuses_before_a_stream_is_full_and_takes_tasks_again_after(tmp_path: Path) -> None:
    async with (
        running_mesh(tmp_path, "ingress", "inference_worker") as mesh,
        PatientClient(base_url=mesh.ingress_url) as client,
        connect(mesh.settings, "test") as connection,
    ):
        first = await client.post("/v1/tasks", json={"input": "!say 50"}, headers={"Prefer": "wait=10"})
        assert first.status_code == 200
        used = (await connection.requests.api("STREAM.INFO.EVENTS"))["state"]["bytes"]

        async def resize(max_bytes: int) -> None:
            config = {**EVENTS.as_config(), "max_bytes": max_bytes}
            await connection.requests.api("STREAM.UPDATE.EVENTS", config)

        async def answers(status: int) -> bool:
            return (await client.get("/health/ready")).status_code == status

        await resize(int(used * 1.05))
        await until(lambda: answers(503))
        ready = (await client.get("/health/ready")).json()
        (check_of_events,) = [check for check in ready["checks"] if not check["ok"]]
        assert check_of_events["name"] == "EVENTS"
        refused = await client.post("/v1/tasks", json={"input": "one more"})
        assert refused.status_code == 503
        assert refused.json()["code"] == "queue-full"
        assert "storage of EVENTS" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) > 0
        # What is there can still be read, and stopped.
        assert (await client.get(f"/v1/tasks/{first.json()['id']}")).status_code == 200
        await resize(EVENTS.max_bytes)
        await until(lambda: answers(200))
        assert (await client.post("/v1/tasks", json={"input": "one more"})).status_code == 202


async def test_meshctl_cancels_and_says_what_is_over_already(tmp_path: Path) -> None:
    async with (
        running_mesh(tmp_path, "ingress", "inference_worker", "steward") as mesh,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        task = str((await client.post("/v1/tasks", json={"input": "!hang 30"})).json()["id"])

        async def meshctl(*arguments: str) -> tuple[int, dict[str, object]]:
            ended = await children.run([sys.executable, "-m", "meshctl", *arguments], mesh.environment)
            return ended.returncode, json.loads(ended.stdout)

        status, record = await meshctl("cancel", task)
        assert (status, record["id"]) == (0, task)

        async def over() -> bool:
            return bool((await client.get(f"/v1/tasks/{task}")).json()["status"] == "cancelled")

        await until(over)
        status, record = await meshctl("cancel", task)
        assert (status, record["status"]) == (0, "cancelled")
