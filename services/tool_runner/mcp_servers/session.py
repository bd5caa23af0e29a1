"""One MCP server: a connection that is made again whenever it breaks, and the calls over it.

The connection lives in a task of its own (`run`), which alone opens and closes it: the client's clean-up of a server
process must not be cancelled from outside. Calls come from other tasks; each ends by its result, by its own clock, or
by the end of the connection.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import anyio
import httpx2
import mcp_types
import structlog
from mcp import Client, MCPError, StdioServerParameters
from mcp.client import Transport
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client

from contracts.retries import RetryPolicy
from mesh.background import first_of
from mesh.configuration.tool_tables import McpServerConfiguration, variable_of
from tool_runner.mcp_servers.declarations import error_text, result_of
from tool_runner.tools.tool import Call, ToolBroke, ToolRefused

log = structlog.get_logger("tool_runner.mcp")
# It logs what a server sends, with tracebacks: payloads do not belong into logs, and each failure is an event here.
logging.getLogger("mcp").setLevel(logging.CRITICAL)

CONNECT_SECONDS_MAX = 30.0
"""For starting a server, the handshake and the list of its tools: `npx` may have to fetch it first."""
WAIT_SECONDS_MAX = 10.0
"""How long a call waits for a server that is away, before it ends as `tool-unavailable`."""
CHECK_SECONDS = 60.0
"""How often an idle connection is tried, and the list of tools read again."""
CHECK_SECONDS_MAX = 10.0
TOOLS_MAX = 100
"""Of one server. Each has a consumer, and TOOLS has room for 256."""
PAGES_MAX = 20
RECONNECT_POLICY = RetryPolicy(tries_max=1_000_000, delay_seconds_first=0.5, delay_seconds_max=30.0)
_CLOSED = mcp_types.CONNECTION_CLOSED
_TIMED_OUT = mcp_types.REQUEST_TIMEOUT


class _Unavailable(Exception):
    """The connection broke under a call."""


class McpServer:
    """A configured server. `tools` is what it offered last; `on_tools` is called when that has changed."""

    def __init__(
        self,
        name: str,
        configuration: McpServerConfiguration,
        environment: Mapping[str, str],
        on_tools: Callable[[], None],
    ) -> None:
        self.name = name
        self.timeout_seconds = configuration.timeout_seconds
        self.tools: dict[str, mcp_types.Tool] = {}
        self._configuration = configuration
        self._environment = environment
        self._on_tools = on_tools
        self._client: Client | None = None
        self._usable = asyncio.Event()
        self._check = asyncio.Event()
        self._calls_running = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """Keep a connection until `stopping`; then close it, in bounded time. Raises nothing that a server causes."""
        this_task = asyncio.current_task()
        failures = 0
        while not stopping.is_set():
            try:
                async with AsyncExitStack() as stack:
                    async with asyncio.timeout(CONNECT_SECONDS_MAX):
                        client = await stack.enter_async_context(Client(self._transport(), cache=None))
                        await self._list(client)
                    log.info("mcp.connected", server=self.name, tools=len(self.tools), after_failures=failures)
                    failures = 0
                    await self._keep(client, stopping)
            except asyncio.CancelledError:
                if this_task is not None and this_task.cancelling():
                    raise
                self._lost("its connection broke", failures)
            except Exception as error:
                self._lost(_said(error), failures)
            failures += 1
            await first_of(stopping, seconds=RECONNECT_POLICY.delay_seconds(failures, random.random()))

    async def call(self, tool: str, arguments: dict[str, Any], call: Call, *, idempotent: bool) -> object:
        """Run a call. Raises `ToolRefused` if it can't have had an effect, `ToolBroke` if it may have had one."""
        try:
            return await self._call(tool, arguments, call)
        except _Unavailable as error:
            if not idempotent:
                raise ToolBroke(f"{self.name}: {error}", code="tool-unavailable") from None
        try:
            return await self._call(tool, arguments, call)
        except _Unavailable as error:
            raise ToolBroke(f"{self.name}: {error}", code="tool-unavailable") from None

    async def _call(self, tool: str, arguments: dict[str, Any], call: Call) -> object:
        client = await self._connected()
        self._calls_running += 1
        try:
            answer = await client.call_tool(tool, arguments, progress_callback=_reporting(call))
        except MCPError as error:
            if error.code in (_CLOSED, _TIMED_OUT):
                self._suspect()
                raise _Unavailable(error.message) from None
            raise ToolBroke(f"{self.name}: {error.message}") from None
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, httpx2.HTTPError, OSError) as error:
            self._suspect()
            raise _Unavailable(_said(error)) from None
        except asyncio.CancelledError:
            # By the call's own clock, perhaps: look whether the server still answers.
            self._check.set()
            raise
        except Exception as error:
            # What it sent is no answer of the protocol, or not what its own schema promises.
            raise ToolBroke(f"{self.name}: {_said(error)}") from None
        finally:
            self._calls_running -= 1
        if answer.is_error:
            raise ToolBroke(error_text(answer))
        return result_of(answer)

    async def _connected(self) -> Client:
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                while self._client is None or not self._usable.is_set():
                    await self._usable.wait()
        except TimeoutError:
            raise ToolRefused(f"the MCP server {self.name} is not there", code="tool-unavailable") from None
        return self._client

    def _suspect(self) -> None:
        """Let no more calls go until the connection was tried, or made again."""
        self._usable.clear()
        self._check.set()

    def _lost(self, reason: str, failures: int) -> None:
        if failures == 0:
            log.warning("mcp.unavailable", server=self.name, error=reason)

    async def _keep(self, client: Client, stopping: asyncio.Event) -> None:
        """Let calls go over a connection until it breaks, which raises, or `stopping`."""
        self._client = client
        self._check.clear()
        self._usable.set()
        try:
            while True:
                await first_of(stopping, self._check, seconds=CHECK_SECONDS)
                if stopping.is_set():
                    return
                self._check.clear()
                # While a call runs the server may be too busy to answer, and its connection stands: a break would
                # have ended the call.
                if self._calls_running == 0:
                    async with asyncio.timeout(CHECK_SECONDS_MAX):
                        await self._list(client)
                self._usable.set()
        finally:
            self._usable.clear()
            self._client = None

    async def _list(self, client: Client) -> None:
        tools: dict[str, mcp_types.Tool] = {}
        cursor: str | None = None
        for _ in range(PAGES_MAX):
            page = await client.list_tools(cursor=cursor)
            tools |= {tool.name: tool for tool in page.tools}
            cursor = page.next_cursor
            if cursor is None:
                break
        if len(tools) > TOOLS_MAX:
            log.warning("mcp.too_many_tools", server=self.name, tools=len(tools), limit=TOOLS_MAX)
            tools = dict(list(tools.items())[:TOOLS_MAX])
        if tools != self.tools:
            self.tools = tools
            self._on_tools()

    def _transport(self) -> Transport:
        configuration = self._configuration
        if configuration.url is not None:
            return cast(Transport, _http(configuration, self._environment))
        program, *arguments = configuration.command or [""]
        passed = {name: variable_of(self._environment, name, "env_from") for name in configuration.env_from}
        parameters = StdioServerParameters(
            command=program,
            args=arguments,
            env={**passed, **configuration.env},
            # Bytes that are no text make one line that is no message; strict, they would end the reader unseen.
            encoding_error_handler="replace",
        )
        return cast(Transport, _stdio(parameters, self._check.set))


