"""What is left of a tenant's budgets, as the HTTP fields `RateLimit` tell it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from mesh.budgets.limits import Limit, end_of, window_seconds
from mesh.serving.rate_limit_fields import Quota

COST_UNIT = "cost-micros"
"""Millionths of the currency of the prices: structured fields have whole numbers."""


def quotas_of(left: Mapping[Limit, int], at: datetime) -> list[Quota]:
    """A quota for each limit, by what is left of it."""
    return [
        Quota(
            limit.name,
            limit.most,
            window_seconds(limit.window, at),
            rest,
            (end_of(limit.window, at) - at).total_seconds(),
            "tokens" if limit.unit == "tokens" else COST_UNIT,
        )
        for limit, rest in left.items()
    ]
