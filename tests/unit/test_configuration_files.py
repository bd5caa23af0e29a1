"""Which configuration file counts, and that the examples are valid."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from mesh.configuration.mesh_toml import NO_FILE, default_configuration, parse_configuration
from mesh.configuration.settings import load_settings
from mesh.errors import SettingsError
from tests.unit.test_configuration import LOCAL, POOL, ROOT, parse


def test_the_file_is_the_one_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text(LOCAL + POOL)
    settings = load_settings({"MESH_CONFIG": str(file)})
    assert settings.pools == ("default",)
    assert settings.configuration.pools["default"].provider == "local"


@pytest.mark.parametrize("domain", ["a.b", "a b", "*", ">", "x" * 65])
def test_a_domain_is_one_name(domain: str) -> None:
    assert load_settings({"MESH_CONFIG": NO_FILE, "MESH_NATS_DOMAIN": "edge-1"}).nats_domain == "edge-1"
    with pytest.raises(SettingsError, match=r"MESH_NATS_DOMAIN=.*: must be letters, digits, - and _"):
        load_settings({"MESH_CONFIG": NO_FILE, "MESH_NATS_DOMAIN": domain})


def test_the_file_is_mesh_toml_where_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings({}).configuration == default_configuration()
    Path("mesh.toml").write_text("[pools.default]\n[pools.cpu]")
    assert load_settings({}).pools == ("default", "cpu")
    assert load_settings({"MESH_CONFIG": NO_FILE}).pools == ("default",)


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^MESH_CONFIG='.*missing\.toml': there is no such file$"):
        load_settings({"MESH_CONFIG": str(tmp_path / "missing.toml")})
    with pytest.raises(SettingsError, match=r"^MESH_CONFIG='.*': Is a directory$"):
        load_settings({"MESH_CONFIG": str(tmp_path)})


def test_the_example_is_valid_and_as_it_stands_changes_nothing() -> None:
    example = (ROOT / "mesh.example.toml").read_text()
    assert parse(example) == default_configuration()


def test_the_example_is_valid_with_everything_in_it_switched_on() -> None:
    lines = (ROOT / "mesh.example.toml").read_text().splitlines()
    switched_on = "\n".join(line.removeprefix("#") for line in lines if not line.startswith("# "))
    configuration = parse_configuration(switched_on.encode(), "mesh.example.toml")
    assert set(configuration.providers) == {"scripted", "vllm", "ollama", "llama_cpp", "openai", "anthropic"}
    assert set(configuration.pools) == {"default", "small", "large"}
    assert set(configuration.webhooks) == {"ops"}


@pytest.mark.parametrize(("page", "count"), [("README.md", 2), ("docs/getting-started.md", 4)])
def test_the_examples_of_the_pages_are_valid(page: str, count: int) -> None:
    lines = [line.strip() for line in (ROOT / page).read_text().splitlines()]
    examples = [pair for pair in pairwise(lines) if pair[0].startswith("providers.mine = ")]
    assert len(examples) == count
    for example in examples:
        assert parse_configuration("\n".join(example).encode()).pools["default"].provider == "mine"
