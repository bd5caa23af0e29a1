"""Names and declarations of an MCP server's tools: pure."""

from __future__ import annotations

from typing import Any

import mcp_types
import pytest

from contracts import subjects
from tool_runner.mcp_servers.declarations import declaration, mesh_names, result_of
from tool_runner.serving import server_of
from tool_runner.tools.tool import Shortened


def test_a_name_that_fits_is_the_servers_name_and_its_own() -> None:
    assert mesh_names("files", ["read", "write_all", "a-b"]) == {
        "read": "files_read",
        "write_all": "files_write_all",
        "a-b": "files_a-b",
    }


@pytest.mark.parametrize("tool", ["readFile", "a.b/c d", "ÄÖ", "", "x" * 200, "a>b*", "\0"])
def test_any_name_is_made_to_fit(tool: str) -> None:
    name = mesh_names("files", [tool])[tool]
    assert subjects.check_tool(name) == name
    assert name.startswith("files_")


def test_names_that_would_be_the_same_differ_whatever_their_order() -> None:
    tools = ["read_file", "read.file", "READ_FILE", "a" * 60, "a" * 61]
    names = mesh_names("files", tools)
    assert len(set(names.values())) == len(tools)
    assert names["read_file"] == "files_read_file"
    assert names == mesh_names("files", reversed(tools))


def test_a_tool_is_its_servers_though_another_servers_name_begins_its_own() -> None:
    assert server_of("files_read", ["files", "files_read"]) == "files"
    assert server_of("files_read_all", ["files", "files_read"]) == "files_read"
    assert server_of("files", ["files"]) is None


@pytest.mark.parametrize(
    ("hints", "idempotent", "destructive"),
    [
        (None, False, True),
        ({}, False, True),
        ({"read_only_hint": True}, True, False),
        ({"read_only_hint": False}, False, True),
        ({"destructive_hint": False}, False, False),
        ({"idempotent_hint": True}, True, True),
        ({"read_only_hint": True, "destructive_hint": True}, True, False),
    ],
)
def test_what_a_tool_does_not_say_counts_as_the_worse(
    hints: dict[str, Any] | None, *, idempotent: bool, destructive: bool
) -> None:
    annotations = mcp_types.ToolAnnotations(**hints) if hints is not None else None
    tool = mcp_types.Tool(name="a", input_schema={"type": "object"}, annotations=annotations)
    declared = declaration("files_a", tool, 5)
    assert (declared.idempotent, declared.destructive, declared.timeout_seconds) == (idempotent, destructive, 5)


def test_results_are_structured_content_or_text_or_all_there_is() -> None:
    text = mcp_types.TextContent(text="a")
    assert result_of(mcp_types.CallToolResult(content=[text], structured_content={"x": 1})) == {"x": 1}
    assert result_of(mcp_types.CallToolResult(content=[text, text])) == "a\na"
    assert result_of(mcp_types.CallToolResult(content=[])) == ""
    link = mcp_types.ResourceLink(uri="file:///a", name="a")
    assert result_of(mcp_types.CallToolResult(content=[text, link])) == [
        {"type": "text", "text": "a"},
        {"type": "resource_link", "uri": "file:///a", "name": "a"},
    ]


def test_images_audio_and_files_are_told_by_type_and_size_and_kept_whole() -> None:
    text = mcp_types.TextContent(text="a")
    image = mcp_types.ImageContent(data="AAAAAAA=", mime_type="image/png")
    audio = mcp_types.AudioContent(data="AAAA", mime_type="audio/wav")
    blob = mcp_types.BlobResourceContents(uri="file:///a", blob="AAA=", mime_type="application/pdf")
    content: list[Any] = [text, image, audio, mcp_types.EmbeddedResource(resource=blob)]
    given = result_of(mcp_types.CallToolResult(content=content, structured_content={"x": 1}))
    assert isinstance(given, Shortened)
    assert given.told == [
        {"type": "text", "text": "a"},
        {"type": "image", "mimeType": "image/png", "bytes": 5},
        {"type": "audio", "mimeType": "audio/wav", "bytes": 3},
        {"type": "resource", "resource": {"uri": "file:///a", "mimeType": "application/pdf", "bytes": 2}},
        {"structuredContent": {"x": 1}},
    ]
    assert given.whole[1] == {"type": "image", "data": "AAAAAAA=", "mimeType": "image/png"}