@asynccontextmanager
async def _http(configuration: McpServerConfiguration, environment: Mapping[str, str]) -> AsyncIterator[Any]:
    headers = {}
    if configuration.api_key_env is not None:
        headers["Authorization"] = f"Bearer {variable_of(environment, configuration.api_key_env, 'api_key_env')}"
    # Calls have clocks of their own, and a stream may be silent for as long as a call takes.
    timeout = httpx2.Timeout(CHECK_SECONDS_MAX, read=None)
    async with (
        httpx2.AsyncClient(headers=headers, timeout=timeout) as client,
        streamable_http_client(configuration.url or "", http_client=client) as streams,
    ):
        yield streams


@asynccontextmanager
async def _stdio(parameters: StdioServerParameters, on_end: Callable[[], None]) -> AsyncIterator[Any]:
    """A server process; `on_end` is called when it closes its output, which the client tells nobody between calls."""
    async with stdio_client(parameters) as (read, write):
        sender, receiver = anyio.create_memory_object_stream[Any](0)

        async def relay() -> None:
            try:
                async with sender:
                    async for message in read:
                        await sender.send(message)
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                pass  # The session is over.
            on_end()

        async with anyio.create_task_group() as group, receiver:
            group.start_soon(relay)
            try:
                yield receiver, write
            finally:
                group.cancel_scope.cancel()


def _reporting(call: Call) -> Any:
    async def report(progress: float, total: float | None, message: str | None) -> None:
        call.report(progress, total, message)

    return report


def _said(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:500]
