"""Each stream that a task needs, nearly full: no new task is taken, and everybody who can tell says which it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import pytest
import pytest_asyncio

from contracts import headers
from mesh.broker.connection import Connection, connect
from mesh.broker.levels import NEEDED
from tests.support.http_client import PatientClient
from tests.support.limits import level, limit, unlimit
from tests.support.processes import Mesh, running_mesh
from tests.support.up import meshctl
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

FILLER_BYTES = 200_000
SUBJECTS = {
    "EVENTS": "events.default.00000000000000000000000000.log",
    "TASKS": "tasks.idle.normal.default",
    "TURNS": "turns.idle.normal.default",
    "TOOLS": "tools.idle",
    "CONTROL": "control.cancel.default",
    "TIMERS": "timers.at.cron.default.idle",
    "DEAD_LETTERS": "dead.default.malformed",
    "OBJ_results": "$O.results.C.idle",
    "KV_tasks": "$KV.tasks.default.idle",
}
"""Where a message takes room and means nothing to anybody: no worker runs, nor a steward."""


@dataclass
class Watched:
    """An ingress alone, and who asks it."""

    mesh: Mesh
    connection: Connection
    client: PatientClient

    async def post(self) -> tuple[int, dict[str, object]]:
        """A new task: the status and the body of the answer."""
        answer = await self.client.post(f"{self.mesh.ingress_url}/v1/tasks", json={"input": "hello"})
        return answer.status_code, answer.json()

    async def ready(self) -> tuple[int, dict[str, str]]:
        """Readiness: the status, and what is said of each check that is red."""
        answer = await self.client.get(f"{self.mesh.ingress_url}/health/ready")
        red = {each["name"]: each.get("detail", "") for each in answer.json()["checks"] if not each["ok"]}
        return answer.status_code, red


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    async with (
        running_mesh(tmp_path_factory.mktemp("limits"), "ingress") as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient() as client,
    ):
        yield Watched(mesh, connection, client)


@pytest.mark.parametrize("stream", NEEDED)
async def test_a_stream_that_is_nearly_full_is_named_by_all_and_no_new_task_is_taken(
    watched: Watched, stream: str
) -> None:
    requests = watched.connection.requests
    schedule: Mapping[str, str] | None = None
    if stream == "TIMERS":
        schedule = {headers.SCHEDULE: "@yearly", headers.SCHEDULE_TARGET: "timers.fired.cron.default.idle"}
    await requests.publish(SUBJECTS[stream], b"x" * FILLER_BYTES, dict(schedule) if schedule else None)
    used = (await level(requests, stream)).used_bytes
    await limit(requests, stream, max_bytes=int(used / 0.93))

    async def is_seen() -> bool:
        # Not by posting: what is still taken would fill TASKS itself.
        return (await watched.ready())[0] == 503

    await until(is_seen)
    status, problem = await watched.post()
    assert (status, problem["code"]) == (503, "queue-full")
    assert f"storage of {stream} is 9" in str(problem["detail"])
    status, red = await watched.ready()
    assert (status, set(red)) == (503, {stream})
    assert "9" in red[stream]
    assert watched.mesh.logs_of("storage.high_water")[-1]["full"] == [stream]

    answer = await meshctl("doctor", environment=watched.mesh.environment)
    assert answer.returncode == 1
    [line] = [line for line in answer.stdout.splitlines() if '"storage"' in line]
    assert '"fail"' in line
    assert f"{stream} 9" in line

    await unlimit(requests, stream)

    async def has_room() -> bool:
        return (await watched.ready())[0] == 200

    await until(has_room)
    assert (await watched.post())[0] == 202
