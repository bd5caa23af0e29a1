"""What the operator says of tools in mesh.toml: `[tools.<name>]` and `[mcp.<server>]`.

What is set here outranks what a tool, or an MCP server, says of itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from contracts.access import Scope
from contracts.codec import exactly
from contracts.fields import SignalFilter
from contracts.records.tools import SEND_SIGNAL, TOOL_TIMEOUT_SECONDS, ToolDeclaration
from contracts.subjects import LANE_NAME_PATTERN
from contracts.tasks import ApprovalMode
from mesh.configuration.toml_tables import HEADER_NAME, HEADER_VALUE, convert, named_tables
from mesh.errors import SettingsError

HTTP_GET = "http_get"
SUBJECTS_MAX = 256
SERVERS_MAX = 64
HOSTS_MAX = 1_000

ToolName = Annotated[str, exactly(LANE_NAME_PATTERN, 48)]
# A part of the names of its tools.
ServerName = Annotated[str, exactly(r"[a-z0-9][a-z0-9_-]{0,23}", 24)]
Seconds = Annotated[float, Meta(gt=0, le=24 * 3600)]
Variable = Annotated[str, exactly("[A-Za-z_][A-Za-z0-9_]{0,127}")]
_HOST = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?|\[[0-9a-f:.]+\]")
_RESERVED_HEADERS = frozenset(
    {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "last-event-id"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)
_PORT = re.compile(r"[1-9][0-9]{0,4}")


class ToolConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for one tool, whoever serves it. It outranks what the tool or its server says of itself.

    The table's name is the tool's. What is unset stays as the tool declares it.
    """

    approval: ApprovalMode | None = None
    """When a person has to agree. `destructive`: to calls that can't be undone. It outranks what the task asks for."""
    idempotent: bool | None = None
    """Whether a call may run twice."""
    timeout_seconds: Seconds | None = None
    """How long a call may take."""
    approve_scope: Scope | None = None
    """The scope that it takes to approve a call. Unset: that of `[approvals]`."""

    def applied_to(self, declared: ToolDeclaration) -> ToolDeclaration:
        """The declaration with what is set here instead of its own."""
        values = {name: getattr(self, name) for name in ("approval", "idempotent", "timeout_seconds")}
        changes = {name: value for name, value in values.items() if value is not None}
        return msgspec.structs.replace(declared, **changes)


