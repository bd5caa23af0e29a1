"""Nobody asks the broker for more than there is: else each read costs what all other tasks have stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts import subjects
from contracts.streams import TRIGGERS_BUCKET
from mesh.broker.connection import connect
from mesh.broker.direct_get import read_page
from tests.support.agents import TENANT, Agents
from tests.support.clients import Viewer
from tests.support.http_client import PatientClient
from tests.support.past import PastTask, store
from tests.support.processes import running_mesh
from tests.support.reads import tapped
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

SERVICES = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
SCRIPT = '!call add {"a": 1, "b": 2}\n!ask Which quarter?\n!then\n!say 40\ndone'
OTHERS = 50
WALKS = {
    # Retention goes along all milestones, which are most of what is there.
    ("EVENTS", subjects.EVENTS_LOG),
    # Rules are nearly all that is in their bucket, which is small.
    (TRIGGERS_BUCKET.stream_name, subjects.TRIGGER_RULES),
}


async def test_in_a_tasks_life_no_process_searches_for_what_is_not_there(tmp_path: Path) -> None:
    async with (
        running_mesh(tmp_path, *SERVICES) as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
        tapped(mesh.settings) as tap,
    ):
        agents = Agents(connection)
        answer = await client.post(
            "/v1/tasks", json={"input": SCRIPT, "tools": ["add"]}, headers={"Idempotency-Key": "1"}
        )
        task = answer.json()["id"]
        await agents.until_status(task, "waiting")
        await store(connection.requests, [PastTask(ended=True)] * OTHERS)
        await agents.say(task, "the third")
        await agents.until_status(task, "completed")
        await until_no_work_is_left(connection)
        again = await client.post(
            "/v1/tasks", json={"input": SCRIPT, "tools": ["add"]}, headers={"Idempotency-Key": "1"}
        )
        assert again.json()["id"] == task
        assert (await client.get(f"/v1/tasks/{task}")).json()["status"] == "completed"
        viewer = Viewer(str(mesh.settings.edge_address), task)
        assert (await viewer.follow(cut=lambda frames: frames % 5 == 0)).frames
        failed = (await client.post("/v1/tasks", json={"input": "!fail", "max_turns": 1})).json()["id"]
        listed = await client.get("/v1/tasks")
        assert len(listed.json()["tasks"]) > 1
        follow_up = await client.post("/v1/tasks", json={"input": "hello", "continues": task})
        await agents.until_status(follow_up.json()["id"], "completed")
        await client.get(f"/v1/dead-letters/{failed}")
        await client.post(f"/v1/tasks/{failed}/cancel")
        # Each of the stewards' looks comes round.
        seen = {"TASKS", "KV_tasks", "EVENTS"}
        await until(lambda: {read.stream for read in tap.reads} >= seen)
        assert await tap.searching() - WALKS == set()
        assert len(tap.reads) > 50
        # The negative controls: a journal read by one filter over both of its subjects.
        await read_page(connection.requests, "EVENTS", subjects.journal(TENANT, task), 0)
        # And all of a stream by a batch, for which the server counts each subject.
        await read_page(connection.requests, "KV_tasks", ">", 0, 1)
        controls = {("EVENTS", subjects.journal(TENANT, task)), ("KV_tasks", ">")}
        assert await tap.searching() - WALKS == controls
