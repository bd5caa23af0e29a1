"""What is left of a tenant's budgets, as the HTTP fields `RateLimit` tell it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache

from mesh.budgets.limits import Limit, begin_of, end_of, window_seconds
from mesh.serving.rate_limit_fields import Quota

COST_UNIT = "cost-micros"
"""Millionths of the currency of the prices: structured fields have whole numbers."""


def quotas_of(left: Mapping[Limit, int], at: datetime) -> list[Quota]:
    """A quota for each limit, by what is left of it."""
    minute, seconds = begin_of("minute", at), at.second + at.microsecond / 1e6
    quotas = []
    for limit, rest in left.items():
        name, unit, window, to_the_end = _told(limit, minute)
        quotas.append(Quota(name, limit.most, window, rest, to_the_end - seconds, unit))
    return quotas


@lru_cache(maxsize=1_024)
def _told(limit: Limit, minute: datetime) -> tuple[str, str, int, float]:
    """Name and unit of a limit, how long its window is, and how long it goes on from a minute's begin: in seconds."""
    unit = "tokens" if limit.unit == "tokens" else COST_UNIT
    to_the_end = (end_of(limit.window, minute) - minute).total_seconds()
    return limit.name, unit, window_seconds(limit.window, minute), to_the_end
