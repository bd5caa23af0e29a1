"""MCP servers that do as a test says: over HTTP on the test's loop, or as a program, `python -m … <script as JSON>`.

They speak the handshake of 2025-11-25, answer in JSON, and know only what a client of tools asks for.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.listening import listening

VERSION = "2025-11-25"
CHANGED = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}


def tool(name: str, **fields: Any) -> dict[str, Any]:
    """A tool as a server lists it."""
    return {"name": name, "inputSchema": {"type": "object"}, **fields}


def answer_to(request: dict[str, Any], tools: list[Any], results: dict[str, Any]) -> dict[str, Any] | None:
    """The answer to a message of a client; None to a notification. `results` are those of calls, by tool."""
    identifier = request.get("id")
    if identifier is None:
        return None
    match request.get("method"):
        case "initialize":
            capabilities = {"tools": {"listChanged": True}}
            information = {"name": "scripted", "version": "1"}
            result: Any = {"protocolVersion": VERSION, "capabilities": capabilities, "serverInfo": information}
        case "tools/list":
            result = {"tools": tools}
        case "tools/call":
            name = request["params"]["name"]
            result = results.get(name, {"content": [{"type": "text", "text": f"{name} done"}]})
        case "ping":
            result = {}
        case method:
            error = {"code": -32601, "message": f"no method {method}"}
            return {"jsonrpc": "2.0", "id": identifier, "error": error}
    return {"jsonrpc": "2.0", "id": identifier, "result": result}


class ScriptedMcp:
    """A server over HTTP with sessions. `status` is what it answers in place of anything else; `heads` are requests."""

    def __init__(self) -> None:
        self.port = 0
        self.tools: list[Any] = [tool("look")]
        self.results: dict[str, Any] = {}
        self.status: str | None = None
        self.heads: list[dict[str, str]] = []
        self.methods: list[str] = []
        self.begun = 0
        """Sessions so far."""
        self._session: str | None = None
        self._listeners: list[asyncio.StreamWriter] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    @property
    def listeners(self) -> int:
        """Clients that hear of changes."""
        return len(self._listeners)

    def forget(self) -> None:
        """Know no session any more, as after a restart."""
        self._session = None

    async def say(self, message: dict[str, Any]) -> None:
        """Tell those who listen."""
        for writer in self._listeners:
            writer.write(f"event: message\ndata: {json.dumps(message)}\n\n".encode())
            await writer.drain()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                await self._exchange(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        head = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        body = await reader.readexactly(int(head.get("content-length", "0")))
        self.heads.append(head)
        if self.status is not None:
            return await _send(writer, self.status)
        if first.startswith("GET"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            await writer.drain()
            self._listeners.append(writer)
            await asyncio.Event().wait()
        if not first.startswith("POST"):
            return await _send(writer, "200 OK")
        request = json.loads(body)
        self.methods.append(request.get("method", ""))
        more = ""
        if request.get("method") == "initialize":
            self.begun += 1
            self._session = f"session-{self.begun}"
            more = f"mcp-session-id: {self._session}\r\n"
        elif "mcp-session-id" in head and head["mcp-session-id"] != self._session:
            return await _send(writer, "404 Not Found")
        answer = answer_to(request, self.tools, self.results)
        if answer is None:
            return await _send(writer, "202 Accepted")
        return await _send(writer, "200 OK", json.dumps(answer).encode(), more)


async def _send(writer: asyncio.StreamWriter, status: str, body: bytes = b"", more: str = "") -> None:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


@asynccontextmanager
async def scripted_mcp() -> AsyncIterator[ScriptedMcp]:
    """A server on 127.0.0.1."""
    server = ScriptedMcp()
    async with listening(server.serve) as server.port:
        yield server


def main(script: dict[str, Any]) -> None:
    """Answer standard input. A call of `flood` writes a line without end, one of `change` changes the tools."""
    tools = script["tools"]
    for line in sys.stdin:
        request = json.loads(line)
        called = request.get("params", {}).get("name") if request.get("method") == "tools/call" else None
        if called == "flood":
            while True:
                sys.stdout.write("x" * 1_000_000)
        answer = answer_to(request, tools, script.get("results", {}))
        if called == "change":
            tools = [*tools, tool("new")]
            sys.stdout.write(json.dumps(CHANGED) + "\n")
        if answer is not None:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
