"""Conditions on a payload: a small language that is pure and total.

A list of conditions holds if each of them does. Whatever the payload is, a condition holds or does not: a field that is
not there, or a value of another kind than the one compared with, is no error.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from contracts.codec import exactly
from contracts.errors import InvalidPayload

CONDITIONS_MAX = 32
FIELD_CHARACTERS_MAX = 512
_POINTER = r"(/([^~]|~[01])*)?"

Operator = Literal["eq", "ne", "lt", "le", "gt", "ge", "in", "contains", "exists"]
_ORDERED = ("lt", "le", "gt", "ge")


class _Missing:
    """The type of `MISSING`."""


MISSING: Final = _Missing()
"""What a pointer leads to where there is nothing. Not null, which is a value."""


class Condition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a payload's field must be. `field` is a JSON pointer (RFC 6901); an empty one is the whole payload.

    `in` wants a list, of which the field is one; `contains` looks for `value` in a text, a list, or an object's names;
    `lt` and its like compare two numbers or two texts. `exists` takes no value, or false for a field that must not be
    there. A field that is missing fails all others, `ne` too.
    """

    field: Annotated[str, exactly(_POINTER, FIELD_CHARACTERS_MAX)]
    op: Operator
    value: Any | msgspec.UnsetType = msgspec.UNSET


def check(condition: Condition) -> None:
    """Refuse what could never hold. Raises `InvalidPayload`."""
    where = f"the condition on {condition.field!r}: {condition.op}"
    value = condition.value
    if condition.op == "exists":
        if value is not msgspec.UNSET and not isinstance(value, bool):
            raise InvalidPayload(f"{where} takes true, false or no value")
        return
    if value is msgspec.UNSET:
        raise InvalidPayload(f"{where} needs a value")
    if condition.op == "in" and not isinstance(value, list):
        raise InvalidPayload(f"{where} needs a list of values")
    if condition.op in _ORDERED and not (_is_number(value) or isinstance(value, str)):
        raise InvalidPayload(f"{where} needs a number or a text")


def hold(conditions: list[Condition], payload: Any) -> bool:
    """Whether all of them hold. No condition at all holds."""
    return all(holds(condition, payload) for condition in conditions)


def holds(condition: Condition, payload: Any) -> bool:
    """Whether one does."""
    found, value = lookup(payload, tokens_of(condition.field)), condition.value
    if condition.op == "exists":
        return (found is not MISSING) is (value is not False)
    if found is MISSING:
        return False
    match condition.op:
        case "eq":
            return _same(found, value)
        case "ne":
            return not _same(found, value)
        case "in":
            return isinstance(value, list) and any(_same(found, each) for each in value)
        case "contains":
            return _contains(found, value)
        case _:
            return _is_ordered(condition.op, found, value)


def tokens_of(pointer: str) -> list[str]:
    """The names and numbers of a JSON pointer."""
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]


def lookup(payload: Any, tokens: list[str]) -> Any:
    """What lies there, or `MISSING`."""
    for token in tokens:
        if isinstance(payload, dict) and token in payload:
            payload = payload[token]
        elif isinstance(payload, list) and _is_index(token) and int(token) < len(payload):
            payload = payload[int(token)]
        else:
            return MISSING
    return payload


def _is_index(text: str) -> bool:
    # As many digits as an index of a payload can have: int() of a text of any length is a way to stall a process.
    return text.isascii() and text.isdigit() and len(text) <= 7 and (text == "0" or text[0] != "0")  # noqa: PLR2004


def _contains(found: Any, value: Any) -> bool:
    if isinstance(found, str):
        return isinstance(value, str) and value in found
    if isinstance(found, list):
        return any(_same(each, value) for each in found)
    return isinstance(found, dict) and isinstance(value, str) and value in found


def _is_ordered(op: str, found: Any, value: Any) -> bool:
    if not (_is_number(found) and _is_number(value)) and not (isinstance(found, str) and isinstance(value, str)):
        return False
    return bool({"lt": found < value, "le": found <= value, "gt": found > value, "ge": found >= value}[op])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON values: true is not 1, as it is to Python. By a list of pairs: nesting needs no stack."""
    pairs = [(one, other)]
    while pairs:
        left, right = pairs.pop()
        if isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                return False
            pairs += zip(left, right, strict=True)
        elif isinstance(left, dict) and isinstance(right, dict):
            if left.keys() != right.keys():
                return False
            pairs += ((left[name], right[name]) for name in left)
        elif isinstance(left, bool) or isinstance(right, bool):
            if left is not right:
                return False
        elif left != right:
            return False
    return True
