"""Flags made from `Settings`: `--nats-port` is MESH_NATS_PORT, and says the same in its help."""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
from collections.abc import Collection, Mapping
from dataclasses import MISSING
from typing import NamedTuple

import mesh.configuration.settings
from mesh.configuration.settings import Settings, variable_fields

_DESTINATION_PREFIX = "setting_"
_METAVARS = {"int": "N", "bool": "0|1", "Path": "PATH", "Address": "HOST:PORT", "str": "TEXT", "tuple[str, ...]": "A,B"}
_UNITS = frozenset({"seconds", "hours", "days", "percent", "port", "url"})
"""A field that ends in one of these says with it what its value is. A number with a fraction always has a unit."""


class SettingFlag(NamedTuple):
    """A setting as a flag. A switch may stand alone, which means 1."""

    name: str
    flag: str
    variable: str
    metavar: str
    help: str
    is_switch: bool


def setting_flags() -> list[SettingFlag]:
    """One flag for each field of `Settings` that is a variable, in its order."""
    documentation = _documentation()
    flags: list[SettingFlag] = []
    for field in variable_fields():
        kind = str(field.type).removesuffix(" | None")
        default = _shown(None if field.default is MISSING else field.default)
        flags.append(
            SettingFlag(
                name=field.name,
                flag="--" + field.name.replace("_", "-"),
                variable=f"MESH_{field.name.upper()}",
                metavar=_metavar(field.name, kind),
                help=f"{documentation[field.name]} [{default}]",
                is_switch=kind == "bool",
            )
        )
    return flags


def add_setting_flags(parser: argparse.ArgumentParser, names: Collection[str] | None = None) -> None:
    """Add these settings (None: all) as flags in a group of their own."""
    group = parser.add_argument_group("settings", "each is also a variable: --nats-port is MESH_NATS_PORT")
    for flag in setting_flags():
        if names is not None and flag.name not in names:
            continue
        destination = _DESTINATION_PREFIX + flag.name
        # A default here would win over the variable.
        help_text = flag.help.replace("%", "%%")
        if flag.is_switch:
            group.add_argument(flag.flag, dest=destination, metavar=flag.metavar, nargs="?", const="1", help=help_text)
        else:
            group.add_argument(flag.flag, dest=destination, metavar=flag.metavar, help=help_text)


def environment_with(arguments: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with the flags that were given laid over its MESH_* variables."""
    merged = dict(environment)
    for flag in setting_flags():
        value = getattr(arguments, _DESTINATION_PREFIX + flag.name, None)
        if value is not None:
            merged[flag.variable] = value
    return merged


def _metavar(name: str, kind: str) -> str:
    """What stands for the value in a flag's help: `retention_days` takes DAYS."""
    unit = name.rpartition("_")[2]
    return unit.upper() if unit in _UNITS else _METAVARS[kind]


def _shown(default: object) -> str:
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return str(int(default))
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return str(default)


def _documentation() -> dict[str, str]:
    """The docstring under each field: it is the one place where a setting is described."""
    tree = ast.parse(inspect.getsource(mesh.configuration.settings))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == Settings.__name__)
    documentation: dict[str, str] = {}
    for field, after in itertools.pairwise(body):
        match field, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                documentation[name] = " ".join(text.split())
    return documentation
