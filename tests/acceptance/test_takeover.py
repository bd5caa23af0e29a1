"""A worker that dies, or sleeps through its lease, is replaced; what it left is gone on with, exactly."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from mesh.broker.connection import connect
from mesh.configuration.settings import worker_name
from tests.support.checker import Recorded, Stored, check, read_stored, writers_after_takeover
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.patience import within
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

VARIABLES = {"MESH_ACK_WAIT_SECONDS": "2"}
AFTER_LEASE_SECONDS_MAX = 2.0
"""From the end of a lease to the next claim."""


async def stored_of(mesh: Mesh) -> Stored:
    """What the broker holds."""
    async with connect(mesh.settings, "test") as connection:
        return await read_stored(connection.requests)


async def stored_at_rest(mesh: Mesh) -> Stored:
    """What the broker holds once no work is left. A stream ends before its worker has acked."""
    async with connect(mesh.settings, "test") as connection:
        await until_no_work_is_left(connection)
        return await read_stored(connection.requests)


def claims(stored: Stored, task: str) -> list[dict[str, Any]]:
    """The claims of a task, in order."""
    return [event.event for event in stored.journals.get(task, []) if event.event["type"] == "step.claimed"]


async def until_claimed(mesh: Mesh, task: str, times: int = 1) -> None:
    """Wait until a task was claimed so often."""

    async def claimed() -> bool:
        return len(claims(await stored_of(mesh), task)) >= times

    await until(claimed)


async def claimant(mesh: Mesh, workers: list[Process], task: str) -> Process:
    """The worker process that claimed a task first, once it has."""
    await until_claimed(mesh, task)
    first = claims(await stored_of(mesh), task)[0]
    return next(worker for worker in workers if f"-{worker.pid}@" in first["worker"])


async def test_a_killed_worker_is_replaced_in_mid_turn_and_the_stream_goes_on(tmp_path: Path) -> None:
    recorded = Recorded()
    async with running_mesh(tmp_path, "ingress", "stream_edge", **VARIABLES) as mesh, PatientClient() as client:
        workers = [await mesh.start("inference_worker") for _ in range(2)]
        task = await submit(client, mesh.ingress_url, recorded, "!rate 100\n!say 400")
        viewer = Viewer(str(mesh.settings.edge_address), task)
        following = asyncio.create_task(viewer.follow())
        owner = await claimant(mesh, workers, task)
        await until(lambda: len(viewer.history.frames) >= 40)
        await owner.kill()
        async with within(mesh.settings.ack_wait_seconds + AFTER_LEASE_SECONDS_MAX):
            await until(lambda: [frame.type for frame in viewer.history.frames].count("step.claimed") == 2)
        recorded.histories.append(await following)
        stored = await stored_at_rest(mesh)
        assert [claim["delivery"] for claim in claims(stored, task)] == [1, 2]
        assert stored.records[task]["output"] == "".join(f"t{number} " for number in range(400))
        assert check(recorded, stored) == []


async def test_a_worker_that_slept_through_its_lease_adds_nothing_and_acks_nothing(tmp_path: Path) -> None:
    recorded = Recorded()
    async with running_mesh(tmp_path, "ingress", "stream_edge", **VARIABLES) as mesh, PatientClient() as client:
        workers = [await mesh.start("inference_worker") for _ in range(2)]
        # Long enough that the turn is still under way when the sleeper wakes up.
        task = await submit(client, mesh.ingress_url, recorded, "!rate 100\n!say 900")
        viewer = Viewer(str(mesh.settings.edge_address), task)
        following = asyncio.create_task(viewer.follow())
        sleeper = await claimant(mesh, workers, task)
        loser = worker_name("inference_worker", sleeper.pid)
        await until(lambda: len(viewer.history.frames) >= 40)
        sleeper.signal(signal.SIGSTOP)
        await until_claimed(mesh, task, times=2)
        sleeper.signal(signal.SIGCONT)
        recorded.histories.append(await following)
        stored = await stored_at_rest(mesh)
        assert claims(stored, task)[0]["worker"] == loser
        # On a busy machine the successor's short lease may end too: whoever has claimed then goes on.
        assert len(claims(stored, task)) >= 2
        assert writers_after_takeover(stored.journals[task], loser) == []
        assert check(recorded, stored) == []
        logged = [line for line in mesh.logs() if line.get("event") in ("delivery.lost", "delivery.lease_lost")]
        assert logged, "the sleeper said that it lost the step"
        # It serves on: the next tasks go to either worker.
        for number in range(4):
            after = await submit(client, mesh.ingress_url, recorded, f"again {number}")
            recorded.histories.append(await Viewer(str(mesh.settings.edge_address), after).follow())
        assert check(recorded, await stored_at_rest(mesh)) == []


async def test_a_worker_told_to_stop_hands_over_without_waiting_for_the_lease(tmp_path: Path) -> None:
    recorded = Recorded()
    variables = {"MESH_ACK_WAIT_SECONDS": "30", "MESH_DRAIN_SECONDS": "0.2"}
    async with running_mesh(tmp_path, "ingress", "stream_edge", **variables) as mesh, PatientClient() as client:
        workers = [await mesh.start("inference_worker") for _ in range(2)]
        # Long enough that it is still under way when its worker is told to, on a busy machine, too.
        task = await submit(client, mesh.ingress_url, recorded, "!rate 100\n!say 900")
        viewer = Viewer(str(mesh.settings.edge_address), task)
        following = asyncio.create_task(viewer.follow())
        owner = await claimant(mesh, workers, task)
        assert await owner.stop() == 0
        recorded.histories.append(await following)
        stored = await stored_at_rest(mesh)
        assert len(claims(stored, task)) == 2
        assert check(recorded, stored) == []


async def test_a_task_whose_process_dies_on_its_first_deliveries_is_completed_by_a_later_one(tmp_path: Path) -> None:
    recorded = Recorded()
    variables = {"MESH_ACK_WAIT_SECONDS": "1", "MESH_SCRIPTED_ALLOW_EXIT": "1"}
    async with running_mesh(tmp_path, "ingress", "stream_edge", **variables) as mesh, PatientClient() as client:
        task = await submit(client, mesh.ingress_url, recorded, "!exit 2\n!say 40")
        viewer = Viewer(str(mesh.settings.edge_address), task)
        following = asyncio.create_task(viewer.follow())
        for _ in range(3):
            worker = await mesh.start("inference_worker")
            ended = asyncio.create_task(asyncio.to_thread(worker._popen.wait))  # type: ignore[union-attr]  # it runs
            await asyncio.wait({ended, following}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                await worker.stop()
            await ended
        recorded.histories.append(await following)
        stored = await stored_at_rest(mesh)
        assert len(claims(stored, task)) == 3
        assert check(recorded, stored) == []
