"""What is a turn thought to cost, and what has it cost: tokens and money, as budgets count them. Pure."""

from __future__ import annotations

from contracts.journal.parts import Estimate, Usage
from mesh.budgets.limits import Amount
from mesh.configuration.mesh_toml import Configuration
from mesh.configuration.pool_routing import SCRIPTED_MODEL
from mesh.configuration.prices_table import ModelPrices, prices_of
from mesh.ledger.prices import cost_micros


def prices_at(configuration: Configuration, provider: str, model: str | None) -> ModelPrices | None:
    """The prices of a model at a provider; None if it has none. A provider that is gone has none, either."""
    found = configuration.providers.get(provider)
    return prices_of(found.prices, model or SCRIPTED_MODEL) if found is not None else None


def thought_to_take(estimate: Estimate, prices: ModelPrices | None) -> Amount:
    """What a turn is thought to take of a budget. Without prices its cost counts as nothing: it is unknown."""
    if prices is None:
        return Amount(estimate.tokens)
    usage = Usage(input_tokens=estimate.input_tokens, output_tokens=estimate.output_tokens)
    return Amount(estimate.tokens, cost_micros(prices, usage) or 0)


def taken_by(usage: Usage, prices: ModelPrices | None) -> Amount:
    """What a turn has taken of a budget, as its provider has counted."""
    return Amount(usage.input_tokens + usage.output_tokens, cost_micros(prices, usage) or 0)
