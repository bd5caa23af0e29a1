"""Limits that hold for a while, over those that mesh.toml gives a tenant. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import asdict

from contracts.errors import InvalidPayload
from mesh.configuration.tenants_table import TenantConfiguration
from mesh.configuration.toml_tables import convert
from mesh.errors import SettingsError

_KEYS: Final = TenantConfiguration.__struct_fields__


def check_limits(limits: Mapping[str, Any]) -> None:
    """Hold limits against what `[tenants.<name>]` takes. Raises `InvalidPayload`, which names the key at fault.

    Null takes a limit away.
    """
    unknown = sorted({*limits} - {*_KEYS})
    if unknown:
        raise InvalidPayload(f"limits: there is no key {unknown[0][:80]!r}; {', '.join(_KEYS)}")
    try:
        convert(dict(limits), TenantConfiguration, "limits", "the request")
    except SettingsError as error:
        raise InvalidPayload(str(error).removeprefix("the request: ")) from None


def with_limits(configured: TenantConfiguration, limits: Mapping[str, Any]) -> TenantConfiguration:
    """A tenant's settings with these in place of its own. What this version does not know, or take, changes nothing."""
    merged = asdict(configured)
    for key, value in limits.items():
        if key not in _KEYS:
            continue
        try:
            msgspec.convert({key: value}, TenantConfiguration)
        except msgspec.ValidationError:
            continue
        merged[key] = value
    return msgspec.convert(merged, TenantConfiguration)
