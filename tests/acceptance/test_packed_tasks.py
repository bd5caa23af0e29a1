"""Packed tasks through real processes: served as before, read by the documented commands of the CLI, and moved."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from mesh.broker.embedded import ADMIN, login_path, read_login
from tests.support import children
from tests.support.pages import read_page
from tests.support.toolchains import nats_cli
from tests.support.waiting import until
from tests.support.walks import PageMesh, page_mesh

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SECTION = read_page("docs/operating.md").section("Packed tasks")
TEXT = "t0 t1 t2 "


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PageMesh]:
    with page_mesh(tmp_path_factory.mktemp("packed"), MESH_PACK_AFTER_HOURS="0.0003") as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def packed(mesh: PageMesh) -> dict[str, Any]:
    """The record of a task that was packed since it ended."""
    async with httpx.AsyncClient(base_url=mesh.address("ingress"), timeout=30) as client:
        body = {"input": "!say 3", "metadata": {"order": 42}}
        posted = await client.post("/v1/tasks", json=body, headers={"Prefer": "wait=20"})
        record: dict[str, Any] = posted.json()
        assert record["status"] == "completed", record

        async def is_packed() -> bool:
            events = await client.get(f"{mesh.address('stream edge')}/v1/tasks/{record['id']}/events")
            return "event: stream.gap" in events.text

        await until(is_packed)
    return record


def run(mesh: PageMesh, command: str, **variables: str) -> str:
    """What a command prints in a reader's shell."""
    done = children.run_blocking(["bash", "-c", command], {**mesh.environment, **variables})
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_it_is_served_and_listed_as_before(mesh: PageMesh, packed: dict[str, Any]) -> None:
    async with httpx.AsyncClient(base_url=mesh.address("ingress"), timeout=30) as client:
        assert (await client.get(f"/v1/tasks/{packed['id']}")).json() == packed
        for query in ("", "?metadata.order=42", "?status=completed"):
            listed = (await client.get(f"/v1/tasks{query}")).json()["tasks"]
            assert [each["id"] for each in listed] == [packed["id"]], query
        continued = await client.post(
            "/v1/tasks", json={"input": "!say 1", "continues": packed["id"]}, headers={"Prefer": "wait=20"}
        )
        assert continued.json()["status"] == "completed"
        events = await client.get(f"{mesh.address('stream edge')}/v1/tasks/{packed['id']}/events")
    assert TEXT.strip() in events.text
    assert events.text.rstrip().endswith("}")
    assert "event: task.completed" in events.text


async def test_the_nats_cli_reads_it_by_the_documented_commands(mesh: PageMesh, packed: dict[str, Any]) -> None:
    cli = nats_cli()
    login = read_login(login_path(mesh.home, ADMIN))
    assert login is not None
    variables = {
        "TASK": packed["id"],
        "NATS_URL": mesh.address("broker"),
        "NATS_USER": login.user or "",
        "NATS_PASSWORD": login.password or "",
        "PATH": f"{cli.parent}:{os.environ['PATH']}",
    }
    finds, reads = [command.text for command in SECTION.commands]
    (place,) = [value for name, value in json.loads(run(mesh, finds, **variables)).items() if packed["id"] in name]
    line = json.loads(run(mesh, reads.replace('{"seq":17}', json.dumps({"seq": place[0]})), **variables))
    assert line["task"] == packed["id"]
    assert line["record"]["output"] == packed["output"] == TEXT
    assert line["events"][-1]["event"]["type"] == "task.completed"


async def test_what_is_exported_is_imported_once(mesh: PageMesh, packed: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    run(mesh, f"meshctl export --tenant default {packed['id']} > {file}")
    (line,) = [json.loads(each) for each in file.read_text().splitlines()]
    assert line["record"]["output"] == TEXT
    assert json.loads(run(mesh, f"meshctl import {file}")) == {"taken": 0, "there": 1, "refused": 0}
    with page_mesh(tmp_path) as other:
        assert json.loads(run(other, f"meshctl import {file}")) == {"taken": 1, "there": 0, "refused": 0}
        async with httpx.AsyncClient(base_url=other.address("ingress"), timeout=30) as client:
            moved = (await client.get(f"/v1/tasks/{packed['id']}")).json()
            assert moved["output"] == packed["output"]
            assert [each["id"] for each in (await client.get("/v1/tasks")).json()["tasks"]] == [packed["id"]]
