"""Lists of tools as servers send them: what can't be read, or can't be offered, is left out of them, and told. Pure."""

from __future__ import annotations

from typing import Any

import mcp_types
from mcp_types.methods import validate_server_result
from pydantic import ValidationError

from mesh.tools.schema_cost import SchemaUnusable, cost

REASON_CHARACTERS_MAX = 300
_SHOWN_CHARACTERS_MAX = 64
PAGE_TOOLS_MAX = 1_000
"""Tools of one page that are looked at: each takes some of the time of all other tools of the runner."""
OUTPUT_STEPS_MAX = 1_000
"""How costly an output schema may be (`mesh.tools.schema_cost`): the client checks results in plain Python."""
OUTPUT_DEPTH = 32
"""How deep a result may be nested for that: a schema whose branches both go on below doubles with each level."""


def without_broken(result: dict[str, Any], version: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A list's result without the tools that can't be read, and why they can't, by name.

    One tool that is broken would else be the end of the whole list. An output schema that would take too long is left
    out: then what the tool gives is taken as it is. `version` is that of the protocol.
    """
    tools = result.get("tools")
    if not isinstance(tools, list):
        return result, {}
    kept: list[Any] = []
    broken: dict[str, str] = {}
    if len(tools) > PAGE_TOOLS_MAX:
        broken[f"[{PAGE_TOOLS_MAX}]"] = f"a page of {len(tools)} tools: no more than {PAGE_TOOLS_MAX} are read"
    for at, tool in enumerate(tools[:PAGE_TOOLS_MAX]):
        reason = _broken(result, tool, version)
        if reason is None:
            kept.append(_with_cheap_output(tool))
        else:
            name = tool.get("name") if isinstance(tool, dict) else None
            broken[name[:_SHOWN_CHARACTERS_MAX] if isinstance(name, str) else f"[{at}]"] = reason
    return {**result, "tools": kept}, broken


def _broken(result: dict[str, Any], tool: Any, version: str) -> str | None:
    try:
        validate_server_result("tools/list", version, {**result, "tools": [tool]})
        mcp_types.Tool.model_validate(tool, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part != "tools")
        return f"{where}: {first['msg']}"[:REASON_CHARACTERS_MAX]
    except (KeyError, ValueError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"[:REASON_CHARACTERS_MAX]
    return None


def _with_cheap_output(tool: dict[str, Any]) -> dict[str, Any]:
    schema = tool.get("outputSchema")
    if isinstance(schema, dict):
        try:
            is_cheap = cost(schema, OUTPUT_DEPTH) <= OUTPUT_STEPS_MAX
        except SchemaUnusable:
            is_cheap = False
        if not is_cheap:
            return {name: value for name, value in tool.items() if name != "outputSchema"}
    return tool


def not_offered(tool: mcp_types.Tool) -> str | None:
    """Why a tool that can be read is not offered all the same; None if it is."""
    if tool.execution is not None and tool.execution.task_support == "required":
        return "its execution needs a task (execution.taskSupport is required)"
    return None
