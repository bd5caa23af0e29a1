"""What a pool's preference needs of its settings."""

from __future__ import annotations

import pytest

from mesh.configuration.mesh_toml import parse_configuration
from mesh.errors import SettingsError

TWO = """
[providers.local]
kind = "openai"
base_url = "http://127.0.0.1:8000/v1"
[pools.default]
provider = "local"
model = "m"
"""
SCRIPTED = 'fallbacks = [{ provider = "scripted" }]\n'


def test_a_pool_has_a_preference_and_its_models_have_weights() -> None:
    text = TWO + 'prefer = "latency"\nweight = 3\nfallbacks = [{ provider = "scripted", weight = 0.5 }]'
    pool = parse_configuration(text.encode()).pools["default"]
    assert (pool.prefer, [(each.provider, each.weight) for each in pool.models]) == (
        "latency",
        [("local", 3.0), ("scripted", 0.5)],
    )
    assert parse_configuration(TWO.encode()).pools["default"].prefer == "order"


def test_with_prices_of_each_model_a_pool_may_prefer_what_costs_least() -> None:
    prices = """
    [providers.local.prices."*"]
    input = 1
    output = 2
    [providers.scripted]
    kind = "scripted"
    [providers.scripted.prices."scripted"]
    input = 0
    output = 0
    """
    for prefer in ("cost", "balanced"):
        text = f'{TWO}prefer = "{prefer}"\n{SCRIPTED}{prices}'
        assert parse_configuration(text.encode()).pools["default"].prefer == prefer
        with pytest.raises(SettingsError, match=r'there is no providers\.scripted\.prices\."scripted"'):
            parse_configuration(text.replace('prices."scripted"', 'prices."other"').encode())


@pytest.mark.parametrize(
    ("more", "key", "why"),
    [
        ('prefer = "latency"', "pools.default.prefer", "latency needs fallbacks"),
        ('prefer = "speed"', "pools.default.prefer", "'speed'"),
        ('prefer = "latency"\nfallbacks = [{ provider = "no" }]', "pools.default.fallbacks[0].provider", "no provider"),
        # Fallbacks are models, and no pools: what could go round is one that is there twice.
        (
            'prefer = "latency"\nfallbacks = [{ provider = "local", model = "m" }]',
            "pools.default.fallbacks[0]",
            "one of the pool's models already",
        ),
        (f'prefer = "cost"\n{SCRIPTED}', "pools.default.prefer", 'there is no providers.local.prices."m"'),
        (f'prefer = "balanced"\n{SCRIPTED}', "pools.default.prefer", "needs the prices of each model"),
        ("weight = 2", "pools.default.weight", "alone"),
        ("weight = 0", "pools.default.weight", "> 0"),
        ("weight = -1.5", "pools.default.weight", "> 0"),
        (f'prefer = "latency"\nweight = 1e9\n{SCRIPTED}', "pools.default.weight", "<= 1000"),
        ('fallbacks = [{ provider = "scripted", weight = 0 }]', "pools.default.fallbacks[0].weight", "> 0"),
        ('fallbacks = [{ provider = "scripted", weight = 2 }]', "pools.default.fallbacks[0].weight", "alone"),
    ],
)
def test_settings_that_can_not_be_followed_are_one_line_that_names_the_key(more: str, key: str, why: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_configuration((TWO + more).encode(), "mesh.toml")
    said = str(raised.value)
    assert said.startswith(f"mesh.toml: {key}")
    assert why in said
    assert "\n" not in said