class HttpGetConfiguration(ToolConfiguration, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tool `http_get`. It reads pages of these hosts, and of no others."""

    allowed_hosts: Annotated[list[str], Meta(max_length=HOSTS_MAX)] = []
    """The hosts: `<host>` is ports 80 and 443, `<host>:<port>` that port, `*.<host>` all names below."""
    allow_private: bool = False
    """Whether those hosts may have private, loopback or link-local addresses."""


class SendSignalConfiguration(ToolConfiguration, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tool `send_signal`. It sends these signals, and no others."""

    subjects: Annotated[list[SignalFilter], Meta(max_length=SUBJECTS_MAX)] = []
    """The signals that tasks may send, as filters below `signals.<tenant>.`."""


class McpServerConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An MCP server. Its tools are offered as `<server>_<tool>`. The table has either `command` or `url`."""

    command: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=256)] | None = None
    """The program and its arguments, spoken to by stdio. Each tool runner starts it, and again when it ends."""
    url: Annotated[str, Meta(max_length=2048)] | None = None
    """Where the server is, spoken to by streamable HTTP. It holds no user and no fragment."""
    env: dict[Variable, str] = {}
    """Variables for the program, beside HOME, LOGNAME, PATH, SHELL, TERM and USER. Only with `command`."""
    env_from: Annotated[list[Variable], Meta(max_length=256)] = []
    """Names of the runner's own variables that the program gets too, such as keys. Only with `command`."""
    cwd: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    """The folder that the program runs in; unset is the runner's. Only with `command`."""
    api_key_env: Variable | None = None
    """Name of the variable that holds the bearer token, never the token itself. Only with `url`."""
    headers: dict[str, str] = {}
    """Headers of each request, such as `X-Team = "blue"`. They hold no secrets: see `headers_env`. Only with `url`."""
    headers_env: dict[str, Variable] = {}
    """Headers whose values are secrets: the name of the variable that holds each. Only with `url`."""
    timeout_seconds: Seconds = TOOL_TIMEOUT_SECONDS
    """How long a call of any of its tools may take."""


class ToolsConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, checked."""

    tools: dict[str, ToolConfiguration] = {}
    mcp: dict[str, McpServerConfiguration] = {}

    def of(self, tool: str) -> ToolConfiguration:
        """What holds for a tool."""
        return self.tools.get(tool) or ToolConfiguration()

    @property
    def http_get(self) -> HttpGetConfiguration:
        """What holds for `http_get`."""
        found = self.tools.get(HTTP_GET)
        return found if isinstance(found, HttpGetConfiguration) else HttpGetConfiguration()

    @property
    def send_signal(self) -> SendSignalConfiguration:
        """What holds for `send_signal`."""
        found = self.tools.get(SEND_SIGNAL)
        return found if isinstance(found, SendSignalConfiguration) else SendSignalConfiguration()


def parse_tools(tables: Mapping[str, Any], source: str) -> ToolsConfiguration:
    """Read `[tools.…]` and `[mcp.…]`. Raises `SettingsError`: one line, with the source and the key at fault."""
    tools: dict[str, ToolConfiguration] = {}
    for name, table in named_tables(tables, "tools", ToolName, source).items():
        if name == HTTP_GET:
            configured = convert(table, HttpGetConfiguration, f"tools.{name}", source)
            for host in configured.allowed_hosts:
                if not is_host_pattern(host):
                    raise SettingsError(f"{source}: tools.{name}.allowed_hosts: {host!r} is no <host>[:<port>]")
            tools[name] = configured
        elif name == SEND_SIGNAL:
            tools[name] = convert(table, SendSignalConfiguration, f"tools.{name}", source)
        else:
            tools[name] = convert(table, ToolConfiguration, f"tools.{name}", source)
    servers: dict[str, McpServerConfiguration] = {}
    for name, table in named_tables(tables, "mcp", ServerName, source).items():
        key = f"mcp.{name}"
        server = convert(table, McpServerConfiguration, key, source)
        _check_server(server, key, source)
        servers[name] = server
    if len(servers) > SERVERS_MAX:
        raise SettingsError(f"{source}: mcp: more than {SERVERS_MAX} servers")
    return ToolsConfiguration(tools=tools, mcp=servers)


def variable_of(environment: Mapping[str, str], variable: str, key: str) -> str:
    """The value of a variable that the file names. Raises `SettingsError`, which never shows a value."""
    value = environment.get(variable, "").strip()
    if not value:
        raise SettingsError(f"{key}: the variable {variable} is not set")
    return value


def header_of(environment: Mapping[str, str], variable: str, key: str) -> str:
    """The value of a variable that goes into a header. Raises `SettingsError`, which never shows a value."""
    value = variable_of(environment, variable, key)
    if HEADER_VALUE.fullmatch(value) is None:
        raise SettingsError(f"{key}: the variable {variable} holds what can't be in a header")
    return value


def is_host_pattern(pattern: str) -> bool:
    """Whether it can be an entry of `allowed_hosts`; names are in lower case, as in a URL's ASCII form."""
    host, colon, port = pattern.rpartition(":")
    if not colon or pattern.endswith("]"):
        host, port = pattern, "80"
    return _HOST.fullmatch(host) is not None and _PORT.fullmatch(port) is not None and int(port) <= 65_535  # noqa: PLR2004


def _check_server(server: McpServerConfiguration, key: str, source: str) -> None:
    if (server.command is None) == (server.url is None):
        raise SettingsError(f"{source}: {key}: takes either command or url")
    if server.command is not None:
        if server.api_key_env is not None:
            raise SettingsError(f"{source}: {key}.api_key_env: is for a url; a command takes env_from")
        if server.headers or server.headers_env:
            raise SettingsError(f"{source}: {key}: headers and headers_env are for a url")
        if any("\0" in part for part in (*server.command, *server.env.values(), server.cwd or "")):
            raise SettingsError(f"{source}: {key}: holds a NUL character")
        return
    if server.env or server.env_from:
        raise SettingsError(f"{source}: {key}: env and env_from are for a command")
    if server.cwd is not None:
        raise SettingsError(f"{source}: {key}.cwd: is for a command")
    _check_headers(server, key, source)
    url = server.url or ""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise SettingsError(f"{source}: {key}.url: must be http(s)://<host>[:<port>]/<path>")
    if parts.username is not None or parts.fragment:
        # Not shown: what is in there may be a password.
        raise SettingsError(f"{source}: {key}.url: takes no user and no fragment")


def _check_headers(server: McpServerConfiguration, key: str, source: str) -> None:
    seen: set[str] = set()
    for field, names in (("headers", server.headers), ("headers_env", server.headers_env)):
        for name in names:
            where = f"{source}: {key}.{field}.{name!r}"
            if HEADER_NAME.fullmatch(name) is None or HEADER_VALUE.fullmatch(server.headers.get(name, "x")) is None:
                raise SettingsError(f"{where}: is no header's name, or its value is none")
            lower = name.lower()
            if lower in _RESERVED_HEADERS or lower.startswith("mcp-"):
                raise SettingsError(f"{where}: can't be set here")
            if lower == "authorization" and (field == "headers" or server.api_key_env is not None):
                raise SettingsError(f"{where}: a bearer token is api_key_env, anything else headers_env")
            if lower in seen:
                raise SettingsError(f"{where}: is there twice")
            seen.add(lower)
