"""How long a stranger's JSON Schema may take: the evaluations that it leads to, counted before it is used. Pure.

A schema of a few lines can take for ever: twenty levels of `anyOf`, each of which refers to the next one twice, are a
million evaluations. So they are counted without being made: of each part once, and of a recursion as deep as the
instance is.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from contracts.fields import whole_number

STEPS_MAX = 100_000
"""Evaluations of one place of an instance: milliseconds."""
TOTAL_STEPS_MAX = 10_000_000
"""Evaluations of a whole instance: some tenths of a second."""
USUAL_DEPTH = 6
"""How deep arguments are nested that each tool has to take."""
NODES_MAX = 50_000
"""Parts of a schema that are counted, each for each depth that it is met at: a tenth of a second."""
LEVELS_MAX = 200
"""How deep a schema may be nested, references followed: the validator goes as deep on its stack."""
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE = ("not", "if", "then", "else")
_BELOW = (
    *("additionalProperties", "additionalItems", "unevaluatedProperties", "unevaluatedItems"),
    *("items", "contains", "propertyNames"),
)


class SchemaUnusable(ValueError):
    """A schema that would take too long, or is nested too deep."""


def check_cost(schema: dict[str, Any]) -> None:
    """Raise `SchemaUnusable` if the schema takes too long for any but the flattest instance, or is nested too deep."""
    cost(schema, USUAL_DEPTH)


def cost(schema: dict[str, Any], depth: int) -> int:
    """The most evaluations that lead to one place of an instance that is nested so deep. Raises `SchemaUnusable`."""
    return _Count(schema).of(schema, min(depth, LEVELS_MAX), 0)


class _Count:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._known: dict[tuple[int, int], int] = {}
        self._under_way: set[tuple[int, int]] = set()
        self._nodes = 0

    def of(self, node: Any, depth: int, level: int) -> int:
        """Evaluations of a schema on an instance that is nested `depth` deep."""
        if not isinstance(node, dict):
            return 1
        if level > LEVELS_MAX:
            raise SchemaUnusable(f"the schema is nested deeper than {LEVELS_MAX}")
        key = (id(node), depth)
        if key in self._known:
            return self._known[key]
        if key in self._under_way:
            return 0  # It refers to itself in place, which the validator does not follow.
        self._under_way.add(key)
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise SchemaUnusable(f"the schema has more than {NODES_MAX} parts")
        steps = 1 + sum(self.of(each, depth, level + 1) for each in self._in_place(node))
        if depth > 0:
            # Of properties an instance's place is below one alone; of the others it may be below all.
            for group in ("properties", "patternProperties"):
                named = node.get(group)
                if isinstance(named, dict):
                    steps += max((self.of(each, depth - 1, level + 1) for each in named.values()), default=0)
            for name in _BELOW:
                if name in node:
                    steps += self._below(node[name], depth - 1, level + 1)
            steps += self._below(node.get("prefixItems"), depth - 1, level + 1)
        self._under_way.discard(key)
        if steps > STEPS_MAX:
            raise SchemaUnusable(f"the schema leads to more than {STEPS_MAX} evaluations of one value")
        self._known[key] = steps
        return steps

    def _below(self, node: Any, depth: int, level: int) -> int:
        if isinstance(node, list):
            return max((self.of(each, depth, level) for each in node), default=0)
        return self.of(node, depth, level) if isinstance(node, dict) else 0

    def _in_place(self, node: dict[str, Any]) -> list[Any]:
        found: list[Any] = []
        for name in _IN_PLACE_LISTS:
            if isinstance(node.get(name), list):
                found += node[name]
        found += [node[name] for name in _IN_PLACE if name in node]
        for name in ("dependentSchemas", "dependencies"):
            if isinstance(node.get(name), dict):
                found += node[name].values()
        for name in ("$ref", "$dynamicRef", "$recursiveRef"):
            if isinstance(node.get(name), str):
                found.append(self._referred(node[name]))
        return found

    def _referred(self, reference: str) -> Any:
        """What a reference within the document leads to; by an anchor or a name it counts as the whole of it."""
        if not reference.startswith("#/"):
            return self._root
        at: Any = self._root
        for part in reference[2:].split("/"):
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(at, dict):
                at = at.get(name)
            elif isinstance(at, list):
                index = whole_number(name)
                at = at[index] if index is not None and index < len(at) else None
            else:
                return None
        return at


def size_of(instance: Any) -> tuple[int, int]:
    """How many values an instance has, and how deep they are nested."""
    values, depth = 0, 0
    level = [instance]
    while level:
        values += len(level)
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += each.values()
            elif isinstance(each, list):
                below += each
        level = below
        depth += bool(level)
    return values, depth
