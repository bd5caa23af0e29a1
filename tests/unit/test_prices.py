"""What usage costs, and which counters it adds to: tables, and names that come back as they went."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import InvalidName
from contracts.journal.parts import Usage
from contracts.records.usage import (
    NOT_TOLD,
    Counter,
    Place,
    amounts,
    counter_of,
    counters_of,
    day_of,
    days_of,
    month_of,
)
from contracts.subjects import USAGE_ALL, matches
from mesh.configuration.mesh_toml import parse_configuration
from mesh.configuration.prices_table import ModelPrices, prices_of
from mesh.errors import SettingsError
from mesh.ledger.prices import cost_micros, priced

PRICES = ModelPrices(input=2.5, cached_input=0.25, cache_creation=3.0, output=10.0)
FILE = '[providers.x]\nkind = "scripted"\n[providers.x.prices."m"]\n'


@pytest.mark.parametrize(
    ("usage", "prices", "micros"),
    [
        (Usage(1_000_000, 0), PRICES, 2_500_000),
        (Usage(0, 3), PRICES, 30),
        (Usage(10, 2, cached_tokens=4), PRICES, 15 + 1 + 20),
        (Usage(10, 2, cached_tokens=4, cache_creation_tokens=5), PRICES, 39),  # 2.5 + 1 + 15 + 20, rounded once
        (Usage(10, 2, reasoning_tokens=2), PRICES, 45),  # reasoning is a part of the output
        (Usage(10, 0, cached_tokens=4), ModelPrices(input=1, output=1), 10),  # without a price of its own as input
        (Usage(1, 0), ModelPrices(input=0.4, output=0), 0),
        (Usage(1, 0), ModelPrices(input=0.5, output=0), 1),
        (Usage(3, 0, cached_tokens=5), PRICES, 1),  # a part that is told as more than the whole
        (Usage(5, 5), ModelPrices(input=0, output=0), 0),
        (Usage(5, 5), None, None),
    ],
)
def test_a_call_costs_its_tokens_times_their_prices_rounded_once(
    usage: Usage, prices: ModelPrices | None, micros: int | None
) -> None:
    assert cost_micros(prices, usage) == micros


def test_what_is_not_known_costs_an_unknown_amount_and_never_nothing() -> None:
    assert priced(PRICES, Usage(untold_calls=1)).cost_micros is msgspec.UNSET
    assert priced(None, Usage(3, 4)) == Usage(3, 4)
    assert priced(ModelPrices(input=0, output=0), Usage(3, 4)).cost_micros == 0
    assert dict(amounts(Usage(3, 4))) == {"input": 3, "output": 4, "unpriced": 7}
    assert dict(amounts(priced(PRICES, Usage(3, 4)), turns=1)) == {"input": 3, "output": 4, "turns": 1, "cost": 48}
    assert dict(amounts(Usage(3, 4, cost_micros=9, unpriced_tokens=2))) == {
        "input": 3,
        "output": 4,
        "cost": 9,
        "unpriced": 2,
    }
    assert dict(amounts(Usage(untold_calls=1))) == {"untold": 1}


def test_a_model_has_its_own_prices_or_those_of_any() -> None:
    any_model = ModelPrices(input=1, output=1)
    assert prices_of({"m": PRICES, "*": any_model}, "m") is PRICES
    assert prices_of({"m": PRICES, "*": any_model}, "n") is any_model
    assert prices_of({"m": PRICES}, "n") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("input = -1\noutput = 1", "providers.x.prices"),
        ("input = 1", "output"),
        ("input = 1\noutput = 1\nreasoning = 1", "reasoning"),
        ("input = nan\noutput = 1", "providers.x.prices"),
        ("input = inf\noutput = 1", "providers.x.prices"),
    ],
)
def test_wrong_prices_stop_the_start_with_a_line_that_names_the_key(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=r"providers\.x") as raised:
        parse_configuration((FILE + text).encode())
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_prices_are_read_by_model() -> None:
    read = parse_configuration((FILE + "input = 1\noutput = 2.5").encode())
    assert read.providers["x"].prices == {"m": ModelPrices(input=1.0, output=2.5)}


@given(model=st.text(max_size=64))
def test_any_models_name_comes_back_from_its_counters_subject(model: str) -> None:
    counter = Counter(Place("acme", "2026-11-27", "openai", model or "m", "default"), "cache_creation")
    if model.isprintable():
        assert counter_of(counter.subject) == counter
    assert matches(USAGE_ALL, counter.subject)
    assert matches(counters_of("acme", "2026-11-27"), counter.subject)
    assert not matches(counters_of("acme", "2026-11"), counter.subject)
    assert not matches(counters_of("acm", "2026-11-27"), counter.subject)


@pytest.mark.parametrize(
    "subject",
    [
        "usage.acme.2026-11-27.x.m.default",
        "usage.acme.2026-11-27.x.m.default.tokens",
        "usage.acme.2026.x.m.default.input",
        "usage.ACME.2026-11-27.x.m.default.input",
        "tasks.acme.2026-11-27.x.m.default.input",
    ],
)
def test_what_is_no_counter_is_none(subject: str) -> None:
    with pytest.raises(InvalidName):
        counter_of(subject)


def test_what_an_event_does_not_name_has_a_place_of_its_own() -> None:
    counter = Counter(Place("acme", "2026-11", NOT_TOLD, NOT_TOLD, NOT_TOLD), "input")
    assert counter_of(counter.subject) == counter


def test_days_are_of_utc() -> None:
    assert day_of(datetime(2026, 11, 28, 0, 30, tzinfo=timezone(timedelta(hours=1)))) == "2026-11-27"
    assert day_of(datetime(2026, 11, 28, tzinfo=UTC)) == "2026-11-28"
    assert month_of("2026-11-27") == "2026-11"
    assert days_of(date(2026, 12, 31), date(2027, 1, 1)) == ["2026-12-31", "2027-01-01"]
    assert days_of(date(2026, 12, 31), date(2026, 12, 31)) == ["2026-12-31"]
