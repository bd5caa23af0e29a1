"""What the operator says of large results in mesh.toml: `[results]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mesh.configuration.toml_tables import convert


class ResultsConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Results of more than 256 KiB. They lie in the object store bucket `results` for as long as their tasks."""

    tenant_share: Annotated[float, Meta(gt=0, le=1)] = 0.25
    """The part of the bucket that one tenant's results may take. Beyond it its calls fail, with `result-quota`."""


def parse_results(tables: Mapping[str, Any], source: str) -> ResultsConfiguration:
    """Read `[results]`. Raises `SettingsError`: one line, with the source and the key."""
    return convert(tables.get("results", {}), ResultsConfiguration, "results", source)
