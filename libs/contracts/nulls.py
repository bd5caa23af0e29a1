"""Null as absence: fields that have a default, but no null in their type, may be null all the same."""

from __future__ import annotations

from functools import cache
from typing import Any

from msgspec import inspect


def drop_nulls(value: Any, kind: Any) -> bool:
    """Take optional fields that are null out of decoded JSON, in place; whether there was one.

    `kind` is the wire type that the value should have. What is no field of a type stays as it is: a null among a tool's
    arguments is the tool's.
    """
    return _drop(value, _described(kind))


@cache
def _described(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


# Sums below, where `any` would stop at the first.
def _drop(value: Any, kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.Metadata):
        return _drop(value, kind.type)
    if isinstance(kind, inspect.UnionType):
        return sum(_drop(value, each) for each in kind.types if _fits(value, each)) > 0
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        return _drop_of_struct(value, kind)
    if isinstance(kind, inspect.DictType) and isinstance(value, dict):
        return sum(_drop(each, kind.value_type) for each in value.values()) > 0
    if isinstance(kind, inspect.ListType | inspect.VarTupleType) and isinstance(value, list):
        return sum(_drop(each, kind.item_type) for each in value) > 0
    if isinstance(kind, inspect.TupleType) and isinstance(value, list):
        return sum(_drop(each, of) for each, of in zip(value, kind.item_types, strict=False)) > 0
    return False


def _drop_of_struct(value: dict[str, Any], kind: inspect.StructType) -> bool:
    dropped = False
    for field in kind.fields:
        if field.encode_name not in value:
            continue
        held = value[field.encode_name]
        if held is not None:
            dropped = _drop(held, field.type) or dropped
        elif not field.required and not _takes_null(field.type):
            del value[field.encode_name]
            dropped = True
    return dropped


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
