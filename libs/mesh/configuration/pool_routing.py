"""What a pool prefers among its models, and how its settings have to fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

from msgspec import Meta

from mesh.configuration.prices_table import Prices, prices_of
from mesh.errors import SettingsError

Prefer = Literal["order", "cost", "latency", "balanced"]
Weight = Annotated[float, Meta(gt=0, le=1_000)]

SCRIPTED_MODEL: Final = "scripted"
"""The model of a pool that names none."""
_NEEDS_PRICES: Final = ("cost", "balanced")


def check_routing(
    prefer: Prefer, models: Sequence[tuple[str, str | None, float]], prices: Mapping[str, Prices], where: str
) -> None:
    """Raise `SettingsError` if the preference can't be followed. `models`: provider, model and weight of each.

    `prices`: those of each provider.
    """
    if prefer == "order":
        for at, (_, _, weight) in enumerate(models):
            if weight != 1.0:
                key = where if at == 0 else f"{where}.fallbacks[{at - 1}]"
                raise SettingsError(f'{key}.weight: counts with prefer = "cost", "latency" or "balanced" alone')
        return
    if len(models) == 1:
        raise SettingsError(f"{where}.prefer: {prefer} needs fallbacks: there is one model alone")
    if prefer in _NEEDS_PRICES:
        for provider, model, _ in models:
            name = model or SCRIPTED_MODEL
            if prices_of(prices[provider], name) is None:
                key = f'providers.{provider}.prices."{name}"'
                raise SettingsError(f"{where}.prefer: {prefer} needs the prices of each model; there is no {key}")
