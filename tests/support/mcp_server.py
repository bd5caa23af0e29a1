"""A real MCP server, `python -m tests.support.mcp_server stdio` or `http <port>`, and ways for it to go wrong."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.types import ToolAnnotations

# Its logs would be in those of the runner that started it.
server = MCPServer("test", log_level="CRITICAL")
READ_ONLY = ToolAnnotations(read_only_hint=True)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(200_000)


def trace(line: str) -> None:
    """Leave a line in the file that the test watches."""
    with Path(os.environ["TRACE_FILE"]).open("a") as file:
        file.write(f"{line}\n")


@server.tool(annotations=READ_ONLY)
def shout(text: str, times: int = 1) -> str:
    """Says it in capitals."""
    return (text.upper() + "!") * times


@server.tool()
def pid() -> int:
    """The process that answers."""
    return os.getpid()


@server.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True))
async def count_up(to: int, ctx: Context[Any]) -> str:
    """Counts, and says how far it is."""
    for number in range(to):
        await ctx.report_progress(number + 1, to, f"at {number + 1}")
    return f"counted to {to}"


@server.tool()
def breaks(reason: str) -> str:
    """Fails."""
    raise ValueError(reason)


@server.tool()
async def hangs() -> str:
    """Never answers."""
    trace("hangs.begun")
    try:
        await asyncio.Event().wait()
    finally:
        trace("hangs.cancelled")
    return "unreachable"


@server.tool()
async def waits() -> str:
    """Never answers, and nobody's settings say how long that may take."""
    trace("waits.begun")
    await asyncio.Event().wait()
    return "unreachable"


@server.tool()
def dies() -> str:
    """Ends its process."""
    trace("dies")
    os._exit(3)


@server.tool(annotations=READ_ONLY)
def dies_once() -> str:
    """Ends its process the first time."""
    trace("dies_once")
    if Path(os.environ["TRACE_FILE"]).read_text().count("dies_once") == 1:
        os._exit(3)
    return "alive"


@server.tool(annotations=READ_ONLY, structured_output=False)
def draw() -> list[Any]:
    """Gives an image, and a word on it."""
    return ["A dot.", Image(data=PNG, format="png")]


@server.tool()
def rubbish() -> str:
    """Writes what is no message."""
    if len(sys.argv) > 1 and sys.argv[1] == "stdio":
        os.write(int(os.environ["RUBBISH_FD"]), b'\xff\xfe{"jsonrpc": rubbish\n[]\n{}\n')
    return "after rubbish"


if __name__ == "__main__":
    if sys.argv[1] == "http":
        server.run("streamable-http", port=int(sys.argv[2]))
    else:
        # What it says when its runner is killed does not belong into that runner's log.
        log = os.open(f"{os.environ['TRACE_FILE']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 2)
        # The server's library may take descriptor 1 for itself.
        os.environ["RUBBISH_FD"] = str(os.dup(1))
        server.run("stdio")
