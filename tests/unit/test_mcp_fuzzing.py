"""Bytes of strangers: what an MCP server writes, and what a tool gives back, ends in a declared error or a result.

Each reader is fed anything, and what is almost right: only that comes far enough to break something.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import mcp_types
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from contracts.codec import encode
from contracts.journal.parts import ObjectReference
from contracts.result_objects import ResultName
from mesh.tools.arguments import checker_of
from mesh.tools.schema_cost import SchemaUnusable, cost, size_of
from tests.unit.journals import HandMadeJournal
from tool_runner.mcp_servers.declarations import declaration, error_text, mesh_names, result_of
from tool_runner.mcp_servers.listing import not_offered, without_broken
from tool_runner.mcp_servers.process import parsed
from tool_runner.results import Recorded, ResultUnusable, recorded

VERSIONS = ("2024-11-05", "2025-06-18", "2025-11-25", "2026-07-28")

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)

KEYWORDS = (
    *("type", "properties", "items", "anyOf", "oneOf", "allOf", "not", "if", "then", "else", "$ref", "$defs", "enum"),
    *("additionalProperties", "patternProperties", "prefixItems", "dependentSchemas", "required", "const", "pattern"),
    *("minimum", "maxLength", "uniqueItems", "contains", "propertyNames", "$id", "$dynamicRef", "$anchor", "format"),
)
references = st.sampled_from(("#", "#/$defs/a", "#/properties/a", "#/nowhere", "https://example.com/a", "#a", ""))
schemas = st.recursive(
    scalars | st.sampled_from(("object", "string", "array")) | references,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from((*KEYWORDS, "a", "b")), inner, max_size=5)
    ),
    max_leaves=25,
)
schema_objects = st.dictionaries(st.sampled_from(KEYWORDS), schemas, max_size=6)

tools = st.fixed_dictionaries(
    {"name": st.text(max_size=60) | values, "inputSchema": schema_objects | values},
    optional={
        "description": values,
        "title": values,
        "outputSchema": schema_objects | values,
        "annotations": values | st.fixed_dictionaries({"readOnlyHint": values}),
        "execution": values | st.fixed_dictionaries({"taskSupport": values | st.just("required")}),
        "icons": values,
        "_meta": values,
    },
)

blocks = st.fixed_dictionaries(
    {"type": st.sampled_from(("text", "image", "audio", "resource", "resource_link", "other"))},
    optional={
        "text": values | st.text(),
        "data": values | st.text(),
        "mimeType": values | st.text(),
        "uri": values | st.text(),
        "name": values | st.text(),
        "resource": values | st.fixed_dictionaries({"uri": st.text(), "blob": st.text()}),
    },
)
call_results = st.fixed_dictionaries(
    {"content": st.lists(blocks | values, max_size=4) | values},
    optional={"structuredContent": values, "isError": values},
)


async def kept(name: ResultName, payload: bytes) -> ObjectReference:
    """A store that takes everything."""
    return ObjectReference("results", str(name), len(payload), "SHA-256=")


def record(returned: object) -> Recorded | None:
    """What would be recorded; None if it is said that it can't be."""
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.turn_completed(calls=1)
    try:
        return asyncio.run(recorded(returned, journal.claimed("1-0"), kept))
    except ResultUnusable:
        return None


@given(st.binary(max_size=400) | values.map(lambda value: json.dumps(value).encode()))
def test_a_line_of_a_program_is_a_message_or_an_error(line: bytes) -> None:
    assert isinstance(parsed(line), SessionMessage | ValueError | RecursionError)


def test_a_line_that_is_nested_without_end_is_an_error() -> None:
    for opening in (b"[", b'{"a":', b'{"jsonrpc":"2.0","id":1,"result":{"a":' + b"["):
        assert isinstance(parsed(opening * 100_000), Exception)


@given(st.dictionaries(st.sampled_from(("tools", "nextCursor", "a")), values) | st.just({}), st.sampled_from(VERSIONS))
def test_any_result_is_gone_through_for_tools(result: dict[str, Any], version: str) -> None:
    readable, broken = without_broken(result, version)
    assert set(readable) == set(result)
    assert isinstance(broken, dict)


@given(st.lists(tools | values, max_size=4), st.sampled_from(VERSIONS))
def test_what_is_left_of_a_list_can_be_read_named_and_declared(listed: list[Any], version: str) -> None:
    extras = {"resultType": "complete", "ttlMs": 0, "cacheScope": "public"} if version == VERSIONS[-1] else {}
    readable, broken = without_broken({"tools": listed, **extras}, version)
    assert len(readable["tools"]) + len(broken) <= len(listed)
    kept_tools = [mcp_types.Tool.model_validate(tool, by_name=False) for tool in readable["tools"]]
    names = mesh_names("files", [tool.name for tool in kept_tools])
    for tool in kept_tools:
        assert not_offered(tool) in (None, not_offered(tool))
        declared = declaration(names[tool.name], tool, 5)
        try:
            encode(declared)
            check = checker_of(tool.input_schema)
        except ValueError:
            continue  # It is left out, and said.
        check({"a": 1})


@given(schema_objects, values.map(lambda value: value if isinstance(value, dict) else {"a": value}))
def test_any_schema_has_a_cost_or_is_unusable_and_checks_or_is_refused(
    schema: dict[str, Any], arguments: dict[str, Any]
) -> None:
    _, depth = size_of(arguments)
    try:
        assert cost(schema, depth) >= 1
        check = checker_of(schema)
    except SchemaUnusable:
        return
    except ValueError:
        return  # What is no schema, by the validator's own word.
    assert isinstance(check(arguments), str | None)


@given(call_results)
def test_any_answer_to_a_call_is_a_result_or_no_answer_of_the_protocol(raw: dict[str, Any]) -> None:
    try:
        answer = mcp_types.CallToolResult.model_validate(raw, by_name=False)
    except ValidationError:
        return
    assert isinstance(error_text(answer), str)
    told = record(result_of(answer))
    assert told is None or encode(told.result)


@given(values | st.builds(object) | st.binary() | st.sets(st.integers()) | st.complex_numbers())
def test_whatever_a_tool_gives_is_recorded_as_json_or_refused(returned: object) -> None:
    told = record(returned)
    assert told is None or encode(told.result)
