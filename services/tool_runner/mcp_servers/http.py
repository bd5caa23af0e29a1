"""An MCP server at a URL: what its answers say of the connection, and how large they may be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp.client.streamable_http import MCP_SESSION_ID, streamable_http_client
from mcp.shared.inbound import MCP_METHOD_HEADER

from mesh.configuration.tool_tables import McpServerConfiguration
from tool_runner.mcp_servers.process import MESSAGE_BYTES_MAX

CONNECT_SECONDS = 10.0
LISTEN_METHOD = "subscriptions/listen"
_NOT_FOUND = 404
_BAD = 400
_UNAVAILABLE = 503


class Exchanges:
    """What the answers of one connection say: `problem` is the last status that was an error.

    `on_gone` is called when the session is forgotten, `on_listening` when a stream of notifications is opened.
    """

    def __init__(self, on_gone: Callable[[], None], on_listening: Callable[[], None]) -> None:
        self._on_gone = on_gone
        self._on_listening = on_listening
        self.problem: str | None = None

    async def look(self, response: httpx2.Response) -> None:
        """Take note of an answer before it is read, and bound what is read of it."""
        request = response.request
        if _is_listening(request):
            pass  # A server need not let itself be listened to; that is no reason of anything else.
        elif response.status_code >= _BAD and request.method == "POST":
            self.problem = f"HTTP {response.status_code}"
            if response.status_code == _NOT_FOUND and MCP_SESSION_ID in request.headers:
                # The server has forgotten the session (streamable HTTP, "Session Management"): a new one is wanted.
                self._on_gone()
        elif response.status_code < _BAD:
            self.problem = None
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise httpx2.DecodingError("the server sends compressed content unasked", request=request)
        is_events = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        if is_events and request.method == "GET" and response.status_code < _BAD:
            self._on_listening()
        if not is_events:
            stream = response.stream
            if isinstance(stream, httpx2.AsyncByteStream):
                response.stream = _Bounded(stream)


class _Connections(httpx2.AsyncClient):
    """Connections to a server. One for listening that can't be had is an answer: calls over the others go on."""

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        try:
            return await super().send(request, **options)
        except httpx2.RequestError:
            if not _is_listening(request):
                raise
            return httpx2.Response(_UNAVAILABLE, request=request)


def _is_listening(request: httpx2.Request) -> bool:
    return bool(request.headers.get(MCP_METHOD_HEADER) == LISTEN_METHOD)


class _Bounded(httpx2.AsyncByteStream):
    """A body that ends with an error where it is longer than a message may be."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = MESSAGE_BYTES_MAX
        async for part in self._stream:
            left -= len(part)
            if left < 0:
                raise httpx2.StreamError(f"an answer of more than {MESSAGE_BYTES_MAX} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def http_streams(
    configuration: McpServerConfiguration, secret_headers: Callable[[], Mapping[str, str]], exchanges: Exchanges
) -> AsyncIterator[Any]:
    """Speak with a server at a URL. Each request has the headers with secrets as they are by then."""
    # What is compressed has no bound until it is unpacked.
    headers = {"Accept-Encoding": "identity", **configuration.headers}

    async def show(request: httpx2.Request) -> None:
        request.headers.update(secret_headers())

    # Calls have clocks of their own, and a stream may be silent for as long as a call takes.
    timeout = httpx2.Timeout(CONNECT_SECONDS, read=None)
    hooks: dict[str, list[Callable[..., Any]]] = {"request": [show], "response": [exchanges.look]}
    async with (
        _Connections(headers=headers, timeout=timeout, event_hooks=hooks) as client,
        streamable_http_client(
            configuration.url or "", http_client=client, max_sse_event_size=MESSAGE_BYTES_MAX
        ) as streams,
    ):
        yield streams
