"""A runner's connection to an MCP server, which ends when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from mesh.configuration.mesh_toml import default_configuration
from mesh.configuration.secret_sources import read_secrets, server_secrets
from mesh.configuration.tool_tables import McpServerConfiguration, ToolsConfiguration
from tests.support.patience import within
from tool_runner.mcp_servers.session import McpServer


@asynccontextmanager
async def running(environment: dict[str, str] | None = None, **configuration: Any) -> AsyncIterator[McpServer]:
    """A connection to a server that is configured so; it must end when it is told to."""
    stopping = asyncio.Event()
    configured = McpServerConfiguration(**configuration)
    variables = {"PATH": "/usr/bin:/bin"} | (environment or {})
    whole = msgspec.structs.replace(default_configuration(), tools=ToolsConfiguration(mcp={"test": configured}))
    secrets = server_secrets("test", configured, read_secrets(whole, variables))
    server = McpServer("test", configured, variables, secrets, lambda: None)
    task = asyncio.create_task(server.run(stopping))
    try:
        yield server
    finally:
        stopping.set()
        async with within(20):
            await task
