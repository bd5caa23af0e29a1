"""What JSON may say in another way than the types do: null for a field that is absent, and, of callers, 27.0 for 27.

Fields that have a default, but no null in their type, may be null all the same. A number without a fraction is an
integer to JSON Schema, however it is written; between services it has to be written as one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from msgspec import inspect


def mend(value: Any, kind: Any, *, whole_numbers: bool) -> bool:
    """Take optional fields that are null out of decoded JSON; and make integers of `whole_numbers` where one is due.

    In place; returns whether there was one. `kind` is the wire type that the value should have. What is no field of a
    type stays as it is: a null among a tool's arguments is the tool's.
    """
    return _Mending(whole_numbers).value(value, _described(kind))


@cache
def _described(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


class _Mending:
    """Goes through a value and its type side by side. Sums, where `any` would stop at the first."""

    def __init__(self, whole_numbers: bool) -> None:
        self._whole_numbers = whole_numbers

    def value(self, value: Any, kind: inspect.Type) -> bool:
        if isinstance(kind, inspect.Metadata):
            return self.value(value, kind.type)
        if isinstance(kind, inspect.UnionType):
            return sum(self.value(value, each) for each in kind.types if _fits(value, each)) > 0
        if isinstance(kind, inspect.StructType) and isinstance(value, dict):
            return self._struct(value, kind)
        if isinstance(kind, inspect.DictType) and isinstance(value, dict):
            return sum(self._item(value, key, kind.value_type) for key in value) > 0
        if isinstance(kind, inspect.ListType | inspect.VarTupleType) and isinstance(value, list):
            return sum(self._item(value, at, kind.item_type) for at in range(len(value))) > 0
        if isinstance(kind, inspect.TupleType) and isinstance(value, list):
            return sum(self._item(value, at, of) for at, of in enumerate(kind.item_types[: len(value)])) > 0
        return False

    def _item(self, container: Any, key: Any, kind: inspect.Type) -> bool:
        held = container[key]
        if self._whole_numbers and isinstance(held, float) and held.is_integer() and _is_integer(kind):
            container[key] = int(held)
            return True
        return self.value(held, kind)

    def _struct(self, value: dict[str, Any], kind: inspect.StructType) -> bool:
        mended = False
        for field in kind.fields:
            if field.encode_name not in value:
                continue
            if value[field.encode_name] is not None:
                mended = self._item(value, field.encode_name, field.type) or mended
            elif not field.required and not _takes_null(field.type):
                del value[field.encode_name]
                mended = True
        return mended


def _is_integer(kind: inspect.Type) -> bool:
    """Whether a number is to be an integer."""
    if isinstance(kind, inspect.Metadata):
        return _is_integer(kind.type)
    if isinstance(kind, inspect.UnionType):
        return any(map(_is_integer, kind.types)) and not any(isinstance(each, inspect.FloatType) for each in kind.types)
    return isinstance(kind, inspect.IntType)


def _takes_null(kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.Metadata):
        return _takes_null(kind.type)
    if isinstance(kind, inspect.UnionType):
        return kind.includes_none
    return isinstance(kind, inspect.NoneType | inspect.AnyType)


def _fits(value: Any, kind: inspect.Type) -> bool:
    """Whether a member of a union is the one that a value is of: types are told apart by their tags."""
    if isinstance(kind, inspect.Metadata):
        return _fits(value, kind.type)
    if isinstance(kind, inspect.StructType) and kind.tag_field is not None and isinstance(value, dict):
        return bool(value.get(kind.tag_field) == kind.tag)
    return True
