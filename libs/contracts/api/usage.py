"""What was used, and what it cost, as it is told to people and programs."""

from __future__ import annotations

from typing import Literal

import msgspec

from contracts.fields import Count, Tenant

UsageBy = Literal["day", "month", "provider", "model", "pool"]


class UsageRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was used by one day, month, provider, model or pool; `name` says by which, and is absent in a total.

    `turns` were completed. `cost_micros` is in millionths of the currency of the prices, without the `unpriced_tokens`,
    which have none; where it is absent nothing has a price. `untold_calls`: calls of models that are not in here, or
    not wholly, as their provider has told no usage.
    """

    name: str | msgspec.UnsetType = msgspec.UNSET
    input_tokens: Count
    output_tokens: Count
    cached_tokens: Count = 0
    cache_creation_tokens: Count = 0
    reasoning_tokens: Count = 0
    turns: Count = 0
    cost_micros: Count | msgspec.UnsetType = msgspec.UNSET
    unpriced_tokens: Count = 0
    untold_calls: Count = 0


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant has used from one day, or month, to another, both included. Rows without anything are left out."""

    tenant: Tenant
    since: str
    until: str
    by: UsageBy
    rows: list[UsageRow]
    total: UsageRow
