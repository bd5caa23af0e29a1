"""`meshctl config`: whether a configuration can be started with, and what it comes to."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from contracts.codec import encode
from mesh.configuration.checking import file_mistakes, unknown_variables
from mesh.configuration.digest import configuration_digest
from mesh.configuration.mesh_toml import DEFAULT_FILE, parse_configuration, read_file, tables_of
from mesh.configuration.secret_sources import named_variables, secret_mistakes
from mesh.configuration.settings import load_settings, load_variables, variable_mistakes
from mesh.configuration.showing import DEFAULT, Shown, shown_file, shown_variables
from mesh.errors import SettingsError
from meshctl.display import output
from meshctl.flags import add_setting_flags, environment_with
from meshctl.supervision.home import Home

STATUS_WRONG = 2


def add_commands(commands: Any) -> None:
    """Register `config`."""
    config: argparse.ArgumentParser = commands.add_parser(
        "config", help="check and show the configuration", description="Variables, and the configuration file."
    )
    actions = config.add_subparsers(metavar="ACTION", required=True)
    text = (
        "Say every mistake in the variables and in the file, names that nobody reads and keys that are not set among"
        f" them. Starts nothing, and asks no broker. Ends with {STATUS_WRONG} if there is a mistake."
    )
    check = actions.add_parser("check", help="say every mistake", description=text)
    add_setting_flags(check)
    check.set_defaults(run=_run_check)
    text = (
        "Print what a mesh that is started now would be configured with, and where each value is from. What may be a"
        " secret is hidden. Values by default are left out, but with --all."
    )
    show = actions.add_parser("show", help="say what holds, and where it is from", description=text)
    show.add_argument("--all", action="store_true", help="values by default, too")
    show.add_argument("--json", action="store_true", help="JSON lines, also on a terminal")
    show.add_argument(
        "--running", action="store_true", help="of the file, what the mesh on MESH_HOME was started with, or reloaded"
    )
    add_setting_flags(show)
    show.set_defaults(run=_run_show)


def _run_check(arguments: argparse.Namespace) -> int:
    environment = environment_with(arguments, os.environ)
    mistakes = [line for lines in mistakes_of(environment) for line in lines]
    if output.for_people():
        for mistake in mistakes:
            print(output.printable(mistake))
        print("no mistake was found" if not mistakes else f"{len(mistakes)} found")
    else:
        for mistake in mistakes:
            output.json_line({"event": "config.mistake", "mistake": mistake})
        digest = None if mistakes else configuration_digest(load_settings(environment))
        output.json_line({"event": "config.checked", "mistakes": len(mistakes), "configuration": digest})
    return STATUS_WRONG if mistakes else 0


class Mistakes(NamedTuple):
    """What is wrong, one line each: with variables, with the file and what it names, and names that nobody reads."""

    variables: list[str]
    file: list[str]
    unknown: list[str]


def mistakes_of(environment: dict[str, str], *, secrets: bool = True) -> Mistakes:
    """All that is wrong with these variables, and with the file that they lead to.

    `secrets`: also that a key is not set. Who only looks at a mesh needs none.
    """
    variables = variable_mistakes(environment)
    named = environment.get("MESH_CONFIG")
    source = named or DEFAULT_FILE
    try:
        content = read_file(Path(named) if named else None)
    except SettingsError as error:
        return Mistakes(variables, [str(error)], unknown_variables(environment))
    found = file_mistakes(content, source)
    if found:
        # Which variables such a file names nobody knows: those whose names are anywhere in it are not held against it.
        mentioned = [name for name in environment if name.encode() in content]
        return Mistakes(variables, found, unknown_variables(environment, mentioned))
    configuration = parse_configuration(content, source)
    missing = secret_mistakes(configuration, environment) if secrets else []
    return Mistakes(variables, missing, unknown_variables(environment, named_variables(configuration)))


def _run_show(arguments: argparse.Namespace) -> int:
    environment = environment_with(arguments, os.environ)
    if arguments.running:
        home = Home(load_variables(environment).home)
        environment["MESH_CONFIG"] = str(home.configuration)
    settings = load_settings(environment)
    tables = tables_of(read_file(settings.config), settings.configuration.source)
    shown = [*shown_variables(settings), *shown_file(settings.configuration, tables)]
    if not arguments.all:
        shown = [each for each in shown if each.origin != DEFAULT]
    if output.for_people() and not arguments.json:
        print(f"configuration {configuration_digest(settings)}")
        output.show(_table(shown))
    else:
        for each in shown:
            output.json_line(each._asdict())
        output.json_line({"event": "config.shown", "configuration": configuration_digest(settings)})
    return 0


def _table(shown: list[Shown]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("KEY", "VALUE", "FROM"):
        table.add_column(column, overflow="fold")
    for each in shown:
        table.add_row(each.key, output.printable(encode(each.value).decode()), each.origin)
    return table
