"""What a turn puts out is measured in pieces: it is cut soon after all is used up, and no text is left out."""

from __future__ import annotations

import pytest

from contracts.journal.parts import Usage
from inference_worker.dialects.scripted.model import ScriptedProvider
from inference_worker.models.candidates import Candidate
from inference_worker.turn.budgets import PIECE_CHARACTERS, Measured
from mesh.budgets.spending import BYTES_PER_TOKEN
from mesh.configuration.mesh_toml import Configuration, PoolConfiguration
from mesh.configuration.prices_table import ModelPrices
from mesh.configuration.provider_tables import ScriptedProviderConfiguration
from mesh.ledger.prices import cost_micros, cost_of_output

PRICES = ModelPrices(input=0.0, output=2.0)
TOKENS_LEFT = 1_000


def bounded(tokens: int) -> Measured:
    """A turn whose task may cost what so many tokens do."""
    configuration = Configuration(
        providers={"scripted": ScriptedProviderConfiguration(prices={"*": PRICES})},
        pools={"default": PoolConfiguration()},
    )
    measured = Measured(None, configuration, cost_of_output(PRICES)(tokens))
    measured.asks(Candidate(ScriptedProvider(exit_allowed=False), "scripted", 0), [])
    return measured


@pytest.mark.parametrize("text", ["word", "a", "ä" * 3, "x" * 1_000])
def test_a_turn_is_cut_at_most_one_piece_late(text: str) -> None:
    measured, put_out = bounded(TOKENS_LEFT), 0
    while not measured.put_out(text):
        put_out += len(text.encode())
        assert put_out < BYTES_PER_TOKEN * TOKENS_LEFT + 2 * PIECE_CHARACTERS
    assert measured.is_used_up
    assert put_out + len(text.encode()) >= BYTES_PER_TOKEN * TOKENS_LEFT


def test_the_rest_is_measured_at_the_end() -> None:
    measured = bounded(1)
    assert not measured.put_out("x" * BYTES_PER_TOKEN)
    assert measured.measure()
    assert not measured.is_used_up, "it was not cut"


def test_what_nothing_bounds_is_not_measured() -> None:
    assert not Measured().put_out("x" * 10 * PIECE_CHARACTERS)


@pytest.mark.parametrize("tokens", [0, 1, 7, 333_333])
@pytest.mark.parametrize("price", [0.0, 0.15, 2.0, 75.0])
def test_what_output_costs_is_what_usage_costs(price: float, tokens: int) -> None:
    prices = ModelPrices(input=9.0, output=price)
    assert cost_of_output(prices)(tokens) == cost_micros(prices, Usage(output_tokens=tokens))
    assert cost_of_output(None)(tokens) == 0
