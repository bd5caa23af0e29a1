"""A stranger's schema, and arguments held against it, take a bounded time."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.tools.arguments import checker_of
from mesh.tools.schema_cost import SchemaUnusable, cost, size_of


def doubling(levels: int) -> dict[str, Any]:
    """Each level refers to the next one twice: 2**levels evaluations of one value."""
    definitions: dict[str, Any] = {
        f"a{level}": {"anyOf": [{"$ref": f"#/$defs/a{level + 1}"}] * 2} for level in range(levels)
    }
    definitions[f"a{levels}"] = {"type": "string"}
    return {"type": "object", "properties": {"x": {"$ref": "#/$defs/a0"}}, "$defs": definitions}


TREE: dict[str, Any] = {
    "$defs": {
        "node": {
            "anyOf": [
                {"properties": {"child": {"$ref": "#/$defs/node"}}, "required": ["left"]},
                {"properties": {"child": {"$ref": "#/$defs/node"}}, "required": ["right"]},
            ]
        }
    },
    "$ref": "#/$defs/node",
}
"""Each level of an instance doubles the evaluations."""


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"child": value}
    return value


@pytest.mark.parametrize("levels", [16, 20, 60])
def test_a_schema_that_doubles_with_each_level_is_refused(levels: int) -> None:
    with pytest.raises(SchemaUnusable):
        checker_of(doubling(levels))


def test_a_schema_of_a_few_such_levels_is_taken_and_checks_at_once() -> None:
    check = checker_of(doubling(12))
    assert check({"x": "text"}) is None
    assert check({"x": 1}) == "do not fit the tool's schema"


def test_any_of_nested_twenty_deep_is_taken_where_it_does_not_double() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(20):
        schema = {"anyOf": [schema, {"type": "integer"}]}
    check = checker_of({"type": "object", "properties": {"x": schema}})
    assert check({"x": "text"}) is None
    assert "is not valid under any" in (check({"x": []}) or "")


def test_a_chain_of_references_that_would_exhaust_the_stack_is_refused() -> None:
    definitions: dict[str, Any] = {f"a{at}": {"$ref": f"#/$defs/a{at + 1}"} for at in range(100_000)}
    with pytest.raises(SchemaUnusable):
        checker_of({"$defs": definitions, "$ref": "#/$defs/a0"})


def test_arguments_that_are_nested_so_deep_that_a_schema_doubles_too_often_are_refused() -> None:
    check = checker_of(TREE)
    assert check({"left": 1}) is None
    assert "is not valid" in (check(nested(3)) or "")
    assert check(nested(60)) == "nested too deep to be held against the tool's schema"


def test_a_schema_of_very_many_parts_is_refused() -> None:
    with pytest.raises(SchemaUnusable):
        checker_of({"properties": {str(at): {"type": "string"} for at in range(60_000)}})


def test_a_recursion_that_does_not_double_is_taken_much_deeper() -> None:
    tree = {"$defs": {"node": {"properties": {"child": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"}
    assert checker_of(tree)(nested(60)) is None


@pytest.mark.parametrize("reference", ["#", "#/$defs/a", "#/nowhere", "#anchor", "#/$defs/a/0/%zz"])
def test_references_to_itself_and_to_nothing_count_for_little(reference: str) -> None:
    schema = {"$ref": reference, "$defs": {"a": {"$ref": "#/$defs/a"}}}
    assert cost(schema, 10) < 100


def test_the_size_of_an_instance_is_its_values_and_its_depth() -> None:
    assert size_of({"a": [1, {"b": 2}], "c": "text"}) == (6, 3)
    assert size_of("text") == (1, 0)
