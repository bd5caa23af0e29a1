"""Resume is exact: cut clients, killed edges and killed brokers see what an undisturbed client sees."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mesh.broker.connection import connect
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import Viewer, random_cuts, submit
from tests.support.http_client import PatientClient
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

SCRIPT = "!rate 400\n!say 2000"
SERVICES = ("ingress", "inference_worker", "stream_edge")


async def judge(mesh: Mesh, recorded: Recorded) -> list[str]:
    """What the offline checker finds once no work is left. A stream ends before its worker has acked."""
    async with connect(mesh.settings, "test") as connection:
        await until_no_work_is_left(connection)
        return check(recorded, await read_stored(connection.requests))


async def more_frames(viewer: Viewer) -> None:
    """Wait until a viewer has received some more."""
    seen = len(viewer.history.frames)
    await until(lambda: len(viewer.history.frames) >= seen + 20)


async def test_a_client_that_is_cut_fifty_times_sees_what_an_undisturbed_one_sees(tmp_path: Path) -> None:
    recorded = Recorded()
    async with running_mesh(tmp_path, *SERVICES) as mesh, PatientClient() as client:
        task = await submit(client, mesh.ingress_url, recorded, SCRIPT)
        address = str(mesh.settings.edge_address)
        undisturbed, cut = Viewer(address, task), Viewer(address, task)
        whole, pieces = await asyncio.gather(undisturbed.follow(), cut.follow(random_cuts(1, 50, 300)))
        assert cut.connections == 51
        assert undisturbed.connections == 1
        assert pieces.frames == whole.frames
        assert "".join(f"t{number} " for number in range(2000)) in whole.frames[-1].data.decode()
        recorded.histories += [whole, pieces]
        assert await judge(mesh, recorded) == []
        assert mesh.tracebacks() == []


async def test_resume_is_exact_while_the_edge_is_killed_and_restarted(tmp_path: Path) -> None:
    recorded = Recorded()
    async with running_mesh(tmp_path, *SERVICES) as mesh, PatientClient() as client:
        edge = mesh.processes[-1]
        task = await submit(client, mesh.ingress_url, recorded, SCRIPT)
        viewers = [Viewer(str(mesh.settings.edge_address), task) for _ in range(3)]
        following = [asyncio.create_task(viewer.follow()) for viewer in viewers]
        for _ in range(3):
            await more_frames(viewers[0])
            await edge.kill()
            await edge.start()
        recorded.histories += await asyncio.gather(*following)
        assert viewers[0].connections == 4
        assert await judge(mesh, recorded) == []


async def test_resume_is_exact_while_the_broker_is_killed_and_restarted(tmp_path: Path) -> None:
    recorded = Recorded()
    async with running_mesh(tmp_path, *SERVICES) as mesh, PatientClient() as client:
        task = await submit(client, mesh.ingress_url, recorded, SCRIPT)
        viewers = [Viewer(str(mesh.settings.edge_address), task) for _ in range(3)]
        cuts = [lambda _: False, random_cuts(2, 20, 200), random_cuts(3, 50, 200)]
        following = [asyncio.create_task(viewer.follow(cut)) for viewer, cut in zip(viewers, cuts, strict=True)]
        for _ in range(2):
            await more_frames(viewers[0])
            await mesh.broker.kill()
            await mesh.broker.start()
        recorded.histories += await asyncio.gather(*following)
        assert viewers[0].connections == 1, "a broker's restart need not break a stream"
        assert await judge(mesh, recorded) == []
