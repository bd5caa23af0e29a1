"""`[providers.<name>.pace]`: what is read, and what is told of what is wrong."""

import pytest

from mesh.configuration.mesh_toml import parse_configuration
from mesh.errors import SettingsError


def test_what_a_provider_allows_is_unlimited_unless_it_is_set() -> None:
    configuration = parse_configuration(
        b"""
        [providers.plain]
        kind = "anthropic"
        [providers.scripted]
        kind = "scripted"
        pace = { requests_per_minute = 0.5, concurrency = 3 }
        [pools.default]
        fallbacks = [{ provider = "plain", model = "any" }]
        """
    )
    assert parse_configuration(b"").paces == {}, "the scripted model refuses nobody"
    plain, scripted = configuration.paces["plain"], configuration.paces["scripted"]
    assert (plain.is_set, plain.by_minute) == (False, {})
    assert (scripted.is_set, scripted.by_minute, scripted.concurrency) == (True, {"requests": 0.5}, 3)


@pytest.mark.parametrize(
    ("line", "key", "reason"),
    [
        ("requests_per_minute = 0", "providers.local.pace.requests_per_minute", ">= 0.1"),
        ("tokens_per_minute = -1", "providers.local.pace.tokens_per_minute", ">= 0.1"),
        ("input_tokens_per_minute = '1k'", "providers.local.pace.input_tokens_per_minute", "got `str`"),
        ("output_tokens_per_minute = inf", "providers.local.pace.output_tokens_per_minute", "<="),
        ("concurrency = 0", "providers.local.pace.concurrency", ">= 1"),
        ("concurrency = 1.5", "providers.local.pace.concurrency", "got `float`"),
        ("requests_per_second = 1", "providers.local.pace", "`requests_per_second`"),
    ],
)
def test_a_wrong_limit_is_named_in_one_line(line: str, key: str, reason: str) -> None:
    with pytest.raises(SettingsError) as wrong:
        parse_configuration(f"[providers.local]\nkind = 'anthropic'\n[providers.local.pace]\n{line}\n".encode())
    said = str(wrong.value)
    assert said.startswith(f"mesh.toml: {key}: ")
    assert reason in said
    assert "\n" not in said
