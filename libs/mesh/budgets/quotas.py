"""What is left of a tenant's budgets, as the HTTP fields `RateLimit` tell it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from mesh.budgets.limits import Amount, Limit, Unit, end_of, window_seconds
from mesh.serving.rate_limit_fields import Quota, policy, quota

COST_UNIT = "cost-micros"
"""Millionths of the currency of the prices: structured fields have whole numbers."""


class Rest(NamedTuple):
    """What an account leaves of a limit, and how that is told: worked out once for all who ask within a second."""

    name: str
    unit: Unit
    policy: str
    left: int
    ends_at: float
    """When the window ends, in Unix time."""


def rests_of(limits: Sequence[Limit], left: Sequence[int], at: datetime) -> list[Rest]:
    """One for each limit, by what is left of it. `at`: a time in the windows."""
    return [
        Rest(limit.name, limit.unit, _policy(limit, at), rest, end_of(limit.window, at).timestamp())
        for limit, rest in zip(limits, left, strict=True)
    ]


def quotas_of(rests: Sequence[Rest], own: Amount, at: float) -> list[Quota]:
    """A quota for each limit. `own`: what is reserved for no task yet; `at`: the Unix time."""
    return [quota(name, text, max(0, left + own.of(unit)), ends_at - at) for name, unit, text, left, ends_at in rests]


def _policy(limit: Limit, at: datetime) -> str:
    unit = "tokens" if limit.unit == "tokens" else COST_UNIT
    return policy(limit.name, limit.most, window_seconds(limit.window, at), unit)
