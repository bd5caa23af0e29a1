"""Every setting is a flag of the same name, and wins over its variable."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.configuration.settings import Address, load_settings, variable_fields
from meshctl.__main__ import build_parser
from meshctl.commands.demo import demo_environment
from meshctl.flags import add_setting_flags, environment_with, setting_flags


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_setting_flags(parser)
    return parser.parse_args(arguments)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A command line, and those of its commands, however deep."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action.choices.values():
                yield from parsers(choice)


def test_each_setting_has_a_flag_a_variable_and_its_own_words() -> None:
    flags = {flag.name: flag for flag in setting_flags()}
    assert list(flags) == [field.name for field in variable_fields()]
    assert flags["nats_port"].flag == "--nats-port"
    assert flags["nats_port"].variable == "MESH_NATS_PORT"
    assert flags["nats_port"].help == "Port of the embedded broker; 0 takes a free one. [4222]"
    assert all(len(flag.help) > len("[unset]") + 10 for flag in flags.values())


def test_a_flag_names_the_unit_of_its_value() -> None:
    """A number with a fraction always has one; a number without one counts something, or is a port."""
    shown = {flag.name: flag.metavar for flag in setting_flags()}
    for field in variable_fields():
        unit = field.name.rpartition("_")[2].upper()
        match str(field.type).removesuffix(" | None"):
            case "float":
                assert shown[field.name] == unit, field.name
            case "int":
                assert shown[field.name] == (unit if unit == "PORT" else "N"), field.name
            case _:
                assert shown[field.name] in ("0|1", "A,B", "HOST:PORT", "PATH", "TEXT", "URL"), field.name
    assert {"SECONDS", "HOURS", "DAYS", "PERCENT"} <= set(shown.values())


def test_no_command_says_seconds_of_anything_else() -> None:
    in_seconds = {
        flag
        for parser in parsers(build_parser())
        for action in parser._actions
        for flag in action.option_strings
        if action.metavar == "SECONDS"
    }
    assert in_seconds == {
        "--ack-wait-seconds",
        "--drain-seconds",
        "--reconcile-after-seconds",
        "--watchdog-seconds",
        "--deadline",
        "--grace",
        "--interval",
    }


def test_flags_win_over_variables_and_the_rest_stays() -> None:
    environment = {"MESH_NATS_PORT": "1", "MESH_WORKERS": "2", "PATH": "/bin"}
    merged = environment_with(parse("--nats-port", "0", "--edge-address", "[::1]:0"), environment)
    settings = load_settings(merged)
    assert (settings.nats_port, settings.workers, settings.edge_address) == (0, 2, Address("::1", 0))
    assert merged["PATH"] == "/bin"
    assert environment["MESH_NATS_PORT"] == "1"


def test_without_flags_the_environment_is_as_it_was() -> None:
    assert environment_with(parse(), {"MESH_WORKERS": "2"}) == {"MESH_WORKERS": "2"}


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ([], False),
        (["--scripted-allow-exit"], True),
        (["--scripted-allow-exit", "1"], True),
        (["--scripted-allow-exit", "0"], False),
    ],
)
def test_a_switch_may_stand_alone(arguments: list[str], *, allowed: bool) -> None:
    assert load_settings(environment_with(parse(*arguments), {})).scripted_allow_exit is allowed


def test_the_demonstration_takes_nothing_from_another_mesh() -> None:
    others = {
        "MESH_NATS_URL": "nats://production:4222",
        "MESH_WORKERS": "0",
        "MESH_NATS_SERVER": "/opt/n",
        "MESH_CONFIG": "/production/mesh.toml",
        "HOME": "/h",
    }
    environment = demo_environment(others, Path("/tmp/demo"))  # noqa: S108 - a name, nothing is written there
    settings = load_settings(environment)
    assert (settings.nats_url, settings.workers, settings.nats_server) == (None, 1, "/opt/n")
    assert (settings.nats_port, settings.ingress_address.port, settings.edge_address.port) == (0, 0, 0)
    assert settings.pools == ("default",)
    assert environment["HOME"] == "/h"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["submit"],
        ["submit", "x", "--wait", "--watch"],
        ["submit", "x", "--metadata", "no-pair"],
        ["submit", "x", "--priority", "urgent"],
        ["submit", "x", "--budget-cost", "0"],
        ["submit", "x", "--budget-cost", "-0.5"],
        ["submit", "x", "--budget-cost", "nan"],
        ["submit", "x", "--budget-cost", "inf"],
        ["submit", "x", "--budget-cost", "much"],
        ["watch", "x", "--after", "-1"],
        ["list", "--status", "gone"],
        ["list", "--limit", "0"],
        ["up", "--no-such-setting", "1"],
        ["streams"],
    ],
)
def test_usage_errors_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(arguments)
    assert ended.value.code == 2
    assert "usage: meshctl" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["up", "demo", "submit", "watch", "get", "list", "streams"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: meshctl {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--url", "http://a", "--tenant", "t", "get", "x"], ["get", "x", "--url", "http://a", "--tenant", "t"]],
)
def test_where_may_stand_before_or_behind_the_command(arguments: list[str]) -> None:
    parsed = build_parser().parse_args(arguments)
    assert (parsed.url, parsed.tenant, parsed.task) == ("http://a", "t", "x")
