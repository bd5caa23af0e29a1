"""Tasks that an earlier version has begun are served and gone on with by the services of this one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from mesh.broker.connection import Connection, connect
from tests.golden import reading
from tests.golden.reading import Golden, as_stored, subject_of
from tests.support.agents import Agents
from tests.support.clients import Viewer
from tests.support.http_client import PatientClient
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

SERVICES = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
VERSION = "0.1"


@dataclass
class Bench:
    """A mesh of this version over journals of an earlier one."""

    mesh: Mesh
    connection: Connection
    client: PatientClient
    agents: Agents

    async def store(self, name: str, deadline: datetime | None = None) -> Golden:
        """Write the journals of a file, as they were written then, but for a deadline."""
        golden = reading.read(reading.JOURNALS / VERSION / f"{name}.json", deadline)
        events = sorted((each for task in golden.tasks for each in task.events), key=lambda each: each[0])
        for _, event in events:
            await self.connection.requests.publish(subject_of(event), as_stored(event))
        return golden

    async def publish(self, golden: Golden, prefix: str) -> None:
        """Publish the messages of a file whose subject begins so, as they were published then."""
        for message in golden.messages:
            if message["subject"].startswith(prefix):
                await self.connection.requests.publish(
                    message["subject"], as_stored(message["payload"]), message["headers"]
                )

    async def post(self, task: str, path: str, body: dict[str, Any]) -> None:
        """A request that is accepted."""
        prefix = "dead-letters" if path == "replay" else "tasks"
        response = await self.client.post(f"/v1/{prefix}/{task}/{path}", json=body)
        assert response.status_code == 202, response.text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One mesh for all cases."""
    async with (
        running_mesh(tmp_path_factory.mktemp("golden"), *SERVICES) as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url, timeout=20) as client,
    ):
        agents = Agents(connection)
        yield Bench(mesh, connection, client, agents)
        await agents.close()
        await until_no_work_is_left(connection)
        assert mesh.tracebacks() == []


@pytest.mark.parametrize("name", ["agent", "replayed", "long", "taken_over_restarted", "compacted"])
async def test_an_ended_task_is_served_as_its_own_version_served_it(bench: Bench, name: str) -> None:
    golden = await bench.store(name)
    for task in golden.tasks:
        response = await bench.client.get(f"/v1/tasks/{task.task}")
        assert response.status_code == 200, response.text
        shown = {key: value for key, value in response.json().items() if key not in ("sequence", "links")}
        assert shown == {key: value for key, value in task.record.items() if key != "sequence"}
        history = await Viewer(str(bench.mesh.settings.edge_address), task.task).follow()
        assert [frame.data for frame in history.frames] == [as_stored(event) for _, event in task.events]


async def test_a_task_that_was_accepted_runs(bench: Bench) -> None:
    golden = await bench.store("queued", datetime.now(UTC) + timedelta(days=1))
    await bench.publish(golden, "tasks.")
    state = await bench.agents.until_status(golden.tasks[0].task, "completed")
    assert state.output_so_far == "t0 "


async def test_calls_that_were_asked_for_are_carried_out_and_the_next_turn_follows(bench: Bench) -> None:
    golden = await bench.store("waits_for_its_tool")
    await bench.publish(golden, "tools.")
    state = await bench.agents.until_status(golden.tasks[0].task, "completed")
    assert {call: result.result for call, result in state.call_results.items()} == {"1-0": 3, "1-1": 7}  # type: ignore[union-attr]  # both completed


async def test_a_person_decides_and_answers(bench: Bench) -> None:
    golden = await bench.store("waits_for_a_person")
    task = golden.tasks[0].task
    await bench.post(task, "inputs", {"kind": "approval", "call": "1-0", "decision": "approved"})
    await bench.post(task, "inputs", {"kind": "message", "text": "the third"})
    state = await bench.agents.until_status(task, "completed")
    assert "the third" in (state.output_so_far or "")


async def test_a_sub_task_goes_on_and_its_parent_after_it(bench: Bench) -> None:
    golden = await bench.store("waits_for_its_child")
    parent, child = (task.task for task in golden.tasks)
    await bench.post(child, "inputs", {"kind": "message", "text": "a lot"})
    await bench.agents.until_status(child, "completed")
    state = await bench.agents.until_status(parent, "completed")
    assert "a lot" in (state.output_so_far or "")


async def test_a_dead_letter_is_repaired(bench: Bench) -> None:
    golden = await bench.store("dead_lettered")
    task = golden.tasks[0].task
    await bench.post(task, "replay", {"edits": {"pool": "default", "model": "scripted", "input": "!say 2"}})
    state = await bench.agents.until_status(task, "completed")
    assert state.output_so_far == "t0 t1 "
