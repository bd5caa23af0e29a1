"""Flags made from `Settings`: `--nats-port` is MESH_NATS_PORT, and says the same in its help."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import MISSING
from typing import NamedTuple

from mesh.configuration.broker_urls import without_password
from mesh.configuration.descriptions import field_descriptions
from mesh.configuration.settings import Settings, variable_fields
from mesh.errors import SettingsError

_DESTINATION_PREFIX = "setting_"
_METAVARS = {"int": "N", "bool": "0|1", "Path": "PATH", "Address": "HOST:PORT", "str": "TEXT", "tuple[str, ...]": "A,B"}
_UNITS = frozenset({"seconds", "hours", "days", "percent", "port", "url"})
"""A field that ends in one of these says with it what its value is. A number with a fraction always has a unit."""


_OTHERS = {"nats_url": "MESH_NATS_URL_FILE", "nats_url_file": "MESH_NATS_URL"}


class SettingFlag(NamedTuple):
    """A setting as a flag. A switch may stand alone, which means 1."""

    name: str
    flag: str
    variable: str
    metavar: str
    description: str
    default: str
    is_switch: bool

    @property
    def help(self) -> str:
        """What the command line says of it."""
        return f"{self.description} [{self.default}]"


def setting_flags() -> list[SettingFlag]:
    """One flag for each field of `Settings` that is a variable, in its order."""
    documentation = field_descriptions(Settings)
    flags: list[SettingFlag] = []
    for field in variable_fields():
        kind = str(field.type).removesuffix(" | None")
        flags.append(
            SettingFlag(
                name=field.name,
                flag="--" + field.name.replace("_", "-"),
                variable=f"MESH_{field.name.upper()}",
                metavar=_metavar(field.name, kind),
                description=documentation[field.name],
                default=_shown(None if field.default is MISSING else field.default),
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
    """The environment with the flags that were given laid over its MESH_* variables.

    Raises `SettingsError` for a password in a flag.
    """
    merged = dict(environment)
    for flag in setting_flags():
        value = getattr(arguments, _DESTINATION_PREFIX + flag.name, None)
        if value is not None:
            if flag.name == "nats_url" and "@" in value:
                raise SettingsError(
                    f"{flag.flag} {without_password(value)}: every user of this machine can read a password in the"
                    f" arguments of a command: set {flag.variable} instead"
                )
            merged[flag.variable] = value
            # A flag outranks a variable, be it the other one of the two that say the same.
            merged.pop(_OTHERS.get(flag.name, ""), None)
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
    if isinstance(default, float):
        return f"{default:g}"
    return str(default)
