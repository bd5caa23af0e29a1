"""A process whose loop stands still is ended by its watchdog, and says where it was. One that was stopped goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh.faults import ORDER_FILE, POINTS_VARIABLE
from mesh.serving.statuses import STATUS_STOOD_STILL
from tests.support.clients import post_task
from tests.support.http_client import PatientClient
from tests.support.patience import stretched
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

BOUND_SECONDS = 2.0


@asynccontextmanager
async def worker_at_a_point(folder: Path, standstill: str) -> AsyncIterator[tuple[Mesh, Process]]:
    """A worker whose loop stands still once it has claimed a step."""
    points = folder / "points"
    points.mkdir()
    (points / ORDER_FILE).write_text(f"stand-still append:step.claimed 1 {standstill} 0")
    async with running_mesh(folder, "ingress", "stream_edge", "steward") as mesh:
        variables = {"MESH_WATCHDOG_SECONDS": str(stretched(BOUND_SECONDS)), POINTS_VARIABLE: str(points)}
        yield mesh, await mesh.start("inference_worker", **variables)


async def ended_by(mesh: Mesh, worker: Process) -> int:
    """How the worker ends that gets a task."""
    async with PatientClient() as client:
        assert (await post_task(client, mesh.ingress_url, "Hello")).status_code == 202
    await until(lambda: not worker.is_running, 60)
    return await worker.stop()


async def test_a_loop_that_stands_still_ends_its_process_which_says_where_it_stood(tmp_path: Path) -> None:
    async with worker_at_a_point(tmp_path, "block") as (mesh, worker):
        assert await ended_by(mesh, worker) == STATUS_STOOD_STILL
        [line] = mesh.logs_of("loop.stood_still")
        assert (line["level"], line["service"]) == ("critical", "inference_worker")
        assert "faults.py" in str(line["stack"])
        assert "in reach" in str(line["stack"])
        # Another one goes on with the step.
        await mesh.start("inference_worker")
        await until(lambda: bool(mesh.logs_of("task.ended")), 60)


async def test_a_loop_that_stands_still_with_the_interpreters_lock_ends_its_process_too(tmp_path: Path) -> None:
    async with worker_at_a_point(tmp_path, "spin") as (mesh, worker):
        assert await ended_by(mesh, worker) == -signal.SIGPROF
        assert "in reach" in worker.log.read_text()


async def test_a_process_that_was_stopped_for_longer_than_the_bound_goes_on(tmp_path: Path) -> None:
    variables = {"MESH_WATCHDOG_SECONDS": str(stretched(BOUND_SECONDS))}
    async with running_mesh(tmp_path, "ingress", "inference_worker", "stream_edge", "steward", **variables) as mesh:
        for process in mesh.processes:
            os.kill(process.pid, signal.SIGSTOP)
        # The bound is what passes here, twice.
        await asyncio.sleep(2 * stretched(BOUND_SECONDS))
        for process in mesh.processes:
            os.kill(process.pid, signal.SIGCONT)
        async with PatientClient() as client:
            assert (await post_task(client, mesh.ingress_url, "Hello")).status_code == 202
        await until(lambda: bool(mesh.logs_of("task.ended")), 60)
        assert all(process.is_running for process in mesh.processes)
        assert mesh.logs_of("loop.stood_still") == []
