"""Tables of the configuration file: read strictly, and an error says the file and the whole key at fault."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from mesh.errors import SettingsError

HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,4094}[\x21-\x7e])?")

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
        what, _, path = str(error).partition(" - at `$")
        raise SettingsError(f"{source}: {key}{path.rstrip('`')}: {what}") from None
