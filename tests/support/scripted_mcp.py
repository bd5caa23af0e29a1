"""MCP servers that do as a test says: over HTTP on the test's loop, or as a program, `python -m … <script as JSON>`.

They speak the handshake of 2025-11-25, answer in JSON, and know only what a client of tools asks for. Over HTTP they
may be of 2026-07-28 as well, which has no sessions, and whose changes come in answer to a request.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

from tests.support.listening import listening

VERSION = "2025-11-25"
MODERN = "2026-07-28"
CHANGED = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
LISTEN = "subscriptions/listen"
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
CACHING = {"resultType": "complete", "cacheScope": "private", "ttlMs": 0}
"""What a list of 2026-07-28 must say."""

Listening = Literal[
    "streams",
    "is silent",
    "grants nothing",
    "closes",
    "breaks",
    "hangs up",
    "packs",
    "no method",
    "404 Not Found",
    "405 Method Not Allowed",
    "500 Internal Server Error",
]


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
    """A server over HTTP. `status` is what it answers in place of anything else; `heads` are requests.

    With sessions, unless it is of `MODERN`.
    """

    def __init__(self, version: str = VERSION) -> None:
        self.port = 0
        self.version = version
        self.tools: list[Any] = [tool("look")]
        self.results: dict[str, Any] = {}
        self.status: str | None = None
        self.to_listening: Listening = "streams"
        """What it answers who wants to hear of changes."""
        self.before_list: Callable[[], Awaitable[None]] | None = None
        """What it does once a list is read, and not yet sent."""
        self.before_result: Callable[[], Awaitable[None]] | None = None
        """What it does before the result of a call is sent."""
        self.heads: list[dict[str, str]] = []
        self.methods: list[str] = []
        self.begun = 0
        """Sessions so far."""
        self._session: str | None = None
        self._listeners: dict[asyncio.StreamWriter, str | None] = {}
        """With what each frame must bear."""

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

    def drop_listeners(self) -> None:
        """End the connections of those who listen."""
        for writer in self._listeners:
            writer.close()

    async def say(self, message: dict[str, Any]) -> None:
        """Tell those who listen."""
        for writer, subscription in self._listeners.items():
            await _event(writer, message, subscription)

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
            return await self._tell(reader, writer, None)
        if not first.startswith("POST"):
            return await _send(writer, "200 OK")
        request = json.loads(body)
        method = request.get("method", "")
        self.methods.append(method)
        if method == LISTEN:
            return await self._listen(reader, writer, request)
        more = ""
        if method == "initialize":
            self.begun += 1
            self._session = f"session-{self.begun}"
            more = f"mcp-session-id: {self._session}\r\n"
        elif "mcp-session-id" in head and head["mcp-session-id"] != self._session:
            return await _send(writer, "404 Not Found")
        answer = answer_to(request, self.tools, self.results)
        if self.version == MODERN:
            answer = _modern(request, answer)
        before = {"tools/list": self.before_list, "tools/call": self.before_result}.get(method)
        if before is not None:
            await before()
        if answer is None:
            return await _send(writer, "202 Accepted")
        return await _send(writer, "200 OK", json.dumps(answer).encode(), more)

    async def _listen(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, Any]
    ) -> None:
        identifier = request["id"]
        match self.to_listening:
            case "streams":
                await self._tell(reader, writer, identifier)
            case "grants nothing":
                await _begin(writer)
                await _event(writer, _acknowledged({}), identifier)
                await reader.read()
            case "is silent":
                await _begin(writer)
                await reader.read()
            case "closes":
                result = {"resultType": "complete", "_meta": {SUBSCRIPTION: identifier}}
                answer = {"jsonrpc": "2.0", "id": identifier, "result": result}
                await _send(writer, "200 OK", json.dumps(answer).encode())
            case "breaks":
                await _begin(writer)
                writer.close()
                raise ConnectionError
            case "hangs up":
                writer.transport.abort()
                raise ConnectionError
            case "packs":
                await _send(writer, "200 OK", b"x", "content-encoding: gzip\r\n")
            case "no method":
                answer = {"jsonrpc": "2.0", "id": identifier, "error": {"code": -32601, "message": "no method"}}
                await _send(writer, "200 OK", json.dumps(answer).encode())
            case status:
                await _send(writer, status)

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, subscription: str | None) -> None:
        """Until the client goes, or is dropped."""
        await _begin(writer)
        if subscription is not None:
            await _event(writer, _acknowledged({"toolsListChanged": True}), subscription)
        self._listeners[writer] = subscription
        try:
            await reader.read()
        finally:
            del self._listeners[writer]
        raise ConnectionError


def _modern(request: dict[str, Any], answer: dict[str, Any] | None) -> dict[str, Any] | None:
    """An answer in the form of 2026-07-28."""
    if request.get("method") == "server/discover":
        capabilities = {"tools": {"listChanged": True}}
        result = {"supportedVersions": [MODERN], "capabilities": capabilities}
        return {"jsonrpc": "2.0", "id": request["id"], "result": result | CACHING}
    if answer is not None and "result" in answer:
        answer["result"] = {**CACHING, **answer["result"]}
    return answer


def _acknowledged(granted: dict[str, Any]) -> dict[str, Any]:
    method = "notifications/subscriptions/acknowledged"
    return {"jsonrpc": "2.0", "method": method, "params": {"notifications": granted}}


async def _begin(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    await writer.drain()


async def _event(writer: asyncio.StreamWriter, message: dict[str, Any], subscription: str | None) -> None:
    if subscription is not None:
        message = {**message, "params": {**message.get("params", {}), "_meta": {SUBSCRIPTION: subscription}}}
    writer.write(f"event: message\ndata: {json.dumps(message)}\n\n".encode())
    await writer.drain()


async def _send(writer: asyncio.StreamWriter, status: str, body: bytes = b"", more: str = "") -> None:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


@asynccontextmanager
async def scripted_mcp(version: str = VERSION) -> AsyncIterator[ScriptedMcp]:
    """A server on 127.0.0.1."""
    server = ScriptedMcp(version)
    async with listening(server.serve) as server.port:
        yield server


def main(script: dict[str, Any]) -> None:
    """Answer standard input. A call of `flood` writes a line without end, one of `change` changes the tools.

    With `changes_early` they change while they are listed for the first time.
    """
    changes_early = script.get("changes_early", False)
    tools = script["tools"]
    for line in sys.stdin:
        request = json.loads(line)
        called = request.get("params", {}).get("name") if request.get("method") == "tools/call" else None
        if called == "flood":
            while True:
                sys.stdout.write("x" * 1_000_000)
        answer = answer_to(request, tools, script.get("results", {}))
        is_early = changes_early and request.get("method") == "tools/list"
        if called == "change" or is_early:
            changes_early = False
            tools = [*tools, tool("new")]
            sys.stdout.write(json.dumps(CHANGED) + "\n")
        if answer is not None:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
