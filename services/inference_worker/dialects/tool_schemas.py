"""The schema of a tool's arguments in a form that every provider takes. Pure.

It is only what the model is shown: arguments are held against the tool's whole schema, which may say more.

| refused | by | shown instead |
|---|---|---|
| no `type`, or several, at the root | Anthropic, Gemini | `"type": "object"` |
| no `properties` | OpenAI, LM Studio | `"properties": {}` |
| `anyOf`, `oneOf`, `allOf`, `not`, `if` … at the root | OpenAI, Anthropic | the properties of all branches together |
| `$ref` at the root | OpenAI, Gemini | what it names |
| `$schema`, `$id`, `$comment` | Gemini | nothing |
| an array without `items` | OpenAI, Gemini | `"items": {}` |
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

DEPTH_MAX = 16
"""How deep a schema is looked into: what is deeper is shown as it is."""
BRANCHES_MAX = 64
_ALTERNATIVES = ("anyOf", "oneOf")
_CONDITIONAL = ("then", "else")
_NOT_AT_ROOT = frozenset(
    {*_ALTERNATIVES, *_CONDITIONAL, "allOf", "not", "if", "enum", "const", "$ref", "$schema", "$id", "$comment"}
    | {"dependentSchemas", "dependentRequired", "dependencies"}
)


def shown(schema: Schema) -> Schema:
    """The schema as a model is shown it: one object with properties, and nothing else at its root."""
    properties, required, open_ended = _gathered(schema, schema, DEPTH_MAX)
    kept = {key: value for key, value in schema.items() if key not in _NOT_AT_ROOT}
    if open_ended:
        # It may forbid what only a branch has.
        kept.pop("additionalProperties", None)
        kept.pop("unevaluatedProperties", None)
    kept |= {"type": "object", "properties": {name: _with_items(each, DEPTH_MAX) for name, each in properties.items()}}
    kept.pop("required", None)
    if required:
        kept["required"] = required
    return kept


def _gathered(schema: Any, root: Schema, depth: int) -> tuple[Schema, list[str], bool]:
    """The properties of a schema and of its branches; what is required by all; and whether it has branches."""
    schema = _resolved(schema, root)
    if not isinstance(schema, dict) or depth <= 0:
        return {}, [], False
    properties: Schema = {}
    _add(properties, schema.get("properties"))
    required = _names(schema.get("required"))
    branched = False
    for key in ("allOf", *_ALTERNATIVES, *_CONDITIONAL):
        branches = schema.get(key)
        branches = branches if isinstance(branches, list) else [branches] if isinstance(branches, dict) else []
        found = [_gathered(branch, root, depth - 1) for branch in branches[:BRANCHES_MAX]]
        for inner, _, _ in found:
            _add(properties, inner)
        branched = branched or bool(found)
        needed = [names for _, names, _ in found]
        if key == "allOf":
            required += [name for names in needed for name in names]
        elif key in _ALTERNATIVES and needed:
            required += [name for name in needed[0] if all(name in names for names in needed)]
    return properties, list(dict.fromkeys(required)), branched


def _add(properties: Schema, more: Any) -> None:
    """Add properties; one that is there in another form may then have either."""
    for name, schema in more.items() if isinstance(more, dict) else ():
        known = properties.setdefault(name, schema)
        if known == schema:
            continue
        forms = known["anyOf"] if isinstance(known, dict) and known.keys() == {"anyOf"} else [known]
        if schema not in forms:
            properties[name] = {"anyOf": [*forms, schema]}


def _resolved(schema: Any, root: Schema) -> Any:
    """What a local reference names; the schema itself without one."""
    for _ in range(DEPTH_MAX):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        named: Any = root
        for part in reference[2:].split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            named = named.get(key) if isinstance(named, dict) else None
        schema = named
    return schema


def _names(value: Any) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _with_items(schema: Any, depth: int) -> Any:
    """The same, in which each array says what it holds."""
    if isinstance(schema, list) and depth > 0:
        return [_with_items(each, depth - 1) for each in schema]
    if not isinstance(schema, dict) or depth <= 0:
        return schema
    # Not what stands for a value: a default may look like a schema.
    inner = {
        key: value if key in ("default", "const", "enum", "examples") else _with_items(value, depth - 1)
        for key, value in schema.items()
    }
    types = schema.get("type")
    if (types == "array" or (isinstance(types, list) and "array" in types)) and "prefixItems" not in schema:
        inner.setdefault("items", {})
    return inner
