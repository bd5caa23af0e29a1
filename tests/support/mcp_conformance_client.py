"""A runner's connection to one MCP server, for the MCP project's conformance suite: `python -m … <url>`.

It lists the tools and calls each of them once, as a model might. It ends with 1 if the server can't be reached, or if
no call gave a result.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from mesh.configuration.secret_sources import ServerSecrets
from mesh.configuration.tool_tables import McpServerConfiguration
from tool_runner.mcp_servers.session import McpServer
from tool_runner.tools.tool import ToolBroke, ToolRefused

CONNECTED_SECONDS = 6.0
UNUSED: Any = None
_EXAMPLES = {"number": 2, "integer": 2, "string": "text", "boolean": True, "array": [], "object": {}}


def arguments_for(schema: dict[str, Any]) -> dict[str, Any]:
    """Arguments that a simple schema takes."""
    properties: dict[str, Any] = schema.get("properties") or {}
    return {name: _EXAMPLES.get(str(each.get("type"))) for name, each in properties.items()}


async def main(url: str) -> int:
    """Talk with the server once; the exit status."""
    listed, stopping = asyncio.Event(), asyncio.Event()
    configured = McpServerConfiguration(url=url)
    server = McpServer("conformance", configured, os.environ, ServerSecrets({}, {}), listed.set, listed.set)
    running = asyncio.create_task(server.run(stopping))
    try:
        async with asyncio.timeout(CONNECTED_SECONDS):
            while server.away is not None:
                listed.clear()
                await listed.wait()
        failed = 0
        for name, tool in server.tools.items():
            try:
                await server.call(name, arguments_for(tool.input_schema), UNUSED, idempotent=False)
            except (ToolBroke, ToolRefused) as error:
                sys.stderr.write(f"{name}: {error}\n")
                failed += 1
        return int(failed > 0)
    except TimeoutError:
        sys.stderr.write(f"not connected: {server.away}\n")
        return 1
    finally:
        stopping.set()
        await running


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
