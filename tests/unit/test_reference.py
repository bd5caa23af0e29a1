"""The reference pages: committed as they are rendered, and true of what reads the settings and the file."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import opentelemetry.sdk.environment_variables
import pytest

import mesh.configuration
from mesh.configuration.checking import unknown_variables
from mesh.configuration.mesh_toml import KEYS, Configuration, parse_configuration
from mesh.configuration.provider_tables import ServerConfiguration
from mesh.configuration.settings import BOUNDS, CHOICES, load_settings, variable_fields
from mesh.configuration.tenants_table import TenantsConfiguration
from mesh.configuration.tool_tables import ToolsConfiguration
from mesh.configuration.webhook_tables import SECRETS_MAX
from mesh.errors import SettingsError
from mesh.telemetry.variables import STANDARD_VARIABLES
from meshctl.reference.__main__ import MESH_TOML, REPOSITORY, SETTINGS, main, render
from meshctl.reference.mesh_toml_page import TABLES, Table

PAGES = (SETTINGS, MESH_TOML)
# For the processes of one mesh among themselves, and for tests: nobody sets these.
INTERNAL_VARIABLES = {
    "MESH_LISTENERS",
    "MESH_READY_FD",
    "MESH_CONFIG_SOURCE",
    "MESH_TEST_CLOCK",
    "MESH_TEST_POINTS",
    "MESH_TEST_SWITCH_OFF",
}
# No key of the file takes a time, so that reading one is an error that tells a known key from an unknown one.
NO_VALUE = "1979-05-27T07:32:00Z"
# What has to stand before a key for its table to be read at all. A list of tables is written inside of its own.
OPENAI, ANTHROPIC = ('[providers.x]\nkind = "openai"\n', '[providers.x]\nkind = "anthropic"\n')
BEFORE = {
    '[providers.<name>] kind = "openai"': OPENAI,
    '[providers.<name>] kind = "anthropic"': ANTHROPIC,
    '[providers.<name>] kind = "scripted"': '[providers.x]\nkind = "scripted"\n',
    "[providers.<name>.breaker]": '[providers.x]\nkind = "scripted"\n[providers.x.breaker]\n',
    "[providers.<name>.pace]": '[providers.x]\nkind = "scripted"\n[providers.x.pace]\n',
    '[providers.<name>.prices."<model>"]': '[providers.x]\nkind = "scripted"\n[providers.x.prices.y]\n',
    "[providers.<name>.capacity]": f"{OPENAI}base_url = 'http://127.0.0.1:1/v1'\n[providers.x.capacity]\n",
    "[tenants.<name>]": "[tenants.x]\n",
    "[pools.<name>]": "[pools.default]\n",
    "[pools.<name>.places]": "[pools.default.places]\n",
    "[[pools.<name>.fallbacks]]": "[[pools.default.fallbacks]]\n",
    "[tools.<name>]": "[tools.add]\n",
    "[tools.http_get]": "[tools.http_get]\n",
    "[tools.send_signal]": "[tools.send_signal]\n",
    "[mcp.<server>]": "[mcp.x]\n",
    "[webhooks.<name>]": "[webhooks.x]\n",
    "[critic]": "[critic]\n",
    "[auth]": "[auth]\n",
    "[auth.jwt]": "[auth.jwt]\n",
    "[approvals]": "[approvals]\n",
    "[results]": "[results]\n",
    "[storage]": "[storage]\n",
    "[storage.buckets]": "[storage.buckets]\n",
    "[logs]": "[logs]\n",
}


def text_of(page: str) -> str:
    """A committed page."""
    return (REPOSITORY / page).read_text(encoding="utf-8")


def sections() -> dict[str, str]:
    """Title → text of each table of the committed page."""
    _, *found = re.split(r"^## `?(.*?)`?$", text_of(MESH_TOML), flags=re.MULTILINE)
    return dict(zip(found[::2], found[1::2], strict=True))


def first_column(text: str) -> list[str]:
    """The names in the first column of a text's tables."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def documented_keys(each: Table) -> set[str]:
    """The keys that the page gives to a table, those of the table that it refers to among them."""
    above = next((other for other in TABLES if other.kind is each.extends), None)
    own = set(first_column(sections()[each.title]))
    return own | (documented_keys(above) if above is not None else set())


def is_read(each: Table, key: str) -> bool:
    """Whether the reader of the file knows a key of this table: that of all servers, if both kinds have it."""
    if each.kind is ServerConfiguration:
        return is_known(OPENAI, key) and is_known(ANTHROPIC, key)
    return is_known(BEFORE[each.title], key)


def is_known(before: str, key: str) -> bool:
    """Whether the reader of the file knows a key behind this beginning of a file."""
    if key == "kind":
        before = before.replace("kind = ", "unused = ")
    with pytest.raises(SettingsError) as failed:
        parse_configuration(f"{before}{key} = {NO_VALUE}\n".encode())
    said = str(failed.value)
    # An unknown key is told as such, whatever its value.
    return not (f"unknown field `{key}`" in said or "missing required field `kind`" in said)


def configuration_types() -> set[type[msgspec.Struct]]:
    """Every type that reads a part of the file."""
    (folder,) = mesh.configuration.__path__
    modules = [importlib.import_module(f"mesh.configuration.{path.stem}") for path in Path(folder).glob("[a-z]*.py")]
    return {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
    }


def strings() -> Iterator[str]:
    """Every string constant of the code."""
    for root in ("libs", "services"):
        for path in (REPOSITORY / root).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


