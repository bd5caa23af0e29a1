"""Clients that generators make of openapi.json compile, and run a task: submit it, wait for it, read it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.support import children, toolchains
from tests.support.processes import running_mesh

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio]

RUN_SECONDS = 60.0


@pytest.mark.parametrize("language", ["python", "typescript", "go"])
async def test_a_generated_client_compiles_and_runs_a_task(tmp_path: Path, language: str) -> None:
    command = await asyncio.to_thread(toolchains.generated_client, language)
    async with running_mesh(tmp_path, "ingress", "stream_edge", "inference_worker") as mesh:
        run = await asyncio.to_thread(children.run_blocking, [*command, mesh.ingress_url], seconds=RUN_SECONDS)
    assert run.returncode == 0, run.stdout + run.stderr
    answers = json.loads(run.stdout)
    task = answers["accepted"]["id"]
    assert (answers["accepted"]["tenant"], answers["accepted"]["sequence"]) == ("default", 0)
    for record in (answers["ended"], answers["read"]):
        assert (record["id"], record["status"]) == (task, "completed")
        assert "hello" in record["output"]
    assert answers["absent"] == "not-found"
