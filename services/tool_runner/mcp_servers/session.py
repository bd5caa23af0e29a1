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
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2
import mcp_types
import structlog
from mcp import Client, MCPError
from mcp.client import Transport
from mcp.shared.message import SessionMessage

from contracts.retries import RetryPolicy
from mesh.background import background, first_of
from mesh.configuration.secret_sources import ServerSecrets
from mesh.configuration.tool_tables import McpServerConfiguration
from mesh.masking import Mask
from tool_runner.mcp_servers import changes
from tool_runner.mcp_servers.declarations import error_text, result_of
from tool_runner.mcp_servers.http import Exchanges, http_streams
from tool_runner.mcp_servers.listing import not_offered, without_broken
from tool_runner.mcp_servers.process import Program, ProgramMissing, environment_for, program_streams
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
LIST_AGAIN_SECONDS = 1.0
"""How long a list counts before a server that says it has changed is asked again."""
TOOLS_MAX = 100
"""Of one server. Each has a consumer, and TOOLS has room for 256."""
PAGES_MAX = 20
SKIPPED_SAID_MAX = 20
RECONNECT_POLICY = RetryPolicy(tries_max=1_000_000, delay_seconds_first=0.5, delay_seconds_max=30.0)
_CLOSED = mcp_types.CONNECTION_CLOSED
_TIMED_OUT = mcp_types.REQUEST_TIMEOUT


class _Unavailable(Exception):
    """The connection broke under a call."""


class _Signs:
    """What one connection has shown of itself, beside its answers. `wake` is called when somebody should look."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.exchanges = Exchanges(self.went, changes.Reopened(self.change).opened)
        self.version = "2025-11-25"
        self.gone = asyncio.Event()
        """The server has forgotten the session."""
        self.changed = False
        """The server says that its tools have changed, or it may have said so while nobody listened."""
        self.ended_by: str | None = None
        """Why nothing more is read of it."""
        self.broken: dict[str, str] = {}
        """Tools of the list under way that can't be read, and why."""

    def went(self) -> None:
        """The session is gone."""
        self.gone.set()
        self._wake()

    def ended(self, reason: str | None) -> None:
        """It has closed its output."""
        self.ended_by = reason
        self._wake()

    def change(self) -> None:
        """The tools have changed, or may have changed while nobody listened."""
        self.changed = True
        self._wake()

    async def told(self, message: object) -> None:
        """A notification."""
        if isinstance(message, mcp_types.ToolListChangedNotification):
            self.change()

    def why(self, error: BaseException | None) -> str:
        """Why the connection is not there, for people."""
        said = "its connection broke" if error is None else _said(error)
        return ": ".join(filter(None, [self.ended_by, self.exchanges.problem, said]))


