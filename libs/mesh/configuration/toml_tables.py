"""Tables of the configuration file: read strictly, and an error says the file and the whole key at fault."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from mesh.errors import SettingsError

HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,4094}[\x21-\x7e])?")

_ERROR = re.compile(r"(?P<what>.*?) - at (?P<of_name>`key` in )?`\$(?P<path>.*)`", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
"""A key that TOML takes without quotes."""

T = TypeVar("T")


def named_tables(tables: Mapping[str, Any], key: str, names: Any, source: str) -> dict[str, Any]:
    """The tables under a key, each with a name of the type `names`. Raises `SettingsError`."""
    found = tables.get(key, {})
    if not isinstance(found, dict):
        raise SettingsError(f"{source}: {key}: must be tables, each with a name: [{key}.<name>]")
    for name in found:
        convert(name, names, f"{key}.{name!r}", source)
    return found


def convert(value: Any, kind: type[T], key: str, source: str) -> T:
    """Read one table; the message of an error says the whole key, down to the field. Raises `SettingsError`."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, path = _named(value, kind, error)
        raise SettingsError(f"{source}: {key}{path}: {what}") from None


def _named(value: Any, kind: Any, error: msgspec.ValidationError) -> tuple[str, str]:
    """What is wrong, and where. Of a table whose names are anybody's the error does not tell the name: it is tried."""
    told = _ERROR.fullmatch(str(error))
    if told is None:
        return str(error), ""
    what, of_name, path = told["what"], told["of_name"], told["path"]
    before, any_name, after = path.partition("[...]")
    if not any_name and not of_name:
        return what, path
    at = value
    for name, index in _STEP.findall(before):
        at = at[int(index)] if index else at[name]
    names = at.items() if isinstance(at, dict) else ()
    for name, each in list(names):
        alone = _with(value, before, {name: each})
        try:
            msgspec.convert(alone, kind)
        except msgspec.ValidationError as found:
            if str(found) == str(error):
                part = name if _BARE.fullmatch(name) else repr(name)
                return what, f"{before}.{part}" if of_name else f"{before}.{part}{after}"
    return what, path


def _with(value: Any, path: str, table: dict[str, Any]) -> Any:
    """The same, with another table at a path."""
    steps = _STEP.findall(path)
    if not steps:
        return table
    (name, index), rest = steps[0], path[len(steps[0][0]) + 1 if steps[0][0] else len(steps[0][1]) + 2 :]
    if index:
        return [_with(each, rest, table) if at == int(index) else each for at, each in enumerate(value)]
    return value | {name: _with(value[name], rest, table)}
