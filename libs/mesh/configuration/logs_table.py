"""What the operator says of logs in mesh.toml: `[logs]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from mesh.configuration.toml_tables import convert


class LogsConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What processes log. Unlike a variable it can be changed while they run."""

    level: Literal["debug", "info", "warning", "error"] | None = None
    """The least level that is logged. It outranks MESH_LOG_LEVEL, which holds where this is unset."""


def parse_logs(tables: Mapping[str, Any], source: str) -> LogsConfiguration:
    """Read `[logs]`. Raises `SettingsError`: one line, with the source and the key."""
    return convert(tables.get("logs", {}), LogsConfiguration, "logs", source)
