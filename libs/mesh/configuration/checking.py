"""Every mistake of a configuration, its variables and its file, where a start tells the first one alone. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from contracts.build import BUILD_VARIABLE
from mesh.configuration.mesh_toml import Configuration, ServerConfiguration, api_key, configuration_of, tables_of
from mesh.configuration.settings import BROKER_ROLES, SOURCE_VARIABLE, role_variables, variable_fields
from mesh.configuration.tool_tables import header_of, variable_of
from mesh.configuration.webhook_tables import signing_keys
from mesh.errors import SettingsError

MISTAKES_MAX: Final = 200
"""A file with more is told of so many."""
OTHER_VARIABLES: Final = frozenset(
    {
        BUILD_VARIABLE,
        "MESH_LISTENERS",
        "MESH_NATS_SERVER",
        "MESH_READY_FD",
        SOURCE_VARIABLE,
        "MESH_INGRESS_URL",
        "MESH_EDGE_URL",
        "MESH_API_KEY",
        "MESH_API_KEY_FILE",
    }
)
"""Variables that are no settings: of the build, between `meshctl up` and its processes, and of meshctl's commands."""
TEST_PREFIX: Final = "MESH_TEST_"
SIMILAR_FROM: Final = 0.7
"""From which likeness on (0 to 1, as `difflib` measures it) a name is one that may have been meant."""

_PART: Final = re.compile(r"'([^']*)'|\[(\d+|\.\.\.)\]|([^.\[\]']+)")
_UNKNOWN_FIELD: Final = re.compile(r"unknown field `([^`]+)`")
_REPLACEMENTS: Final[Mapping[str, dict[str, Any]]] = {"providers": {"kind": "scripted"}, "pools": {}}
"""What stands for a table that can't be read: others name it, and are not to be blamed for that."""
_MISSING_FIELD: Final = re.compile(r"missing required field `([^`]+)`|\.(model): required")
_PLACEHOLDERS: Final[Mapping[str, Any]] = {
    "base_url": "http://placeholder",
    "url": "https://placeholder.example",
    "secret_env": "PLACEHOLDER",
    "on": ["ended"],
    "codes": ["placeholder"],
    "model": "placeholder",
}
"""What stands for a key that is missing, so that the others of its table are looked at."""


def unknown_variables(environment: Mapping[str, str], named: Iterable[str] = ()) -> list[str]:
    """Variables that begin with `MESH_` and that nobody reads, one line each, with the name that may be meant.

    `named`: variables that the configuration file names, for keys and secrets.
    """
    known = {f"MESH_{each.name.upper()}" for each in variable_fields()} | OTHER_VARIABLES
    known |= {variable for role in BROKER_ROLES for variable in role_variables(role)}
    mistakes = []
    for name in sorted(environment):
        if not name.startswith("MESH_") or name.startswith(TEST_PREFIX) or name in known or name in named:
            continue
        similar = difflib.get_close_matches(name, known, n=1, cutoff=SIMILAR_FROM)
        mistakes.append(f"{name}: there is no such setting" + (f"; {similar[0]} may be meant" if similar else ""))
    return mistakes


def file_mistakes(content: bytes, source: str) -> list[str]:
    """Every mistake of a configuration file, one line each, as far as one does not hide another."""
    try:
        tables = tables_of(content, source)
    except SettingsError as error:
        return [str(error)]
    mistakes: list[str] = []
    removed: list[tuple[str, ...]] = []
    for _ in range(MISTAKES_MAX * 2):
        try:
            configuration_of(tables, source)
            break
        except SettingsError as error:
            path = _path_of(str(error), source)
            # What is wrong only because something was taken away there, or below it, is no mistake of its own.
            follows = any(gone[: len(path)] == path for gone in removed)
            if not follows:
                mistakes.append(str(error))
            missing = _MISSING_FIELD.search(str(error))
            if missing and _fill_in(tables, path[:-1] if missing[2] else path, missing[1] or missing[2]):
                continue
            if len(mistakes) == MISTAKES_MAX or not _take_away(tables, path):
                break
            removed.append(path)
    return mistakes


def secret_mistakes(configuration: Configuration, environment: Mapping[str, str]) -> list[str]:
    """Which of the variables that the file names for keys and secrets are not set, or can't be one."""
    mistakes: list[str] = []

    def told(look: Any) -> None:
        try:
            look()
        except SettingsError as error:
            mistakes.append(str(error))

    used = {provider for pool in configuration.pools for provider in configuration.providers_of(pool)}
    for provider in sorted(used):
        told(lambda name=provider: api_key(configuration, name, environment))
    for name, webhook in configuration.webhooks.items():
        told(lambda each={name: webhook}: signing_keys(each, environment, configuration.source))
    for name, server in configuration.tools.mcp.items():
        key = f"{configuration.source}: mcp.{name}"
        for variable in server.env_from:
            told(lambda each=variable, at=key: variable_of(environment, each, at))
        for variable in (*server.headers_env.values(), *filter(None, [server.api_key_env])):
            told(lambda each=variable, at=key: header_of(environment, each, at))
    return mistakes


def named_variables(configuration: Configuration) -> frozenset[str]:
    """The variables that a configuration names for keys and secrets."""
    servers = [each for each in configuration.providers.values() if isinstance(each, ServerConfiguration)]
    names = {each.api_key_env for each in servers} | {each.secret_env for each in configuration.webhooks.values()}
    for server in configuration.tools.mcp.values():
        names |= {server.api_key_env, *server.env_from, *server.headers_env.values()}
    return frozenset(name for name in names if name is not None)


def _path_of(mistake: str, source: str) -> tuple[str, ...]:
    """The keys that lead to what a mistake is told of: `mesh.toml: pools.cpu.model: …` is ("pools", "cpu", "model")."""
    told = mistake.removeprefix(f"{source}: ")
    key = re.split(r": | ", told, maxsplit=1)[0]
    path = tuple(next(filter(None, each)) for each in _PART.findall(key))
    unknown = _UNKNOWN_FIELD.search(told)
    return (*path, unknown[1]) if unknown else path


def _fill_in(tables: dict[str, Any], path: tuple[str, ...], name: str) -> bool:
    """Put something where a key is missing; False where nothing would do."""
    at: Any = tables
    for part in path:
        if isinstance(at, list) and part.isdigit():
            at = at[int(part)]
        elif isinstance(at, dict) and part in at:
            at = at[part]
        else:
            return False
    if not isinstance(at, dict) or name in at or name not in _PLACEHOLDERS:
        return False
    at[name] = _PLACEHOLDERS[name]
    return True


def _take_away(tables: dict[str, Any], path: tuple[str, ...]) -> bool:
    """Take away what is wrong, so that the rest can be read; False if there is nothing to take away."""
    at: Any = tables
    way: list[tuple[Any, Any]] = []
    for part in path:
        if isinstance(at, dict) and part in at:
            way.append((at, part))
            at = at[part]
        elif isinstance(at, list) and part.isdigit() and int(part) < len(at):
            way.append((at, int(part)))
            at = at[int(part)]
        else:
            break
    if len(way) < len(path) and path[:1] == ("pools",) and len(path) == 2:  # noqa: PLR2004 - a pool that must be there
        tables.setdefault("pools", {})[path[1]] = {}
        return True
    if not way or (len(way) == 1 and len(path) > 1):
        return False
    holder, name = way[-1]
    replacement = _REPLACEMENTS.get(path[0])
    if len(way) == 2 and replacement is not None:  # noqa: PLR2004 - a table with a name
        if holder[name] == replacement:
            return False
        holder[name] = dict(replacement)
    else:
        del holder[name]
    return True
