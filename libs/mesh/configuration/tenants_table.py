"""What the operator says of tenants in mesh.toml: `[tenants.<name>]`, and `[tenants.default]` for all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from contracts.codec import exactly
from contracts.streams import LANE_BACKLOG_MAX
from contracts.subjects import PRIORITIES, TENANT_PATTERN
from contracts.tasks import Priority
from mesh.configuration.toml_tables import convert, named_tables
from mesh.errors import SettingsError

TENANTS_MAX = 10_000
TOKENS_MAX = 10**15
COST_MAX = 1e9

TenantName = Annotated[str, exactly(TENANT_PATTERN, 32)]
Tokens = Annotated[int, Meta(ge=1, le=TOKENS_MAX)]
Cost = Annotated[float, Meta(gt=0, le=COST_MAX)]
"""In the currency of the prices."""


class TenantConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant's part of the mesh. `[tenants.default]` holds for tenants without a table, each by itself.

    What a tenant's table leaves out is as `[tenants.default]` has it.
    """

    weight: Annotated[float, Meta(ge=0.01, le=1_000)] = 1.0
    """Its share of each lane, in tokens, as it stands to the weights of the others that have work there."""
    tier: Priority = "high"
    """The most urgent lane that its tasks get. A task that asks for more gets this one."""
    lower_above_tokens: Tokens | None = None
    """Tasks that are thought to cost more tokens get the next less urgent lane. Unset: size lowers nothing."""
    backlog: Annotated[int, Meta(ge=1, le=LANE_BACKLOG_MAX)] = LANE_BACKLOG_MAX
    """How many of its tasks may wait in one lane, beside those few that are next. One more is refused: 503
    `queue-full`. In a flood each ingress beside the first may let in 3 % more."""
    running: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """How many of its turns may be worked on, or be next, at a time, in all lanes: no more tasks of it begin meanwhile.
    What has begun goes on, with its sub-tasks. Unset: as many as there is room for."""
    tokens_per_minute: Tokens | None = None
    """Tokens, read and put out, that its tasks may use in a minute."""
    tokens_per_day: Tokens | None = None
    """The same in a day, by UTC."""
    tokens_per_month: Tokens | None = None
    """The same in a month, by UTC."""
    cost_per_minute: Cost | None = None
    """What its tasks may cost in a minute, in the currency of the prices."""
    cost_per_day: Cost | None = None
    """The same in a day, by UTC."""
    cost_per_month: Cost | None = None
    """The same in a month, by UTC."""
    on_exhausted: Literal["refuse", "wait"] = "refuse"
    """What follows on a budget that is used up. `refuse`: new tasks get 429 `budget-exhausted`. `wait`: they are
    taken, and wait until it frees. Tasks that run, and those of triggers, wait before their next turn in both cases.
    In mid-turn `refuse` cuts them."""


class TenantsConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, checked."""

    tenants: dict[str, TenantConfiguration] = {}
    by_default: TenantConfiguration = TenantConfiguration()

    def of(self, tenant: str) -> TenantConfiguration:
        """What holds for a tenant."""
        return self.tenants.get(tenant, self.by_default)


TenantOf = Callable[[str], TenantConfiguration]
"""Tells what holds for a tenant at present: what the operator has set, but for what holds for a while."""


def lane_of(tenant: TenantConfiguration, priority: Priority) -> Priority:
    """The lane of a tenant's task that asks for this one: no more urgent than the tenant's tier."""
    return max(priority, tenant.tier, key=PRIORITIES.index)


def parse_tenants(tables: Mapping[str, Any], source: str) -> TenantsConfiguration:
    """Read `[tenants.…]`. Raises `SettingsError`: one line, with the source and the key at fault."""
    found = named_tables(tables, "tenants", TenantName, source)
    if len(found) > TENANTS_MAX:
        raise SettingsError(f"{source}: tenants: more than {TENANTS_MAX} tables")
    default = found.get("default", {})
    by_default = convert(default, TenantConfiguration, "tenants.default", source)
    tenants = {
        # The default's own table was read: what it says is right, and a table that is none is told here.
        name: convert(default | table if isinstance(table, dict) else table, TenantConfiguration, key, source)
        for name, table in found.items()
        if (key := f"tenants.{name}")
    }
    return TenantsConfiguration(tenants=tenants, by_default=by_default)
