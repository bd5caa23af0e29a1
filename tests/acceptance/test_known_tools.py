"""Which tools there are, as the ingress tells it, and tasks that name one which is not there."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.records.tools import ToolDeclaration
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import last_sequence
from tests.support import children
from tests.support.agents import Agents
from tests.support.http_client import PatientClient
from tests.support.processes import running_mesh

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Bench:
    """An ingress alone, and its broker."""

    connection: Connection
    client: httpx.AsyncClient

    async def last(self, stream: str) -> int:
        """The last sequence that a stream has given out."""
        return await last_sequence(self.connection.requests, stream)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One ingress for all cases."""
    folder = tmp_path_factory.mktemp("tools")
    file = folder / "mesh.toml"
    file.write_text('[tools.zz_last]\napproval = "always"')
    async with (
        running_mesh(folder, "ingress", MESH_CONFIG=str(file)) as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        yield Bench(connection, client)
        assert mesh.tracebacks() == []


async def test_a_tool_that_nobody_ever_declared_is_refused_with_the_nearest_name(bench: Bench) -> None:
    before = await bench.last("TASKS")
    refused = await bench.client.post("/v1/tasks", json={"input": "hello", "tools": ["add", "calculater", "shell"]})
    assert (refused.status_code, refused.json()["code"]) == (422, "tool-unknown")
    assert refused.json()["detail"].startswith(
        "nobody has declared a tool calculater (nor shell); did you mean calculator?"
    )
    assert await bench.last("TASKS") == before


async def test_a_tool_is_known_that_is_declared_or_that_was_served_within_a_day(bench: Bench) -> None:
    requests = bench.connection.requests
    declared = ToolDeclaration(name="declared_now", description="", parameters={"type": "object"})
    await requests.publish("$KV.tools.declared_now", encode(declared))
    config = {"durable_name": "tool-once", "ack_policy": "explicit", "filter_subject": "tools.once"}
    await requests.api("CONSUMER.DURABLE.CREATE.TOOLS.tool-once", {"stream_name": "TOOLS", "config": config})
    tools = ["declared_now", "once", "ask_user", "spawn_task"]
    accepted = await bench.client.post("/v1/tasks", json={"input": "hello", "tools": tools})
    assert accepted.status_code == 202, accepted.text


async def test_an_accepted_task_stays_accepted_when_its_tool_is_forgotten(bench: Bench) -> None:
    requests, keyed = bench.connection.requests, {"Idempotency-Key": new_id()}
    declared = ToolDeclaration(name="short_lived", description="", parameters={"type": "object"})
    await requests.publish("$KV.tools.short_lived", encode(declared))
    body = {"input": "hello", "tools": ["short_lived"]}
    first = await bench.client.post("/v1/tasks", json=body, headers=keyed)
    await requests.api("STREAM.PURGE.KV_tools", {"filter": "$KV.tools.short_lived"})
    again = await bench.client.post("/v1/tasks", json=body, headers=keyed)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["id"] == first.json()["id"]


async def test_the_tools_that_there_are_are_listed_by_name_in_pages_with_the_operators_word(bench: Bench) -> None:
    for name in ("zz_last", "zz_more"):
        declared = ToolDeclaration(name=name, description=f"Does {name}.", parameters={"type": "object"})
        await bench.connection.requests.publish(f"$KV.tools.{name}", encode(declared))
    await bench.connection.requests.publish("$KV.tools.zz_rubbish", b"{}")
    await bench.connection.requests.publish("$KV.tools.ZZ_no_name", b"{}")
    names: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": "2"} | ({"cursor": cursor} if cursor is not None else {})
        page = (await bench.client.get("/v1/tools", params=query)).json()
        names += [tool["name"] for tool in page["tools"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert names == sorted(names)
    assert {"ask_user", "zz_last", "zz_more"} <= set(names)
    assert "zz_rubbish" not in names
    listed = (await bench.client.get("/v1/tools", params={"cursor": "zz_k"})).json()["tools"]
    assert [(tool["name"], tool.get("approval")) for tool in listed] == [("zz_last", "always"), ("zz_more", None)]
    for query in ({"limit": "0"}, {"cursor": "No Name"}):
        refused = await bench.client.get("/v1/tools", params=query)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid-request")


async def test_meshctl_lists_the_tools(bench: Bench) -> None:
    environment = {**os.environ, "MESH_INGRESS_URL": str(bench.client.base_url), "MESH_CONFIG": os.devnull}
    listed = await children.run([sys.executable, "-m", "meshctl", "tools"], environment)
    assert listed.returncode == 0
    tools = [json.loads(line) for line in listed.stdout.splitlines()]
    assert "ask_user" in [tool["name"] for tool in tools]
    assert all(tool["parameters"] for tool in tools)


async def test_a_task_without_a_tool_that_it_names_says_so_in_its_journal_and_in_the_log(tmp_path: Path) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text("[pools.default]\ntool_wait_seconds = 0.1")
    async with (
        running_mesh(tmp_path, "inference_worker", MESH_CONFIG=str(file)) as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        agents = Agents(connection)
        task = await agents.submit("hello", tools=["away_tool", "ask_user"])
        completed = (await agents.until_status(task, "completed")).turn(1).completed
        await agents.close()
        assert completed is not None
        assert completed.missing_tools == ["away_tool"]
        [said] = mesh.logs_of("turn.tools_missing")
        assert said["tools"] == ["away_tool"]
        assert mesh.tracebacks() == []
