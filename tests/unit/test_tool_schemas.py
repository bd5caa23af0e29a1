"""Schemas of tools as models are shown them: one object with properties, whatever the tool declares."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_worker.dialects.tool_schemas import shown

A, B = {"type": "integer"}, {"type": "string"}
REFUSED = ("anyOf", "oneOf", "allOf", "not", "enum", "const", "if", "then", "else", "$ref", "$schema", "$id")


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, {"type": "object", "properties": {}}),
        ({"type": "object"}, {"type": "object", "properties": {}}),
        ({"type": ["object", "null"]}, {"type": "object", "properties": {}}),
        (
            {"properties": {"a": A}, "required": ["a"], "additionalProperties": False, "description": "d"},
            {
                "type": "object",
                "properties": {"a": A},
                "required": ["a"],
                "additionalProperties": False,
                "description": "d",
            },
        ),
        ({"properties": None, "required": None}, {"type": "object", "properties": {}}),
        # What one branch requires need not be there; what all of them require must.
        (
            {
                "anyOf": [
                    {"properties": {"a": A, "b": B}, "required": ["a", "b"]},
                    {"properties": {"b": B}, "required": ["b"]},
                ],
                "additionalProperties": False,
            },
            {"type": "object", "properties": {"a": A, "b": B}, "required": ["b"]},
        ),
        (
            {"properties": {"a": A, "b": B}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            {"type": "object", "properties": {"a": A, "b": B}},
        ),
        (
            {"allOf": [{"properties": {"a": A}, "required": ["a"]}, {"properties": {"b": B}, "required": ["b"]}]},
            {"type": "object", "properties": {"a": A, "b": B}, "required": ["a", "b"]},
        ),
        # A property that has two forms may have either.
        (
            {"oneOf": [{"properties": {"a": A}}, {"properties": {"a": B}}, {"properties": {"a": A}}]},
            {"type": "object", "properties": {"a": {"anyOf": [A, B]}}},
        ),
        (
            {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "$ref": "#/$defs/In~1put",
                "$defs": {"In/put": {"type": "object", "properties": {"a": A}, "required": ["a"]}},
            },
            {
                "type": "object",
                "properties": {"a": A},
                "required": ["a"],
                "$defs": {"In/put": {"type": "object", "properties": {"a": A}, "required": ["a"]}},
            },
        ),
        (
            {"if": {"properties": {"a": {"const": 1}}}, "then": {"properties": {"b": B}}, "properties": {"a": A}},
            {"type": "object", "properties": {"a": A, "b": B}},
        ),
        (
            {"properties": {"a": {"type": "array"}, "b": {"properties": {"c": {"type": ["array", "null"]}}}}},
            {
                "type": "object",
                "properties": {
                    "a": {"type": "array", "items": {}},
                    "b": {"properties": {"c": {"type": ["array", "null"], "items": {}}}},
                },
            },
        ),
        (
            {"properties": {"a": {"default": {"type": "array"}, "type": "object"}}},
            {"type": "object", "properties": {"a": {"default": {"type": "array"}, "type": "object"}}},
        ),
    ],
)
def test_what_a_provider_would_refuse_is_shown_in_a_form_that_it_takes(schema: Any, expected: Any) -> None:
    before = deepcopy(schema)
    assert shown(schema) == expected
    assert schema == before, "arguments are still held against the whole of it"


def test_references_that_lead_nowhere_or_in_a_circle_are_no_failure() -> None:
    for reference in ("#/$defs/A", "#/nowhere", "https://elsewhere", 7, "#"):
        assert shown({"$ref": reference, "$defs": {"A": {"$ref": "#/$defs/A"}}})["properties"] == {}
    deep: dict[str, Any] = {"properties": {"a": A}}
    for _ in range(500):
        deep = {"anyOf": [deep]}
    assert shown(deep) == {"type": "object", "properties": {}}


_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["object", "array", "#/$defs/a", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*REFUSED, "type", "properties", "required", "items", "$defs", "a"]), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from([*REFUSED, "type", "properties", "required", "$defs"]), _values, max_size=6))
def test_any_schema_comes_to_an_object_with_properties(schema: dict[str, Any]) -> None:
    offered = shown(schema)
    assert offered["type"] == "object"
    assert isinstance(offered["properties"], dict)
    assert not offered.keys() & set(REFUSED)