class McpServer:
    """A configured server. `tools` is what it offered last; `on_tools` is called when that has changed.

    `away` says why it is not there; None while it is. `on_away` is called when that has changed.
    """

    def __init__(
        self,
        name: str,
        configuration: McpServerConfiguration,
        environment: Mapping[str, str],
        secrets: ServerSecrets,
        on_tools: Callable[[], None],
        on_away: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.timeout_seconds = configuration.timeout_seconds
        self.tools: dict[str, mcp_types.Tool] = {}
        self.away: str | None = "it is being started"
        self._configuration = configuration
        self._environment = environment
        self._on_tools = on_tools
        self.configure(secrets)
        self._on_away = on_away
        self._client: tuple[Client, _Signs] | None = None
        self._usable = asyncio.Event()
        self._check = asyncio.Event()
        self._calls_running = 0
        self._skipped: dict[str, str] = {}
        self._was_there = False

    def configure(self, secrets: ServerSecrets) -> None:
        """Go by these secrets: a server at a URL from the next request on, a program when it is started again."""
        self._secrets = secrets
        # A token in the URL, which it should not be, is none of anybody's business either.
        query = parse_qs(urlsplit(self._configuration.url or "").query)
        self._mask = Mask([*secrets.texts(), *(value for values in query.values() for value in values)])

    async def run(self, stopping: asyncio.Event) -> None:
        """Keep a connection until `stopping`; then close it, in bounded time. Raises nothing that a server causes."""
        this_task = asyncio.current_task()
        failures = 0
        while not stopping.is_set():
            signs = _Signs(self._check.set)
            try:
                await self._connect(signs, stopping, failures)
            except asyncio.CancelledError:
                if this_task is not None and this_task.cancelling():
                    raise
                self._lost(signs.why(None))
            except Exception as error:
                if not (signs.gone.is_set() and self._was_there):
                    self._lost(signs.why(error))
            if signs.gone.is_set() and self._was_there:
                log.info("mcp.session_gone", server=self.name)
                failures, self._was_there = 0, False
                continue  # It is there, and wants a new one: at once.
            # One that was there a moment ago is tried again soon.
            failures = 1 if self._was_there else failures + 1
            self._was_there = False
            await first_of(stopping, seconds=RECONNECT_POLICY.delay_seconds(failures, random.random()))

    async def _connect(self, signs: _Signs, stopping: asyncio.Event, failures: int) -> None:
        # Here, and not once it is there: a change may be told while the tools are listed for the first time.
        self._check.clear()
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(CONNECT_SECONDS_MAX):
                    opened = Client(self._transport(signs), cache=None, message_handler=signs.told)
                    client = await stack.enter_async_context(opened)
                    signs.version = client.protocol_version
                    await self._list(client, signs)
            except TimeoutError:
                raise _Unavailable(f"no list of tools within {CONNECT_SECONDS_MAX:g} s") from None
            log.info("mcp.connected", server=self.name, tools=len(self.tools), after_failures=failures)
            self._was_there = True
            self._set_away(None)
            await stack.enter_async_context(background(changes.hear(client, signs.change, self.name)))
            await self._keep(client, signs, stopping)

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
        client, signs = await self._connected()
        self._calls_running += 1
        try:
            answer = await client.call_tool(tool, arguments, progress_callback=_reporting(call))
        except MCPError as error:
            if error.code in (_CLOSED, _TIMED_OUT) or signs.gone.is_set():
                self._suspect()
                raise _Unavailable(self._mask(error.message)) from None
            status = f" ({signs.exchanges.problem})" if signs.exchanges.problem is not None else ""
            raise ToolBroke(f"{self.name}: {self._mask(error.message)}{status}") from None
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, httpx2.HTTPError, OSError) as error:
            self._suspect()
            raise _Unavailable(self._mask(_said(error))) from None
        except asyncio.CancelledError:
            # By the call's own clock, perhaps: look whether the server still answers.
            self._check.set()
            raise
        except Exception as error:
            # What it sent is no answer of the protocol, or not what its own schema promises.
            raise ToolBroke(f"{self.name}: {self._mask(_said(error))}") from None
        finally:
            self._calls_running -= 1
        if answer.is_error:
            raise ToolBroke(self._mask(error_text(answer)))
        return result_of(answer)

    async def _connected(self) -> tuple[Client, _Signs]:
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

    def _lost(self, reason: str) -> None:
        reason = self._mask(reason)
        if reason != self.away:
            log.warning("mcp.unavailable", server=self.name, error=reason)
        self._set_away(reason)

    def _set_away(self, reason: str | None) -> None:
        if reason != self.away:
            self.away = reason
            self._on_away()

    async def _keep(self, client: Client, signs: _Signs, stopping: asyncio.Event) -> None:
        """Let calls go over a connection until it breaks, which raises, or until it is gone, or `stopping`."""
        loop = asyncio.get_running_loop()
        self._client = client, signs
        self._usable.set()
        listed_at = loop.time()
        try:
            while True:
                await first_of(stopping, self._check, seconds=CHECK_SECONDS)
                if signs.changed:
                    # A server that says so without end is asked once in a while.
                    pause_seconds = max(0.0, listed_at + LIST_AGAIN_SECONDS - loop.time())
                    await first_of(stopping, signs.gone, seconds=pause_seconds)
                if stopping.is_set() or signs.gone.is_set():
                    return
                self._check.clear()
                # While a call runs the server may be too busy to answer, and its connection stands: a break would
                # have ended the call.
                if self._calls_running == 0 or signs.changed:
                    await self._list_again(client, signs)
                    listed_at = loop.time()
                self._usable.set()
        finally:
            self._usable.clear()
            self._client = None

    async def _list_again(self, client: Client, signs: _Signs) -> None:
        signs.changed = False
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                await self._list(client, signs)
        except TimeoutError:
            if self._calls_running == 0:
                raise _Unavailable(f"no list of tools within {CHECK_SECONDS_MAX:g} s") from None
            signs.changed = True

    async def _list(self, client: Client, signs: _Signs) -> None:
        listed: dict[str, mcp_types.Tool] = {}
        signs.broken = {}
        cursor: str | None = None
        for _ in range(PAGES_MAX):
            page = await client.list_tools(cursor=cursor)
            listed |= {tool.name: tool for tool in page.tools}
            cursor = page.next_cursor
            if cursor is None:
                break
        refused = {name: reason for name, tool in listed.items() if (reason := not_offered(tool)) is not None}
        self._say_skipped(signs.broken | refused)
        tools = {name: tool for name, tool in listed.items() if name not in refused}
        if len(tools) > TOOLS_MAX:
            log.warning("mcp.too_many_tools", server=self.name, tools=len(tools), limit=TOOLS_MAX)
            tools = dict(list(tools.items())[:TOOLS_MAX])
        if tools != self.tools:
            self.tools = tools
            self._on_tools()

    def _say_skipped(self, skipped: dict[str, str]) -> None:
        """Say once of each tool why it is not offered; of many, how many there are."""
        new = [(name, reason) for name, reason in skipped.items() if self._skipped.get(name) != reason]
        for name, reason in new[:SKIPPED_SAID_MAX]:
            log.warning("mcp.tool_skipped", server=self.name, tool=name, error=reason)
        if len(new) > SKIPPED_SAID_MAX:
            log.warning("mcp.tools_skipped", server=self.name, more=len(new) - SKIPPED_SAID_MAX)
        self._skipped = skipped

    def _transport(self, signs: _Signs) -> Transport:
        configuration = self._configuration
        if configuration.url is not None:
            return cast(Transport, _read_by(signs, http_streams(configuration, self._headers, signs.exchanges)))
        program = Program(
            configuration.command or [""],
            environment_for({**self._secrets.variables, **configuration.env}, self._environment),
            configuration.cwd,
        )
        return cast(Transport, _read_by(signs, program_streams(program, signs.ended, self._heard)))

    def _headers(self) -> Mapping[str, str]:
        return self._secrets.headers

    def _heard(self, line: str) -> None:
        """A program has written a line to its standard error."""
        log.info("mcp.stderr", server=self.name, text=self._mask(line))


@asynccontextmanager
async def _read_by(signs: _Signs, streams: Any) -> AsyncIterator[Any]:
    """A server's messages, and of its lists of tools only what can be read."""
    async with streams as (read, write):
        sender, receiver = anyio.create_memory_object_stream[Any](0)

        async def relay() -> None:
            try:
                async with sender:
                    async for message in read:
                        await sender.send(_readable(message, signs))
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                pass  # The session is over.

        async with anyio.create_task_group() as group, receiver:
            group.start_soon(relay)
            try:
                yield receiver, write
            finally:
                group.cancel_scope.cancel()


def _readable(received: Any, signs: _Signs) -> Any:
    answer = received.message if isinstance(received, SessionMessage) else None
    if isinstance(answer, mcp_types.JSONRPCResponse):
        answer.result, broken = without_broken(answer.result, signs.version)
        signs.broken |= broken
    return received


def _reporting(call: Call) -> Any:
    async def report(progress: float, total: float | None, message: str | None) -> None:
        call.report(progress, total, message)

    return report


def _said(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, _Unavailable | ProgramMissing):
        return str(error)[:500]
    return f"{type(error).__name__}: {error}"[:500]
