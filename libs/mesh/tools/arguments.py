"""A call's arguments against the JSON Schema that its tool declares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema_rs

PATTERN_STEPS_MAX = 100_000
"""How far a pattern in a schema may backtrack: milliseconds."""
REASON_CHARACTERS_MAX = 2_000
"""Of what is wrong with arguments, or with a call: it goes into an event, and to the model."""


def checker_of(schema: dict[str, Any]) -> Callable[[dict[str, Any]], str | None]:
    """What says why arguments don't fit a schema; None if they do.

    Raises `ValueError` for what is no schema, or needs a document from afar.
    """
    # A schema of a stranger: nothing is fetched for it, and its patterns can't search for long.
    patterns = jsonschema_rs.FancyRegexOptions(backtrack_limit=PATTERN_STEPS_MAX)
    validator = jsonschema_rs.validator_for(schema, offline=True, pattern_options=patterns)

    def check(given: dict[str, Any]) -> str | None:
        try:
            validator.validate(given)
        except jsonschema_rs.ValidationError as error:
            where = "".join(f"[{part!r}]" for part in error.instance_path)
            return f"{error.message} - at `${where}`"[:REASON_CHARACTERS_MAX]
        return None

    return check
