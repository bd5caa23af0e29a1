"""An upgrade with full queues: what the release before has put into TASKS, and its processes beside this version's."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.streams import BACKLOG, TASKS
from mesh.broker.direct_get import subjects_of
from tests.acceptance.test_upgrade import PREVIOUS, Upgrade, previous_mesh
from tests.support.broker import free_port
from tests.support.checker import check, read_stored
from tests.support.http_client import PatientClient
from tests.support.releases import release
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

FLOOD = 120
FEW = 5


@pytest.fixture
def old() -> dict[str, str]:
    """The variables of a process of the release before."""
    return release(PREVIOUS)


async def waiting(upgrade: Upgrade, stream: str) -> int:
    return sum((await subjects_of(upgrade.connection.requests, stream, ">")).values())


async def test_a_full_queue_of_the_release_before_is_worked_off_beside_what_waits_its_turn(
    tmp_path: Path, old: dict[str, str]
) -> None:
    async with previous_mesh(tmp_path, old) as upgrade:
        [worker] = [each for each in upgrade.mesh.processes if each.service == "inference_worker"]
        await worker.stop()
        for _ in range(FLOOD):
            await upgrade.submit("!say 1")
        await upgrade.meshctl("streams", "apply", statuses=(0, 3))
        # Beside the release before: a steward, and an ingress. Those of the other version stay.
        await upgrade.mesh.start("steward")
        ingress = await upgrade.mesh.start("ingress", MESH_INGRESS_ADDRESS=f"127.0.0.1:{free_port()}")
        before, upgrade.client = upgrade.client, PatientClient(base_url=f"http://{ingress.address}")

        async def is_ordered() -> bool:
            return await upgrade.connection.requests.backlog_lanes.look("default", "normal")

        await until(is_ordered)
        lay_in_tasks = await waiting(upgrade, TASKS.name)

        async def goes_by_backlog() -> bool:
            await upgrade.submit("!say 1")
            return await waiting(upgrade, BACKLOG.name) >= FEW

        await until(goes_by_backlog)
        upgrade.client, after = before, upgrade.client
        for _ in range(FEW):
            await upgrade.submit("!say 2")  # By the other ingress, which knows nothing of this.
        assert await waiting(upgrade, TASKS.name) >= lay_in_tasks + FEW
        await upgrade.mesh.start("inference_worker")
        await upgrade.mesh.start("inference_worker", **old)
        await until_no_work_is_left(upgrade.connection, 90)
        stored = await read_stored(upgrade.connection.requests)
        assert check(upgrade.recorded, stored) == []
        ends = [journal[-1].event["type"] for journal in stored.journals.values()]
        assert set(ends) == {"task.completed"}
        assert upgrade.mesh.tracebacks() == []
        await after.aclose()
