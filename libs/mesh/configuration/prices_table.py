"""What the tokens of a model cost, as mesh.toml says it: `[providers.<name>.prices."<model>"]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

PRICE_MAX: Final = 1_000_000.0
MODELS_MAX: Final = 256
ANY_MODEL: Final = "*"
"""Whose price holds for each model of the provider that has none of its own."""

_Price = Annotated[float, Meta(ge=0, le=PRICE_MAX)]


class ModelPrices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a million tokens of a model cost, in whatever currency you count in: the same one for all models.

    The model's name is quoted, as it may hold dots; `"*"` is each model that has no prices of its own. A model of your
    own machine may cost 0. A price that changes counts for the turns that begin from then on.
    """

    input: _Price
    """Tokens that the model reads."""
    cached_input: _Price | None = None
    """Those of them that the provider had in its cache. Unset: as `input`."""
    cache_creation: _Price | None = None
    """Those of them that it wrote into its cache. Unset: as `input`."""
    output: _Price
    """Tokens that the model puts out, its reasoning included."""


Prices = Annotated[dict[Annotated[str, Meta(min_length=1, max_length=128)], ModelPrices], Meta(max_length=MODELS_MAX)]
"""By the model's name."""


def prices_of(prices: Mapping[str, ModelPrices], model: str) -> ModelPrices | None:
    """The prices of a model: its own, or those of `"*"`; None if there are neither."""
    return prices.get(model) or prices.get(ANY_MODEL)
