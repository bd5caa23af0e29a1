"""What usage costs, by the prices of mesh.toml. Pure.

Costs are whole millionths of the currency. A price is of a million tokens, so that a token costs as many millionths as
the price says; each call of a model is rounded once, half up, by whole numbers, so that all who count come to the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import msgspec

from contracts.journal.parts import Usage
from mesh.configuration.prices_table import ModelPrices

_PARTS: Final = 1_000_000
"""Of a millionth: what prices are rounded to before they are multiplied."""


def cost_micros(prices: ModelPrices | None, usage: Usage) -> int | None:
    """What the tokens of one call cost, in millionths of the currency; None, which is unknown, without prices."""
    if prices is None:
        return None
    cached, created = usage.cached_tokens or 0, usage.cache_creation_tokens or 0
    # A provider's own counts need not add up: what is told to be a part may be more than the whole.
    plain = max(0, usage.input_tokens - cached - created)
    of_plain, of_cached, of_created, of_output = _parts_of(prices)
    parts = plain * of_plain + cached * of_cached + created * of_created + usage.output_tokens * of_output
    return (parts + _PARTS // 2) // _PARTS


@lru_cache(maxsize=1_024)
def _parts_of(prices: ModelPrices) -> tuple[int, int, int, int]:
    """What a token costs in parts of a millionth: read, read from the cache, written into it, and put out."""
    of_cached = prices.input if prices.cached_input is None else prices.cached_input
    of_created = prices.input if prices.cache_creation is None else prices.cache_creation
    return _whole(prices.input), _whole(of_cached), _whole(of_created), _whole(prices.output)


def cost_of_output(prices: ModelPrices | None) -> Callable[[int], int]:
    """What so many tokens cost that a model puts out, as `cost_micros`: for who asks while it does. Unknown is 0."""
    price = 0 if prices is None else _whole(prices.output)
    return lambda tokens: (tokens * price + _PARTS // 2) // _PARTS


def priced(prices: ModelPrices | None, usage: Usage) -> Usage:
    """The usage of one call with its cost; as it is where that is unknown, for want of prices or of any count."""
    cost = cost_micros(prices, usage)
    if cost is None or not (usage.input_tokens or usage.output_tokens):
        return usage
    return msgspec.structs.replace(usage, cost_micros=cost)


def _whole(price: float) -> int:
    return round(price * _PARTS)
