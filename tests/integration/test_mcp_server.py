"""Connections to what is no MCP server: a call ends, the connection is tried again, and a stop is a stop."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from tests.support.broker import free_port
from tests.support.mcp_connection import running
from tests.support.patience import stretched
from tests.support.waiting import until
from tests.support.web_server import web_server
from tool_runner.mcp_servers import session
from tool_runner.mcp_servers.session import McpServer
from tool_runner.tools.tool import ToolRefused

pytestmark = pytest.mark.integration

UNUSED: Any = None


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter bounds than anybody would want for real servers."""
    monkeypatch.setattr(session, "CONNECT_SECONDS_MAX", stretched(0.5))
    monkeypatch.setattr(session, "WAIT_SECONDS_MAX", stretched(1.0))


async def assert_unavailable(server: McpServer) -> None:
    with pytest.raises(ToolRefused) as refused:
        await server.call("any", {}, UNUSED, idempotent=True)
    assert refused.value.code == "tool-unavailable"


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(1)",
        "while True: print('y', flush=True)",
        "import sys, time; sys.stdout.buffer.write(b'\\xff\\x00' * 1000); sys.stdout.flush(); time.sleep(60)",
        "import time; time.sleep(60)",
        'print(\'{"jsonrpc": "2.0", "id": 0, "result": {}}\', flush=True); import time; time.sleep(60)',
    ],
    ids=["ends", "floods", "bytes", "silent", "wrong answer"],
)
async def test_a_program_that_is_no_server(program: str) -> None:
    async with running(command=[sys.executable, "-c", program]) as server:
        await assert_unavailable(server)


async def test_a_program_that_is_not_there() -> None:
    async with running(command=["/nowhere/program"]) as server:
        await assert_unavailable(server)


async def test_a_port_where_nobody_listens() -> None:
    async with running(url=f"http://127.0.0.1:{free_port()}/mcp") as server:
        await assert_unavailable(server)


@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        ("200 OK", "text/html", b"<html>"),
        ("200 OK", "application/json", b"rubbish"),
        ("200 OK", "application/json", b'{"jsonrpc":"2.0","id":0,"result":{}}'),
        ("200 OK", "text/event-stream", b"data: rubbish\n\n"),
        ("500 Broken", "text/plain", b""),
        ("302 Found", "text/plain", b""),
    ],
)
async def test_a_web_server_that_is_no_mcp_server(status: str, content_type: str, body: bytes) -> None:
    async with web_server() as web:
        web.answer("/mcp", body, status, content_type=content_type, location="http://127.0.0.1:1/")
        async with running(url=f"http://127.0.0.1:{web.port}/mcp") as server:
            await assert_unavailable(server)
            await until(lambda: len(web.requests) > 2)


async def test_a_server_that_accepts_and_says_nothing() -> None:
    held: list[asyncio.StreamWriter] = []

    def on_connection(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    listener = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with running(url=f"http://127.0.0.1:{port}/mcp") as server:
        await assert_unavailable(server)
    for writer in held:
        writer.close()
    listener.close()
