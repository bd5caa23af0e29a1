"""`meshctl config`: every mistake, and what holds, without a secret in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mesh.configuration.checking import file_mistakes, unknown_variables
from mesh.configuration.settings import variable_mistakes
from meshctl.__main__ import main

MANY = """\
nonsense = 1
[providers.a]
kind = "openai"
base_url = "ftp://x"
first_token_secs = 3
[providers.b]
kind = "openai"
[pools.default]
provider = "a"
model = 3
max_output_tokens = 0
[pools.cpu]
provider = "missing"
fallbacks = [{provider = "scripted", model = "other"}, {provider = "gone", model = "m"}]
[tools.http_get]
allowed_hosts = ["http://x"]
approval = "sometimes"
[webhooks.w]
url = "http://x"
on = ["nothing"]
[critic]
codes = ["a"]
pool = "nope"
[storage]
total = "3"
"""
GOOD = """\
[providers.a]
kind = "openai"
base_url = "http://127.0.0.1"
api_key_env = "MESH_A"
headers = {X-Team = "s3cret"}
[pools.default]
provider = "a"
model = "m"
[webhooks.w]
url = "https://x.example/T/s3cret?x=s3cret"
secret_env = "W"
on = ["ended"]
[mcp.m]
command = ["prog", "--token", "s3cret"]
env = {K = "s3cret"}
[mcp.n]
url = "https://y.example/s3cret"
headers_env = {X-Key = "N_KEY"}
"""


def keys(mistakes: list[str]) -> list[str]:
    return [mistake.split(": ")[1] for mistake in mistakes]


def test_every_mistake_of_a_file_is_told_and_none_that_only_follows_from_another() -> None:
    assert sorted(keys(file_mistakes(MANY.encode(), "mesh.toml"))) == sorted(
        [
            "nonsense",
            "providers.a",
            "providers.a.base_url",
            "providers.b",
            "pools.default.model",
            "pools.default.max_output_tokens",
            "pools.cpu.provider",
            "pools.cpu.fallbacks[1].provider",
            "tools.http_get.approval",
            "tools.http_get.allowed_hosts",
            "webhooks.w",
            "webhooks.w.on",
            "webhooks.w.url",
            "critic.pool",
            "storage.total",
        ]
    )


def test_a_pool_that_is_missing_is_one_mistake_and_hides_no_other() -> None:
    content = b'[pools.cpu]\nslow_seconds = 0\n[results]\ntenant_share = 2\n[critic]\ncodes = ["a"]'
    assert keys(file_mistakes(content, "mesh.toml")) == [
        "pools.cpu.slow_seconds",
        "pools.default",
        "results.tenant_share",
    ]


def test_variables_are_looked_at_one_by_one() -> None:
    told = variable_mistakes(
        {"MESH_WORKERS": "x", "MESH_LOG_LEVEL": "loud", "MESH_NATS_PORT": "-1", "MESH_RUNNERS": "2"}
    )
    assert [each.partition("=")[0] for each in told] == ["MESH_NATS_PORT", "MESH_WORKERS", "MESH_LOG_LEVEL"]
    assert told[1] == "MESH_WORKERS='x': must be a whole number"


def test_a_variable_that_nobody_reads_is_told_with_the_one_that_may_be_meant() -> None:
    environment = {
        "MESH_NATS_PROT": "1",
        "MESH_QQQ": "1",
        "MESH_KEY": "k",
        "MESH_TEST_X": "1",
        "MESH_HOME": "h",
        "X": "1",
    }
    assert unknown_variables(environment, ["MESH_KEY"]) == [
        "MESH_NATS_PROT: there is no such setting; MESH_NATS_PORT may be meant",
        "MESH_QQQ: there is no such setting",
    ]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No variable of a mesh, and no mesh.toml."""
    for name in ("MESH_CONFIG", "MESH_HOME", "MESH_NATS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_check_ends_with_2_where_there_is_a_mistake(
    alone: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mesh.toml").write_text(GOOD)
    alone.setenv("MESH_RETENTION_DAY", "3")
    assert main(["config", "check", "--workers", "1000"]) == 2
    told = [line.get("mistake", "") for line in lines(capsys.readouterr().out)]
    assert [each.split(":")[0] for each in told] == [
        "MESH_WORKERS=1000",
        *["mesh.toml"] * 3,
        "MESH_RETENTION_DAY",
        "",
    ]
    alone.delenv("MESH_RETENTION_DAY")
    for name in ("MESH_A", "N_KEY"):
        alone.setenv(name, "k")
    alone.setenv("W", "whsec_" + "c" * 44)
    assert main(["config", "check"]) == 0
    [end] = lines(capsys.readouterr().out)
    assert (end["mistakes"], len(end["configuration"])) == (0, 12)


def test_show_says_where_each_value_is_from_and_shows_no_secret(
    alone: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mesh.toml").write_text(
        GOOD
        + '[auth]\nmode = "jwt"\n[auth.jwt]\nissuer = "https://i/"\naudience = "a"\njwks = "https://i/k?code=s3cret"\n'
    )
    alone.setenv("MESH_NATS_URL", "nats://u:s3cret@h:4222")
    assert main(["config", "show", "--workers", "3"]) == 0
    told = capsys.readouterr().out
    assert "s3cret" not in told
    shown = {line["key"]: (line["value"], line["origin"]) for line in lines(told)[:-1]}
    assert shown["MESH_WORKERS"] == (3, "MESH_WORKERS")
    assert shown["MESH_NATS_URL"] == ("nats://***@h:4222", "MESH_NATS_URL")
    assert shown["pools.default.model"] == ("m", "mesh.toml")
    assert shown["auth.jwt.jwks"] == ("https://i/k?…", "mesh.toml")
    assert shown["mcp.m.command"] == (["prog", "…"], "mesh.toml")
    assert "pools.default.wait_seconds" not in shown
    assert main(["config", "show", "--all"]) == 0
    shown = {line["key"]: (line["value"], line["origin"]) for line in lines(capsys.readouterr().out)[:-1]}
    assert shown["pools.default.wait_seconds"] == (60.0, "default")
    assert shown["MESH_RUNNERS"] == (1, "default")


@pytest.mark.parametrize("command", ["workers", "lanes", "providers", "storage", "list", "repair"])
def test_a_mistake_in_the_file_stops_no_command_that_needs_nothing_of_it(
    alone: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    Path("mesh.toml").write_text("not = [")
    alone.setenv("MESH_INGRESS_URL", "http://127.0.0.1:9")
    alone.setattr("meshctl.supervision.broker_setup.CONNECT_SECONDS_MAX", 0.1)
    # Loggers keep the file that they write to first, and here that is pytest's, which it closes.
    alone.setattr("mesh.telemetry.traces.configure", lambda *_: None)
    assert main([command, *(["--nats-url", "nats://127.0.0.1:9"] if command != "list" else [])]) == 1
    assert "mesh.toml" not in capsys.readouterr().err
