"""Each key of the tables of tenants, pace, prices, capacity and places, with each wrong value: one line names it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from mesh.configuration.capacity_table import CapacitySettings, PlacesSettings
from mesh.configuration.checking import file_mistakes
from mesh.configuration.mesh_toml import NO_FILE, FallbackConfiguration, PoolConfiguration, parse_configuration
from mesh.configuration.pace_table import PaceSettings
from mesh.configuration.prices_table import ModelPrices
from mesh.configuration.reloading import read_again
from mesh.configuration.settings import load_settings
from mesh.configuration.tenants_table import TenantConfiguration
from mesh.errors import SettingsError

LOCAL = '[providers.local]\nkind = "openai"\nbase_url = "http://127.0.0.1:8000/v1"\n'
SCRIPTED = '[providers.scripted]\nkind = "scripted"\n'
POOL = '[pools.default]\nprovider = "local"\nmodel = "m"\n'

TABLES: dict[str, tuple[str, type[msgspec.Struct], str, tuple[str, ...]]] = {
    # What goes before, the type, the header, and the keys that are looked at: all, if none are named.
    "tenants.acme": ("", TenantConfiguration, "[tenants.acme]", ()),
    "tenants.default": ("", TenantConfiguration, "[tenants.default]", ()),
    "providers.scripted.pace": (SCRIPTED, PaceSettings, "[providers.scripted.pace]", ()),
    "providers.local.pace": (LOCAL, PaceSettings, "[providers.local.pace]", ()),
    "providers.local.prices.m": (LOCAL, ModelPrices, "[providers.local.prices.m]", ()),
    "providers.local.capacity": (LOCAL, CapacitySettings, "[providers.local.capacity]", ()),
    "pools.default.places": (LOCAL + POOL, PlacesSettings, "[pools.default.places]", ()),
    "pools.default": (LOCAL + POOL, PoolConfiguration, "", ("prefer", "weight", "fallbacks", "places")),
    "pools.default.fallbacks[0]": (
        LOCAL + POOL,
        FallbackConfiguration,
        "[[pools.default.fallbacks]]",
        ("provider", "weight", "model"),
    ),
}


def wrong_values(kind: inspect.Type) -> Iterator[str]:
    """As TOML has them."""
    if isinstance(kind, inspect.UnionType):
        kind = next(each for each in kind.types if not isinstance(each, inspect.NoneType))
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, (inspect.IntType, inspect.FloatType)):
        yield from (
            '"1"',
            "true",
            "[1]",
            "{ a = 1 }",
            "1979-05-27",
            "-1",
            "nan",
            "inf",
            "-inf",
            f"{10**40}",
            f"-{10**40}",
        )
        yield "1" * 400
        if kind.ge is None or kind.ge > 0:
            yield from ("0", "0.0", "-0.0")
        if kind.ge is not None:
            yield repr(type(kind.ge)(kind.ge - 1) if isinstance(kind, inspect.IntType) else kind.ge / 1.01 - 1e-12)
        if kind.le is not None:
            yield repr(kind.le + 1 if isinstance(kind, inspect.IntType) else kind.le * 1.01)
        if isinstance(kind, inspect.IntType):
            yield "1.5"
    elif isinstance(kind, inspect.LiteralType):
        yield from ('"other"', '""', "1", "true", "[]")
    elif isinstance(kind, inspect.StrType):
        yield from ('""', "1", "true", "[]", f'"{"x" * 4000}"')
    else:
        yield from ('"x"', "1", "true")


def cases() -> Iterator[Any]:
    for key, (before, kind, header, named) in TABLES.items():
        described = inspect.type_info(kind)
        assert isinstance(described, inspect.StructType)
        for field in described.fields:
            if named and field.name not in named:
                continue
            values = list(wrong_values(field.type))
            yield pytest.param(before, header, described, field.encode_name, values, key, id=f"{key}.{field.name}")
        yield pytest.param(before, header, described, "unknown", ["1"], key, id=f"{key}.unknown")


@pytest.mark.parametrize(("before", "header", "kind", "name", "values", "key"), list(cases()))
def test_a_wrong_value_is_named_in_one_line(
    before: str, header: str, kind: inspect.StructType, name: str, values: list[str], key: str
) -> None:
    others = {"provider": '"scripted"'} if kind.cls is FallbackConfiguration else {}
    others |= {each.encode_name: "1" for each in kind.fields if each.required and kind.cls is ModelPrices}
    settings = load_settings({"MESH_CONFIG": NO_FILE})
    for value in values:
        keys = "".join(f"{each} = {said}\n" for each, said in ({**others, name: value}).items())
        content = f"{before}{header}\n{keys}".encode()
        with pytest.raises(SettingsError) as failed:
            parse_configuration(content)
        told = str(failed.value)
        assert "\n" not in told
        assert len(told) < 500
        place = f"{key}: Object contains unknown field `unknown`" if name == "unknown" else f"{key}.{name}"
        assert told.startswith(f"mesh.toml: {place}"), told
        assert file_mistakes(content, "mesh.toml") == [told]
        assert read_again(settings, content)[0] is None, "the old ones are kept"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tenants = 1", "tenants: must be tables"),
        ("[tenants]\nacme = 1", "tenants.acme: "),
        ('[tenants."a.b"]', "tenants.'a.b': "),
        ('[tenants."*"]', "tenants.'*': "),
        ("[tenants.acme]\nweight = 0", "tenants.acme.weight: "),
        (f"{SCRIPTED}[providers.scripted.prices]\nm = 1", "providers.scripted.prices"),
        (f'{SCRIPTED}[providers.scripted.prices."m"]\ninput = 1', "providers.scripted.prices"),
        (f'{SCRIPTED}[providers.scripted.prices.""]\ninput = 1\noutput = 1', "providers.scripted.prices.'': "),
        (f'{SCRIPTED}[providers.scripted.prices."a.b c"]\ninput = 1', "providers.scripted.prices.'a.b c': "),
        ('[pools.default]\nprovider = ""', "pools.default.provider: "),
        ('[pools.default]\nprovider = "nobody"', "pools.default.provider: "),
        ("[pools.other]\nmax_output_tokens = 5", "pools.default: "),
        (f'{LOCAL}{POOL}[[pools.default.fallbacks]]\nprovider = "local"\nmodel = "m"', "pools.default.fallbacks[0]: "),
        (f'{LOCAL}{POOL}[[pools.default.fallbacks]]\nprovider = "nobody"', "pools.default.fallbacks[0].provider: "),
        (f'{LOCAL}{POOL}prefer = "latency"', "pools.default.prefer: "),
        (f'{LOCAL}{POOL}prefer = "cost"\n[[pools.default.fallbacks]]\nprovider = "scripted"', "pools.default.prefer: "),
        (f"{LOCAL}{POOL}weight = 2.0", "pools.default.weight: "),
        (f"{LOCAL}{POOL}[pools.default.places]\nmin = 3\nmax = 2", "pools.default.places.min: "),
        (f"{LOCAL}[providers.local.capacity]\nmin = 3\nmax = 2", "providers.local.capacity.min: "),
        (f'{LOCAL}[providers.local.capacity]\nurl = "ftp://x"', "providers.local.capacity.url: "),
    ],
)
def test_what_does_not_go_together_is_named_in_one_line(text: str, told: str) -> None:
    with pytest.raises(SettingsError) as failed:
        parse_configuration(text.encode())
    assert str(failed.value).startswith(f"mesh.toml: {told}"), str(failed.value)
    assert "\n" not in str(failed.value)
