"""Valves: what people have paused, and limits that they have set for a while, in the bucket `valves`.

A record whose `until` has passed holds no more, whether it is still there or not: all go by the broker's clock.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from contracts.codec import decode, exactly
from contracts.errors import InvalidPayload
from contracts.fields import By, Tenant, Time
from contracts.subjects import LANE_NAME_PATTERN, PRIORITIES
from contracts.valve_keys import LIMITS, ValveKind, parse_valve_key

WHY_CHARACTERS_MAX = 500
LIMITS_MAX = 32
"""Keys of a tenant's limits."""

Why = Annotated[str, Meta(min_length=1, max_length=WHY_CHARACTERS_MAX)]
"""Why somebody did it: for people, callers included."""
ValveName = Annotated[str, exactly(rf"{LANE_NAME_PATTERN}(\.({'|'.join(PRIORITIES)}))?", 64)]
"""A pool, a tenant, a provider, or a lane: `<pool>.<priority>`."""
Limits = Annotated[dict[str, Any], Meta(min_length=1, max_length=LIMITS_MAX)]
"""Keys of a table `[tenants.<name>]` with their values. A reader passes over those that it does not know."""


class Valve(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that is paused, in the bucket `valves` under `<kind>.<name>`. Without a record it is not.

    `by` has paused it, `since` then, for `reason`; it goes on by itself at `until`, if there is one.
    """

    kind: ValveKind
    name: ValveName
    by: By
    since: Time
    until: Time | None = None
    reason: Why | None = None


class TenantLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Limits that a tenant has until a time, in place of those of mesh.toml: under `limits.<tenant>`."""

    tenant: Tenant
    limits: Limits
    by: By
    since: Time
    until: Time
    reason: Why | None = None


def decode_valve(key: str, payload: bytes) -> Valve | TenantLimits:
    """What the bucket has under a key.

    Raises `InvalidName`, `InvalidPayload` for what a reader of this version passes over.
    """
    kind, name = parse_valve_key(key)
    if kind == LIMITS:
        limits = decode(payload, TenantLimits)
        if limits.tenant != name:
            raise InvalidPayload(f"tenant: {limits.tenant} is not that of the key {key}")
        return limits
    valve = decode(payload, Valve)
    if (valve.kind, valve.name) != (kind, name):
        raise InvalidPayload(f"name: {valve.kind} {valve.name} is not that of the key {key}")
    return valve
