"""What a pool prefers among its models, and how its settings have to fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from mesh.errors import SettingsError

Prefer = Literal["order", "cost", "latency", "balanced"]
Weight = Annotated[float, Meta(gt=0, le=1_000)]

_NEEDS_PRICES: Final = ("cost", "balanced")


def prices_of_model(provider: Any, model: str | None) -> Any:
    """The prices of a provider's model: its own, or those of `"*"`; None if there are neither."""
    prices: Mapping[str, Any] = getattr(provider, "prices", {})
    return prices.get(model or "") or prices.get("*")


def check_routing(
    prefer: Prefer, models: Sequence[tuple[str, str | None, float]], providers: Mapping[str, Any], where: str
) -> None:
    """Raise `SettingsError` if the preference can't be followed. `models`: provider, model and weight of each."""
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
            if prices_of_model(providers[provider], model) is None:
                key = f'providers.{provider}.prices."{model or "*"}"'
                raise SettingsError(f"{where}.prefer: {prefer} needs the prices of each model; there is no {key}")
