"""A tool's image, from a real MCP server to the model: whole tasks, real processes, each wire."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_model_servers import configured as on_server
from tests.acceptance.test_own_model import SERVICES, journal_of, of_type, run_task
from tests.support import messages_server
from tests.support.checker import Recorded
from tests.support.clients import Viewer, submit
from tests.support.http_client import PatientClient
from tests.support.mcp_server import PNG
from tests.support.messages_server import ended, saying, started, tool_use
from tests.support.model_server import DONE, Exchange, ModelServer, chunk, model_server, openai
from tests.support.patience import within
from tests.support.processes import ROOT, Mesh, running_mesh
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

TOOL = "local_draw"
DATA = base64.b64encode(PNG).decode()


def configured(folder: Path, server: ModelServer, kind: str, more: str) -> dict[str, str]:
    """A mesh with one tool server, whose pool is on that server of models."""
    base_url = server.base_url if kind == "openai" else server.base_url.removesuffix("/v1")
    variables = on_server(folder, base_url, more, kind)
    trace = folder / "trace"
    trace.touch()
    with (folder / "mesh.toml").open("a") as file:
        # Behind the table of the pool, which the first line belongs to.
        file.write(
            f"""
        tool_wait_seconds = 60
        [mcp.local]
        command = ["{sys.executable}", "-m", "tests.support.mcp_server", "stdio"]
        env = {{ TRACE_FILE = "{trace}", PYTHONPATH = "{ROOT}" }}
        """
        )
    return variables | {"MESH_LOG_LEVEL": "debug"}


async def calling(exchange: Exchange) -> None:
    """Asks for an image, on either wire, and says a word once its call is answered."""
    messages_api = exchange.path.endswith("/messages")
    if len(exchange.body["messages"]) > 1:
        await (messages_server.hello if messages_api else openai)(exchange)
    elif messages_api:
        await saying(started(), tool_use(0, TOOL, "{}"), ended("tool_use", 4))(exchange)
    else:
        await exchange.begin()
        call = {"index": 0, "id": "call_0", "type": "function", "function": {"name": TOOL, "arguments": "{}"}}
        await exchange.say(chunk({"tool_calls": [call]}), chunk({}, "tool_calls"))
        await exchange.send(DONE)
        await exchange.end()


def parts_of(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All parts of what is behind the call, those inside of an answer as well."""
    parts: list[dict[str, Any]] = []
    for message in messages[2:]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            parts += [part, *(part["content"] if isinstance(part.get("content"), list) else ())]
    return parts


async def is_nowhere_else(mesh: Mesh, task: str) -> bool:
    """Whether the image is neither in a log nor in the journal."""
    told = json.dumps(await journal_of(mesh, task))
    return all(DATA[:40] not in text for text in (told, *(each.log.read_text() for each in mesh.processes)))


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_a_model_that_takes_images_is_given_what_a_tool_has_drawn(tmp_path: Path, kind: str) -> None:
    async with model_server(calling) as server:
        variables = configured(tmp_path, server, kind, "images = true")
        async with running_mesh(tmp_path, *SERVICES, "tool_runner", **variables) as mesh:
            task = await run_task(mesh, Recorded(), tools=[TOOL])
            journal = await journal_of(mesh, task)
            assert await is_nowhere_else(mesh, task)
            assert mesh.tracebacks() == []
    assert of_type(journal, "task.completed")[0]["output"] == "Hello"
    parts = parts_of(server.exchanges[1].body["messages"])
    if kind == "openai":
        assert parts[1:] == [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}]
    else:
        source = {"type": "base64", "media_type": "image/png", "data": DATA}
        assert parts[-1] == {"type": "image", "source": source}


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_a_model_that_takes_none_reads_type_and_size(tmp_path: Path, kind: str) -> None:
    async with model_server(calling) as server:
        variables = configured(tmp_path, server, kind, "")
        async with running_mesh(tmp_path, *SERVICES, "tool_runner", **variables) as mesh:
            await run_task(mesh, Recorded(), tools=[TOOL])
            assert mesh.tracebacks() == []
    answer = server.exchanges[1].body["messages"][2]
    content = answer["content"] if kind == "openai" else answer["content"][0]["content"]
    assert '{"type":"image","mimeType":"image/png","bytes":200008}' in content
    assert len(server.exchanges[1].body["messages"]) == 3


async def test_whoever_takes_a_turn_over_gives_the_same_images(tmp_path: Path) -> None:
    async def begins(exchange: Exchange) -> None:
        if len(exchange.body["messages"]) == 1:
            await calling(exchange)
            return
        await exchange.begin()
        await exchange.say(chunk({"content": "Hel"}))
        await exchange.gone.wait()

    async with model_server(begins) as server:
        variables = configured(tmp_path, server, "openai", "images = true") | {"MESH_ACK_WAIT_SECONDS": "1"}
        async with running_mesh(tmp_path, "tool_runner", *SERVICES, **variables) as mesh:
            async with PatientClient() as client:
                task = await submit(client, mesh.ingress_url, Recorded(), "hello", tools=[TOOL])
            viewer = Viewer(str(mesh.settings.edge_address), task)
            following = asyncio.create_task(viewer.follow())
            await until(lambda: any("output.delta" in frame for frame in viewer.history.frames))
            server.behave = openai
            await mesh.processes[-1].kill()
            await mesh.start("inference_worker")
            async with within(60):
                await following
            assert mesh.tracebacks() == []
    _, first, second = (exchange.body["messages"] for exchange in server.exchanges)
    assert first == second
    assert DATA in json.dumps(second)
