"""`meshctl tools`: which tools there are."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from contracts.records.tools import ToolDeclaration
from meshctl.commands.tasks import client_of
from meshctl.display import output
from meshctl.display.tables import tools_table


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register `tools`."""
    text = (
        "Print the tools that tasks may name: the mesh's own, and those that runners and MCP servers serve at present. "
        "Into a pipe each line is a JSON object, with the JSON Schema of the arguments."
    )
    parser = commands.add_parser("tools", parents=[common], help="list the tools that there are", description=text)
    parser.set_defaults(run=_run_tools)


def _run_tools(arguments: argparse.Namespace) -> int:
    tools = asyncio.run(_all(arguments))
    if output.for_people():
        output.show(tools_table(tools))
    else:
        for tool in tools:
            output.json_line(tool)
    return 0


async def _all(arguments: argparse.Namespace) -> list[ToolDeclaration]:
    tools: list[ToolDeclaration] = []
    query = {"limit": "100"}
    async with client_of(arguments) as client:
        while True:
            page = (await client.tools(query)).value
            tools += page.tools
            if page.cursor is None:
                return tools
            query["cursor"] = page.cursor
