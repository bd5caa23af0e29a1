"""Names of valves: the keys under which the bucket `valves` has them, and where a change is announced."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

from contracts import subjects
from contracts.errors import InvalidName

ValveKind = Literal["pool", "lane", "tenant", "provider"]
"""What can be paused. A lane is a pool's of one priority: `default.low`."""
VALVE_KINDS: Final[tuple[ValveKind, ...]] = get_args(ValveKind)
LIMITS: Final = "limits"
"""The kind of key under which a tenant's limits for a while are."""

VALVES_PREFIX: Final = "$KV.valves."
VALVES_ALL: Final = VALVES_PREFIX + ">"
VALVES_CHANGED: Final = "valves.changed"
"""A valve was changed: told to all services on core NATS, once it is stored. Servers keep `$KV.>` within a domain."""


class ValveKey(NamedTuple):
    """A key of the bucket taken apart: `limits` and a tenant, or a kind of valve and what is meant."""

    kind: str
    name: str


def valve_key(kind: ValveKind, name: str) -> str:
    """Key of a valve: `<kind>.<name>`. Raises `InvalidName`."""
    return f"{kind}.{check_valve_name(kind, name)}"


def limits_key(tenant: str) -> str:
    """Key of a tenant's limits for a while: `limits.<tenant>`."""
    return f"{LIMITS}.{subjects.check_tenant(tenant)}"


def parse_valve_key(key: str) -> ValveKey:
    """Take a key apart. Raises `InvalidName` for one that this version does not know."""
    kind, _, name = key.partition(".")
    if kind == LIMITS:
        return ValveKey(kind, subjects.check_tenant(name))
    return ValveKey(kind, check_valve_name(check_valve_kind(kind), name))


def check_valve_kind(value: str) -> ValveKind:
    """Return a kind of valve unchanged, else raise `InvalidName`."""
    for kind in VALVE_KINDS:
        if kind == value:
            return kind
    raise InvalidName(f"not a kind of valve: {value!r:.80} (expected one of {', '.join(VALVE_KINDS)})")


def check_valve_name(kind: ValveKind, name: str) -> str:
    """Return a name that a valve of this kind may have unchanged, else raise `InvalidName`."""
    match kind:
        case "lane":
            pool, dot, priority = name.rpartition(".")
            if not dot:
                raise InvalidName(f"not a lane: {name!r:.80} (expected <pool>.<priority>)")
            return subjects.lane_key(pool, priority)
        case "tenant":
            return subjects.check_tenant(name)
        case _:
            # A provider's name is of the same form as a pool's.
            return subjects.check_pool(name)
