"""Templates: JSON whose texts have places for what a signal says.

`{{payload.sku}}`, `{{payload.lines.0.sku}}`, `{{payload}}`, `{{subject}}`, `{{time}}`. A text that is one placeholder
and nothing else takes the JSON value; inside a longer text a text stands as it is, and any other value as JSON. A value
is never read again as a template. Names that hold a dot or white space can't be reached.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from contracts.codec import encode
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.triggers.conditions import MISSING, lookup

_OPEN = "{{"
_PLACEHOLDER = re.compile(r"\{\{ ?(payload(?:\.[^\s.{}]+)*|subject|time) ?\}\}")


class FieldMissing(TaskmeshError):
    """A signal has not what a template asks for."""

    code = "trigger-field-missing"


def placeholders(template: Any) -> set[str]:
    """What a template asks for. Raises `InvalidPayload` for what looks like a placeholder and is none."""
    found: set[str] = set()

    def collect(path: str) -> str:
        found.add(path)
        return path

    _filled(template, collect)
    return found


def render(template: Any, payload: Any, subject: str, time: str) -> Any:
    """The template with the signal's values in its places. Raises `FieldMissing`."""

    def value_of(path: str) -> Any:
        if path == "subject":
            return subject
        if path == "time":
            return time
        value = lookup(payload, path.split(".")[1:])
        if value is MISSING:
            raise FieldMissing(f"the signal has no {path}")
        return value

    return _filled(template, value_of)


def _filled(template: Any, value_of: Callable[[str], Any]) -> Any:
    if isinstance(template, str):
        return _filled_text(template, value_of)
    if isinstance(template, list):
        return [_filled(each, value_of) for each in template]
    if isinstance(template, dict):
        for name in template:
            if _OPEN in name:
                raise InvalidPayload(f"{name!r:.80}: a name takes no placeholder")
        return {name: _filled(each, value_of) for name, each in template.items()}
    return template


def _filled_text(template: str, value_of: Callable[[str], Any]) -> Any:
    rest = _PLACEHOLDER.sub("", template)
    if _OPEN in rest:
        start = rest.index(_OPEN)
        raise InvalidPayload(f"{rest[start : start + 40]!r} is no placeholder: there are payload.…, subject and time")
    whole = _PLACEHOLDER.fullmatch(template)
    if whole is not None:
        return value_of(whole[1])
    return _PLACEHOLDER.sub(lambda found: _as_text(value_of(found[1])), template)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else encode(value).decode("utf-8")
