"""A configuration as people may see it: each key, its value, and where that is from. No secret is in it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from mesh.configuration.broker_urls import without_password
from mesh.configuration.mesh_toml import Configuration
from mesh.configuration.settings import Settings, role_variable, variable_fields

HIDDEN: Final = "…"
DEFAULT: Final = "default"
_VALUES_HIDDEN: Final = frozenset({"headers", "env"})
"""Tables whose values may be secrets, though they should not be."""


class Shown(NamedTuple):
    """A key of the configuration. `origin` is the variable or the file that says it, or `default`."""

    key: str
    value: Any
    origin: str


def shown_variables(settings: Settings) -> list[Shown]:
    """The settings that are variables, by those names."""
    shown = []
    for setting in variable_fields():
        value = getattr(settings, setting.name)
        if setting.name == "nats_url" and value is not None:
            value = without_password(value)
        if not isinstance(value, bool | int | float | tuple | None):
            value = str(value)
        variable = f"MESH_{setting.name.upper()}"
        if setting.name == "nats_url" and settings.nats_url_file is not None:
            shown.append(Shown(variable, value, "MESH_NATS_URL_FILE"))
            continue
        shown.append(Shown(variable, value, variable if setting.name in settings.given else DEFAULT))
    for role, own in sorted(settings.of_role.items()):
        for name, value in own.items():
            variable = role_variable(name, role)
            shown.append(Shown(variable, value if isinstance(value, bool) else str(value), variable))
    return shown


def shown_file(configuration: Configuration, tables: Mapping[str, Any]) -> list[Shown]:
    """The keys of the file that holds these tables, and what the others are by default."""
    effective = msgspec.to_builtins(configuration)
    tools = effective.pop("tools")
    source = effective.pop("source")
    effective |= {"tools": tools["tools"], "mcp": tools["mcp"]}
    return [
        Shown(".".join(path), _harmless(path, value), source if _is_in(tables, path) else DEFAULT)
        for table in sorted(effective)
        for path, value in _leaves((table,), effective[table])
        if value is not None or _is_in(tables, path)
    ]


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _leaves((*path, name), each)
    elif value != {}:
        yield path, value


def _is_in(tables: Any, path: tuple[str, ...]) -> bool:
    for part in path:
        if not isinstance(tables, dict) or part not in tables:
            return False
        tables = tables[part]
    return True


def _harmless(path: tuple[str, ...], value: Any) -> Any:
    """The value without what may be a secret in it: of headers, of variables of programs, of URLs and arguments."""
    if len(path) > 2 and path[-2] in _VALUES_HIDDEN:  # noqa: PLR2004 - below a table with a name
        return HIDDEN
    if path[0] in ("webhooks", "mcp") and path[-1] == "url":
        parts = urlsplit(str(value))
        rest = HIDDEN if parts.path.strip("/") or parts.query else ""
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{rest}"
    if path == ("auth", "jwt", "jwks"):
        url, query, _ = str(value).partition("?")
        return url + query + (HIDDEN if query else "")
    if path[0] == "mcp" and path[-1] == "command":
        return [value[0], HIDDEN] if len(value) > 1 else value
    return value
