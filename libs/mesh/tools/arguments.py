"""A call's arguments against the JSON Schema that its tool declares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema_rs

from mesh.tools.schema_cost import LEVELS_MAX, TOTAL_STEPS_MAX, SchemaUnusable, check_cost, cost, size_of

PATTERN_STEPS_MAX = 100_000
"""How far a pattern in a schema may backtrack: milliseconds."""
REASON_CHARACTERS_MAX = 2_000
"""Of what is wrong with arguments, or with a call: it goes into an event, and to the model."""
EXPLAINED_STEPS_MAX = 1_000
"""How costly a schema may be for the validator to say what does not fit: it gathers the errors of all branches."""


def checker_of(schema: dict[str, Any]) -> Callable[[dict[str, Any]], str | None]:
    """What says why arguments don't fit a schema; None if they do.

    Raises `ValueError` for what is no schema, needs a document from afar, or would take too long.
    """
    check_cost(schema)
    costs: dict[int, int] = {}
    # A schema of a stranger: nothing is fetched for it, and its patterns can't search for long.
    patterns = jsonschema_rs.FancyRegexOptions(backtrack_limit=PATTERN_STEPS_MAX)
    validator = jsonschema_rs.validator_for(schema, offline=True, pattern_options=patterns)

    def check(given: dict[str, Any]) -> str | None:
        values, depth = size_of(given)
        depth = min(depth, LEVELS_MAX)
        if depth not in costs:
            try:
                costs[depth] = cost(schema, depth)
            except SchemaUnusable:
                costs[depth] = TOTAL_STEPS_MAX + 1
        steps = costs[depth]
        if steps > TOTAL_STEPS_MAX:
            return "nested too deep to be held against the tool's schema"
        if steps * values > TOTAL_STEPS_MAX:
            return "too large to be held against the tool's schema"
        if validator.is_valid(given):
            return None
        if steps > EXPLAINED_STEPS_MAX:
            return "do not fit the tool's schema"
        try:
            validator.validate(given)
        except jsonschema_rs.ValidationError as error:
            where = "".join(f"[{part!r}]" for part in error.instance_path)
            return f"{error.message} - at `${where}`"[:REASON_CHARACTERS_MAX]
        return None

    return check
