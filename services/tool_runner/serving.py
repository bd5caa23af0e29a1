"""What one runner serves: the built-in tools, and those of MCP servers as they come.

Each server's tools have a work loop of their own: a server that hangs takes its own places, and nobody else's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import structlog

from contracts.errors import TaskmeshError
from contracts.records.tools import ASK_USER, ToolDeclaration
from contracts.streams import BUILT_IN_TOOLS, tool_consumer
from mesh.background import background, first_of
from mesh.broker.lanes import ConsumerSpec
from mesh.configuration.secret_sources import server_secrets
from mesh.configuration.settings import Settings
from mesh.journal.warm import WarmJournals
from mesh.serving.service import Service
from mesh.steps.work_loop import WorkLoop
from mesh.tools.toolbox import consumers_of_tools
from tool_runner.declaring import declare
from tool_runner.handler import CallHandler
from tool_runner.result_store import ResultStore
from tool_runner.tools.registry import built_in_tools
from tool_runner.tools.tool import Call, Tool, ToolRefused, reader_of

if TYPE_CHECKING:
    from tool_runner.mcp_servers.session import McpServer

log = structlog.get_logger("tool_runner.serving")

DECLARE_SECONDS = 60.0
"""How often tools are declared anew, and at once after a reconnect: a declaration is forgotten after some minutes."""
DECLARE_RETRY_SECONDS = 2.0
ABSENT_SECONDS = 10.0
"""How long a server that has not been there yet is waited for, before calls of tools that it once had are failed."""
CLOSE_SECONDS_MAX = 8.0
"""For MCP servers at a stop: longer than the client takes to end a process by force."""


@dataclass
class _Served:
    """An MCP server, and whether its tools have changed."""

    name: str
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    server: McpServer | None = None
    looped: set[str] = field(default_factory=set)
    loop: WorkLoop | None = None


class Serving:
    """The tools of one process."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings
        self._requests = service.requests
        self._tools: dict[str, Tool[Any]] = built_in_tools(service.settings, service.requests)
        self._absent: set[str] = set()
        """Tools that are served only to say that their server is not there."""
        self._loops: list[WorkLoop] = []
        # The calls of a turn write to one journal, whichever loop they came by.
        self._journals = WarmJournals(service.requests)
        self._wake = asyncio.Event()
        self.servers_changed = asyncio.Event()
        """Set when a server goes away, or comes back."""
        self._servers = self._configured_servers()
        service.connection.on_reconnected(self._wake.set)
        self._store = ResultStore(service.requests, service.settings.configuration.results.tenant_share)
        self._handler = CallHandler(self._tools, self._store.store)

    @property
    def names(self) -> tuple[str, ...]:
        """The tools that are served at present."""
        return tuple(name for name in self._tools if name not in self._absent)

    @property
    def servers(self) -> dict[str, str | None]:
        """The configured MCP servers, each with why it is away; None while it is there."""
        return {each.name: each.server.away for each in self._servers if each.server is not None}

    @property
    def calls_running(self) -> int:
        """Calls in this process's hands."""
        return sum(loop.steps_running for loop in self._loops)

    async def take(self, settings: Settings) -> None:
        """Go by these settings from the next call on, and declare the tools so."""
        self._settings = settings
        self._store.configure(settings.configuration.results.tenant_share)
        self._tools.update(built_in_tools(settings, self._requests))
        for served in self._servers:
            if served.server is not None:
                server = settings.configuration.tools.mcp[served.name]
                served.server.configure(server_secrets(served.name, server, settings.secrets))
            if served.server is not None and served.server.tools:
                served.changed.set()  # Its tools are taken over once more, with the operator's word on each.
        self._wake.set()

    async def run(self, ready: Callable[[], Any]) -> None:
        """Serve until the service stops; `ready` is awaited once the built-in tools are declared, if the broker is."""
        stopping = self._service.stopping
        await self._declare()
        async with _running(self._servers), background(self._keep_declaring()), asyncio.TaskGroup() as loops:
            loops.create_task(self._run(self._loop(tuple(self._tools))))
            for served in self._servers:
                loops.create_task(self._serve(served, loops, stopping))
            await ready()

    # Work loops

    def _loop(self, names: tuple[str, ...]) -> WorkLoop:
        lanes = [_lane(name) for name in names]
        service = self._service
        loop = WorkLoop(service.connection, self._settings, lanes, self._handler, service.worker, self._journals)
        self._loops.append(loop)
        return loop

    async def _run(self, loop: WorkLoop) -> None:
        await loop.run(self._service.stopping, self._service.hurrying, self._service.patient)

    async def _serve(self, served: _Served, loops: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        """Begin to pull for tools as their server offers them."""
        while not stopping.is_set():
            absent = served.server is None or not served.server.tools
            await first_of(served.changed, stopping, seconds=ABSENT_SECONDS if absent else None)
            if served.changed.is_set():
                served.changed.clear()
                names = self._adopt(served)
                self._wake.set()  # Its consumers are made there; a loop waits for what is not there yet.
            else:
                names = await self._adopt_absent(served)
            new = tuple(name for name in names if name not in served.looped)
            if not new or stopping.is_set():
                continue
            served.looped.update(new)
            if served.loop is None:
                served.loop = self._loop(new)
                loops.create_task(self._run(served.loop))
                continue
            for name in new:
                served.loop.add(_lane(name))

    async def _adopt_absent(self, served: _Served) -> list[str]:
        """The tools that a server once had, by their consumers: calls that wait there must not wait for ever."""
        try:
            known = await consumers_of_tools(self._requests)
        except TaskmeshError as error:
            log.warning("mcp.consumers_unknown", server=served.name, error=str(error))
            return []
        servers = [each.name for each in self._servers]
        names = [name for name in known if server_of(name, servers) == served.name and name not in BUILT_IN_TOOLS]
        for name in names:
            if name not in self._tools:
                self._tools[name] = _absent_tool(name, served.name)
                self._absent.add(name)
        return names

    def _adopt(self, served: _Served) -> list[str]:
        """Take over what a server offers at present; the names that are its own."""
        from tool_runner.mcp_servers import declarations  # noqa: PLC0415 - as in _configured_servers

        server = served.server
        if server is None:
            return []
        names = declarations.mesh_names(served.name, server.tools)
        others = {name for each in self._servers if each is not served for name in each.looped}
        adopted: list[str] = []
        for tool, name in names.items():
            if name in BUILT_IN_TOOLS or name == ASK_USER or name in others or not declarations.is_name(name):
                log.warning("mcp.name_taken", server=served.name, tool=tool, name=name)
                continue
            try:
                self._tools[name] = self._tool(server, tool, name)
                self._absent.discard(name)
            except (ValueError, jsonschema_rs.ValidationError) as error:
                log.warning("mcp.tool_unusable", server=served.name, tool=tool, error=str(error)[:500])
                continue
            adopted.append(name)
        for gone in served.looped - set(adopted):
            self._tools.pop(gone, None)
        return adopted

    def _tool(self, server: McpServer, tool: str, name: str) -> Tool[dict[str, Any]]:
        from tool_runner.mcp_servers import declarations  # noqa: PLC0415 - as in _configured_servers

        offered = server.tools[tool]
        declared = declarations.declaration(name, offered, server.timeout_seconds)
        declared = self._settings.configuration.tools.of(name).applied_to(declared)

        async def run(arguments: dict[str, Any], call: Call) -> object:
            return await server.call(tool, arguments, call, idempotent=declared.idempotent)

        return Tool(declaration=declared, read=reader_of(offered.input_schema), run=run)

    def _configured_servers(self) -> list[_Served]:
        configured = self._settings.configuration.tools.mcp
        if not configured:
            return []
        # It takes most of a second to import: only where there are servers.
        from tool_runner.mcp_servers.session import McpServer  # noqa: PLC0415

        servers = []
        for name, configuration in configured.items():
            secrets = server_secrets(name, configuration, self._settings.secrets)
            served = _Served(name)
            served.server = McpServer(
                name, configuration, os.environ, secrets, served.changed.set, self.servers_changed.set
            )
            servers.append(served)
        return servers

    # Declarations

    async def _keep_declaring(self) -> None:
        while True:
            declared = await self._declare()
            await first_of(self._wake, seconds=DECLARE_SECONDS if declared else DECLARE_RETRY_SECONDS)
            self._wake.clear()

    async def _declare(self) -> bool:
        try:
            # What is refused is tried again in the next round.
            await declare(self._requests, self._settings, [self._tools[name].declaration for name in self.names])
        except TaskmeshError as error:
            log.warning("tool.not_declared", error=str(error))
            return False
        return True


@asynccontextmanager
async def _running(servers: Iterable[_Served]) -> AsyncIterator[None]:
    """The servers' connections, from before the first call to after the last."""
    stopping = asyncio.Event()
    tasks = [asyncio.create_task(each.server.run(stopping)) for each in servers if each.server is not None]
    try:
        yield
    finally:
        stopping.set()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_SECONDS_MAX)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _lane(tool: str) -> ConsumerSpec:
    """Its calls. Tools of one loop share alike."""
    return ConsumerSpec("TOOLS", tool_consumer(tool))


def server_of(tool: str, servers: Iterable[str]) -> str | None:
    """The server whose tool a name can be: the one with the longest name, as one name may begin another."""
    return max((name for name in servers if tool.startswith(f"{name}_")), key=len, default=None)


def _absent_tool(name: str, server: str) -> Tool[dict[str, Any]]:
    """A tool whose server has not been there since this runner started."""

    async def run(arguments: dict[str, Any], call: Call) -> object:
        raise ToolRefused(f"the MCP server {server} is not there", code="tool-unavailable")

    # Never declared. Not idempotent, since nobody knows: a call that was begun before ends as unknown.
    declared = ToolDeclaration(name=name, description="", parameters={})
    return Tool(declaration=declared, read=lambda given: given, run=run)
