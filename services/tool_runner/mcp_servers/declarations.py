"""What an MCP server's tools are in the mesh: their names, declarations and results. Pure."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import mcp_types

from contracts.records.tools import ToolDeclaration
from contracts.subjects import LANE_NAME_PATTERN
from tool_runner.tools.tool import Shortened

NAME_CHARACTERS_MAX = 48
DESCRIPTION_CHARACTERS_MAX = 8_000
_DIGEST_CHARACTERS = 6
_NAME = re.compile(LANE_NAME_PATTERN)
_FOREIGN = re.compile(r"[^a-z0-9_-]")


def mesh_names(server: str, tools: Iterable[str]) -> dict[str, str]:
    """A server's names → names in the mesh, `<server>_<tool>`.

    What does not fit the grammar becomes `_`. A name that is too long, or that another tool's would come to, ends with
    a digest of its own, so that it does not depend on the order, nor on what else the server has tomorrow.
    """
    plain = {tool: f"{server}_{_FOREIGN.sub('_', tool.lower())}" for tool in tools}
    counts = Counter(plain.values())
    names: dict[str, str] = {}
    for tool, name in plain.items():
        exact = name == f"{server}_{tool}"
        if len(name) > NAME_CHARACTERS_MAX or (counts[name] > 1 and not exact):
            digest = hashlib.sha256(tool.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARACTERS]
            name = f"{name[: NAME_CHARACTERS_MAX - _DIGEST_CHARACTERS - 1]}-{digest}"  # noqa: PLW2901
        names[tool] = name
    return names


def declaration(name: str, tool: mcp_types.Tool, timeout_seconds: float) -> ToolDeclaration:
    """How a server's tool is declared. Its annotations are hints: what it does not say counts as the worse."""
    hints = tool.annotations or mcp_types.ToolAnnotations()
    read_only = hints.read_only_hint is True
    return ToolDeclaration(
        name=name,
        description=(tool.description or tool.title or tool.name)[:DESCRIPTION_CHARACTERS_MAX],
        parameters=tool.input_schema,
        timeout_seconds=timeout_seconds,
        idempotent=read_only or hints.idempotent_hint is True,
        destructive=not read_only and hints.destructive_hint is not False,
    )


def result_of(answer: mcp_types.CallToolResult) -> Any:
    """What the call gave: its structured content, or its text, or all of its content.

    Images, audio and files are no text for a model: of each it is told the type and size, and all of it is kept.
    """
    blocks = [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in answer.content]
    told = [_told(block) for block in blocks]
    if told != blocks:
        if answer.structured_content is not None:
            structured = {"structuredContent": answer.structured_content}
            return Shortened(told=[*told, structured], whole=[*blocks, structured])
        return Shortened(told=told, whole=blocks)
    if answer.structured_content is not None:
        return answer.structured_content
    texts = [block.text for block in answer.content if isinstance(block, mcp_types.TextContent)]
    return "\n".join(texts) if len(texts) == len(answer.content) else blocks


def _told(block: dict[str, Any]) -> dict[str, Any]:
    """A content block as a model is told of it: `bytes` in place of what is base64 (RFC 4648)."""
    resource = block.get("resource")
    if isinstance(resource, dict) and isinstance(resource.get("blob"), str):
        return {**block, "resource": _without_data(resource, "blob")}
    return _without_data(block, "data") if isinstance(block.get("data"), str) else block


def _without_data(block: dict[str, Any], field: str) -> dict[str, Any]:
    data = block[field].rstrip("=")
    return {name: value for name, value in block.items() if name != field} | {"bytes": len(data) * 3 // 4}


def error_text(answer: mcp_types.CallToolResult) -> str:
    """What a tool says of its own failure."""
    texts = [block.text for block in answer.content if isinstance(block, mcp_types.TextContent)]
    return "\n".join(texts) or "the tool failed, and does not say why"


def is_name(name: str) -> bool:
    """Whether it can be a tool's name in the mesh."""
    return _NAME.fullmatch(name) is not None