# The command


def test_the_committed_pages_are_what_is_rendered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_a_page_that_has_drifted_is_found_and_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"], tmp_path) == 1
    assert capsys.readouterr().out == "".join(f"missing: {path}\n" for path in sorted(render()))
    assert main([], tmp_path) == 0
    (tmp_path / SETTINGS).write_text("mine", encoding="utf-8")
    other = tmp_path / SETTINGS.replace("settings", "other")
    other.write_text("a page beside them", encoding="utf-8")
    capsys.readouterr()
    assert main(["--check"], tmp_path) == 1
    assert capsys.readouterr().out == f"drifted: {SETTINGS}\n"
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0
    assert (tmp_path / SETTINGS).read_text(encoding="utf-8") == text_of(SETTINGS)
    assert other.exists()


def test_a_changed_declaration_is_a_drift(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(BOUNDS, "nats_port", (0, 1))
    assert main(["--check"]) == 1
    assert capsys.readouterr().out == f"drifted: {SETTINGS}\n"


# The settings


def test_each_setting_is_a_row_with_its_flag_and_words() -> None:
    text = text_of(SETTINGS)
    rows = {row.split("|")[1].strip(" `"): row for row in text.splitlines() if row.startswith("| `MESH_")}
    for field in variable_fields():
        row = rows[f"MESH_{field.name.upper()}"]
        assert f"| `--{field.name.replace('_', '-')}` |" in row
        assert len(row.split("|")[5].strip()) > 10, row
    assert rows["MESH_NATS_PORT"] == (
        "| `MESH_NATS_PORT` | `--nats-port` | whole number, 0 to 65,535 | `4222`"
        " | Port of the embedded broker; 0 takes a free one. |"
    )


@pytest.mark.parametrize("name", [*BOUNDS, *CHOICES])
def test_what_is_beyond_a_settings_bounds_is_refused(name: str) -> None:
    variable = f"MESH_{name.upper()}"
    wrong = ["loud"] if name in CHOICES else [str(int(BOUNDS[name][0]) - 1), str(int(BOUNDS[name][1]) + 1)]
    for value in wrong:
        with pytest.raises(SettingsError, match=f"^{variable}="):
            load_settings({variable: value, "MESH_CONFIG": "/dev/null"})


def test_every_variable_that_the_code_names_is_documented() -> None:
    named = {text for text in strings() if re.fullmatch(r"MESH_[A-Z_]*[A-Z]|OTEL_[A-Z_]+|NO_COLOR", text)}
    assert named >= INTERNAL_VARIABLES | {"OTEL_SDK_DISABLED", "NO_COLOR"}, "the scan sees them"
    assert named - INTERNAL_VARIABLES <= set(first_column(text_of(SETTINGS)))


def test_no_variable_that_the_code_names_is_taken_for_a_mistake() -> None:
    named = {text for text in strings() if re.fullmatch(r"MESH_[A-Z]+(_[A-Z]+)*", text)}
    assert named >= INTERNAL_VARIABLES
    assert unknown_variables(dict.fromkeys(named, "1")) == []


def test_every_standard_variable_is_one_that_is_read() -> None:
    read_by_the_sdk = set(vars(opentelemetry.sdk.environment_variables))
    read_here = {"OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"}
    assert {each.name for each in STANDARD_VARIABLES} <= read_by_the_sdk | read_here


# The file


def test_every_type_of_the_file_has_a_table() -> None:
    whole = {Configuration, TenantsConfiguration, ToolsConfiguration}
    assert {each.kind for each in TABLES} == configuration_types() - whole
    assert {each.names[0] for each in TABLES} == set(KEYS)
    assert list(sections()) == [*(each.title for each in TABLES), "Words"]


@pytest.mark.parametrize("each", TABLES, ids=lambda each: each.title)
def test_the_keys_of_the_page_are_those_that_the_reader_takes(each: Table) -> None:
    """Every key of any table is tried in this one: it is read if, and only if, the page says so."""
    every_key = {key for other in TABLES for key in documented_keys(other)} | {
        field for kind in configuration_types() for field in kind.__struct_fields__
    }
    assert {key for key in every_key if is_read(each, key)} == documented_keys(each)


def test_an_unknown_key_is_not_read() -> None:
    assert not any(is_read(each, "kinds") for each in TABLES)


@pytest.mark.parametrize("each", TABLES, ids=lambda each: each.title)
def test_the_example_of_a_table_is_loaded(each: Table) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```$", sections()[each.title], re.MULTILINE | re.DOTALL)
    parse_configuration(example.encode())
    found: Any = tomllib.loads(example)
    for name in each.names:
        found = found[name]
    assert found, "the example has the table"
    tables = found if isinstance(found, list) else [found]
    own = set(first_column(sections()[each.title]))
    assert own & set(tables[0]), "and shows a key of it"


def test_numbers_in_descriptions_are_those_that_hold() -> None:
    assert f"up to {SECRETS_MAX}, by spaces" in text_of(MESH_TOML)


# Both


@pytest.mark.parametrize("page", PAGES)
def test_nothing_of_a_page_is_read_as_html(page: str) -> None:
    """`<name>` outside of code would not be shown."""
    text = re.sub(r"^```.*?^```$|^<!-- .* -->$|`[^`\n]*`", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    assert "<" not in text


def test_rendering_twice_gives_the_same() -> None:
    assert render() == render()
