"""The limits of a tenant's budgets, and their windows: minutes, days and months by UTC. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from mesh.configuration.tenants_table import TENANTS_MAX, TenantConfiguration

Window = Literal["minute", "day", "month"]
Unit = Literal["tokens", "cost"]
WINDOWS: Final[tuple[Window, ...]] = ("minute", "day", "month")
UNITS: Final[tuple[Unit, ...]] = ("tokens", "cost")
MICROS: Final = 1_000_000
"""Millionths of the currency, in which costs are counted."""


class Amount(NamedTuple):
    """Tokens, read and put out, and what they cost in millionths of the currency."""

    tokens: int = 0
    cost_micros: int = 0

    def plus(self, other: Amount) -> Amount:
        """Both together."""
        return Amount(self.tokens + other.tokens, self.cost_micros + other.cost_micros)

    def minus(self, other: Amount) -> Amount:
        """What has to be added to the other to have this one; it may be less than nothing."""
        return Amount(self.tokens - other.tokens, self.cost_micros - other.cost_micros)

    def less(self, other: Amount) -> Amount:
        """What is left of it; never less than nothing."""
        return Amount(max(0, self.tokens - other.tokens), max(0, self.cost_micros - other.cost_micros))

    def times(self, count: int) -> Amount:
        """So often."""
        return Amount(self.tokens * count, self.cost_micros * count)

    def least(self, other: Amount) -> Amount:
        """The lesser of both, in each unit."""
        return Amount(min(self.tokens, other.tokens), min(self.cost_micros, other.cost_micros))

    def covers(self, other: Amount) -> bool:
        """Whether it is as much in both units."""
        return self.tokens >= other.tokens and self.cost_micros >= other.cost_micros

    def of(self, unit: Unit) -> int:
        """What it has of a unit."""
        return self.tokens if unit == "tokens" else self.cost_micros


NOTHING: Final = Amount()


class Limit(NamedTuple):
    """The most that a tenant may use in a window: tokens, or millionths of the currency."""

    window: Window
    unit: Unit
    most: int

    @property
    def name(self) -> str:
        """What clients know it by: `tokens-per-minute`, as its key in mesh.toml with hyphens."""
        return f"{self.unit}-per-{self.window}"

    def told(self) -> str:
        """The limit, for people."""
        many = f"{self.most} tokens" if self.unit == "tokens" else f"a cost of {self.most / MICROS:g}"
        return f"{many} in a {self.window}"


@lru_cache(maxsize=TENANTS_MAX)
def limits_of(tenant: TenantConfiguration) -> tuple[Limit, ...]:
    """The limits that are set. Empty for a tenant without a budget."""
    limits: list[Limit] = []
    for window in WINDOWS:
        tokens: int | None = getattr(tenant, f"tokens_per_{window}")
        cost: float | None = getattr(tenant, f"cost_per_{window}")
        if tokens is not None:
            limits.append(Limit(window, "tokens", tokens))
        if cost is not None:
            limits.append(Limit(window, "cost", max(1, round(cost * MICROS))))
    return tuple(limits)


def counted(amount: Amount, limits: tuple[Limit, ...]) -> Amount:
    """What an estimate counts for: only in units that are limited, and no more than the least of the limits.

    Else a task that is thought to take more than a whole window has could never begin.
    """
    return amount.least(least_of(limits))


@lru_cache(maxsize=TENANTS_MAX)
def least_of(limits: tuple[Limit, ...]) -> Amount:
    """The most that an estimate counts for, as `counted` has it."""
    tokens = min((limit.most for limit in limits if limit.unit == "tokens"), default=0)
    cost = min((limit.most for limit in limits if limit.unit == "cost"), default=0)
    return Amount(tokens, cost)


def begin_of(window: Window, at: datetime) -> datetime:
    """When the window began that this time is in."""
    match window:
        case "minute":
            return at.replace(second=0, microsecond=0)
        case "day":
            return at.replace(hour=0, minute=0, second=0, microsecond=0)
        case "month":
            return at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def end_of(window: Window, at: datetime) -> datetime:
    """When that window ends, and the next one begins, which is empty."""
    begin = begin_of(window, at)
    match window:
        case "minute":
            return begin + timedelta(minutes=1)
        case "day":
            return begin + timedelta(days=1)
        case "month":
            return (begin + timedelta(days=32)).replace(day=1)


def window_seconds(window: Window, at: datetime) -> int:
    """How long that window is."""
    return int((end_of(window, at) - begin_of(window, at)).total_seconds())
