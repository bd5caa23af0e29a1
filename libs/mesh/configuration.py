"""The mesh's configuration file: pools, and the model providers that serve them.

Tools are in `tool_configuration`, webhooks in `webhook_configuration`.

`MESH_CONFIG` names it, else it is `mesh.toml` in the working folder, if that is there. Without one, or with one that
names no pool, there is the pool `default` with the scripted model. A wrong key stops the start with one line that names
it. API keys are never in this file: it names the variables that hold them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from contracts.codec import exactly
from contracts.subjects import LANE_NAME_PATTERN
from mesh.addresses import is_host
from mesh.errors import SettingsError
from mesh.tables import convert, named_tables
from mesh.tool_configuration import ToolsConfiguration, parse_tools
from mesh.webhook_configuration import WebhookConfiguration, parse_webhooks

CONFIG_VARIABLE = "MESH_CONFIG"
DEFAULT_FILE = "mesh.toml"
NO_FILE = os.devnull
"""What MESH_CONFIG names where no file must count: it reads as an empty one."""
KEYS = ("pools", "providers", "tools", "mcp", "webhooks")
FILE_BYTES_MAX = 1024 * 1024

Seconds = Annotated[float, Meta(gt=0, le=24 * 3600)]
Name = Annotated[str, exactly(LANE_NAME_PATTERN, 48)]
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,1022}[\x21-\x7e])?")
_RESERVED_HEADERS = frozenset({"authorization", "content-type", "content-length", "host", "transfer-encoding"})
_RESERVED_OF_ANTHROPIC = frozenset({"x-api-key", "anthropic-version"})


class ScriptedProviderConfiguration(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="scripted"
):
    """The scripted model. It needs nothing, and is there under the name `scripted` without being configured."""


class ServerConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server of models, of whatever kind. Times are in seconds."""

    base_url: Annotated[str, Meta(max_length=2048)]
    """What the kind's own path is appended to."""
    api_key_env: Annotated[str, exactly("[A-Za-z_][A-Za-z0-9_]{0,127}")] | None = None
    """Name of the variable that holds the key, never the key itself. Absent: no key is sent."""
    connect_seconds: Seconds = 10.0
    """How long a connection may take, TLS included."""
    first_token_seconds: Seconds = 300.0
    """How long the first token may take: queueing, loading the model and reading the prompt are in it."""
    between_tokens_seconds: Seconds = 60.0
    """How long the next one may take from there on."""
    headers: dict[str, str] = {}
    """Sent with each request."""


class OpenAIProviderConfiguration(
    ServerConfiguration, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="openai"
):
    """Any server of OpenAI-compatible chat completions.

    `/chat/completions` is appended to `base_url`, e.g. `http://127.0.0.1:8000/v1`.
    """

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    """The name of the limit in requests. Absent: OpenAI's own new name at api.openai.com, else the one all know."""
    continue_prefix: Literal["vllm"] | None = None
    """How a turn whose worker died is continued in mid-sentence. Absent: it is generated again.

    The server counts the part that was there as input, and a limit of output from there on.
    """


class AnthropicProviderConfiguration(
    ServerConfiguration, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="anthropic"
):
    """Anthropic's Messages API, or a server that has the same. `/v1/messages` is appended to `base_url`."""

    base_url: Annotated[str, Meta(max_length=2048)] = "https://api.anthropic.com"
    max_output_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 4096
    """The limit of output, thinking included, where neither request nor pool has one: this API demands one."""
    thinking_budget_tokens: Annotated[int, Meta(ge=1024, le=1_000_000)] | None = None
    """How much a model may think before it answers; 1024 is the API's own least. Absent: it does not.

    A turn whose limit of output leaves no room for it goes without. With it a turn whose worker died is generated
    again, and not continued.
    """


ProviderConfiguration = ScriptedProviderConfiguration | OpenAIProviderConfiguration | AnthropicProviderConfiguration


class PoolConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pool: which provider runs its turns, and with which model."""

    provider: Name = "scripted"
    model: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    """For requests that name none. Required where the provider is a real one."""
    max_output_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """The most that a turn may put out; a request may ask for less."""


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, checked. `source` is the file's name, for messages."""

    providers: dict[str, ProviderConfiguration]
    pools: dict[str, PoolConfiguration]
    tools: ToolsConfiguration = ToolsConfiguration()
    webhooks: dict[str, WebhookConfiguration] = {}
    source: str = DEFAULT_FILE

    def provider_of(self, pool: str) -> ProviderConfiguration:
        """The provider that a pool names."""
        return self.providers[self.pools[pool].provider]


def default_configuration() -> Configuration:
    """What holds without a file: the pool `default` with the scripted model."""
    return Configuration(
        providers={"scripted": ScriptedProviderConfiguration()}, pools={"default": PoolConfiguration()}
    )


def load_configuration(named: Path | None) -> Configuration:
    """Read the file that MESH_CONFIG names, or `mesh.toml` if it is there. Raises `SettingsError`."""
    path = named if named is not None else Path(DEFAULT_FILE)
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        if named is None:
            return default_configuration()
        raise SettingsError(f"{CONFIG_VARIABLE}='{path}': there is no such file") from None
    except OSError as error:
        raise SettingsError(f"{CONFIG_VARIABLE}='{path}': {error.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise SettingsError(f"{path}: more than {FILE_BYTES_MAX} bytes")
    return parse_configuration(content, str(path))


def parse_configuration(content: bytes, source: str = DEFAULT_FILE) -> Configuration:
    """Read a configuration. Raises `SettingsError`: one line, with the source and the key at fault."""
    try:
        tables = msgspec.toml.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{source}: not valid TOML: {_one_line(error)}") from None
    unknown = sorted(tables.keys() - set(KEYS))
    if unknown:
        raise SettingsError(f"{source}: {unknown[0]}: there is no such key; there are {', '.join(KEYS)}")
    providers: dict[str, ProviderConfiguration] = {"scripted": ScriptedProviderConfiguration()}
    for name, table in named_tables(tables, "providers", Name, source).items():
        key = f"providers.{name}"
        provider: ProviderConfiguration = convert(table, ProviderConfiguration, key, source)  # type: ignore[arg-type]  # a union
        if isinstance(provider, ServerConfiguration):
            _check_server(provider, key, source)
        if isinstance(provider, AnthropicProviderConfiguration):
            _check_anthropic(provider, key, source)
        providers[name] = provider
    pools: dict[str, PoolConfiguration] = {}
    for name, table in named_tables(tables, "pools", Name, source).items():
        pool = convert(table, PoolConfiguration, f"pools.{name}", source)
        if pool.provider not in providers:
            there = ", ".join(sorted(providers))
            raise SettingsError(f"{source}: pools.{name}.provider: there is no provider {pool.provider!r}; {there}")
        if pool.model is None and not isinstance(providers[pool.provider], ScriptedProviderConfiguration):
            raise SettingsError(f"{source}: pools.{name}.model: required, as there is no model by default")
        pools[name] = pool
    if pools and "default" not in pools:
        raise SettingsError(f"{source}: pools.default: required: it takes the requests that name no pool")
    return Configuration(
        providers=providers,
        pools=pools or default_configuration().pools,
        tools=parse_tools(tables, source),
        webhooks=parse_webhooks(tables, source),
        source=source,
    )


def api_key(configuration: Configuration, provider: str, environment: Mapping[str, str]) -> str | None:
    """The key of a provider; None if it needs none. Raises `SettingsError`, which never shows the key."""
    configured = configuration.providers[provider]
    if not isinstance(configured, ServerConfiguration) or configured.api_key_env is None:
        return None
    key = environment.get(configured.api_key_env, "").strip()
    where = f"{configuration.source}: providers.{provider}.api_key_env: the variable {configured.api_key_env}"
    if not key:
        raise SettingsError(f"{where} is not set")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise SettingsError(f"{where} holds what can't be a key")
    return key


def check_api_keys(configuration: Configuration, environment: Mapping[str, str]) -> None:
    """Raise `SettingsError` if a provider that a pool uses has no key."""
    for pool in configuration.pools.values():
        api_key(configuration, pool.provider, environment)


def _check_server(provider: ServerConfiguration, key: str, source: str) -> None:
    try:
        url = urlsplit(provider.base_url)
        usable = url.scheme in ("http", "https") and is_host(url.hostname or "") and url.port != 0
    except ValueError:
        usable = False
    if not usable or not provider.base_url.isascii() or not provider.base_url.isprintable() or " " in provider.base_url:
        raise SettingsError(f"{source}: {key}.base_url: must be http(s)://<host>[:<port>][/<path>]")
    if url.username is not None or url.query or url.fragment:
        # Not shown: what is in there may be a password.
        raise SettingsError(f"{source}: {key}.base_url: takes no user, no query and no fragment")
    for name, value in provider.headers.items():
        if _HEADER_NAME.fullmatch(name) is None or _HEADER_VALUE.fullmatch(value) is None:
            raise SettingsError(f"{source}: {key}.headers.{name!r}: is no header's name, or its value is none")
        if name.lower() in _RESERVED_HEADERS:
            raise SettingsError(f"{source}: {key}.headers.{name!r}: can't be set here (a key: api_key_env)")


def _check_anthropic(provider: AnthropicProviderConfiguration, key: str, source: str) -> None:
    budget = provider.thinking_budget_tokens
    for name in provider.headers:
        if name.lower() in _RESERVED_OF_ANTHROPIC:
            raise SettingsError(f"{source}: {key}.headers.{name!r}: can't be set here (a key: api_key_env)")
    if budget is not None and budget >= provider.max_output_tokens:
        reason = f"must be less than max_output_tokens ({provider.max_output_tokens}), of which it is a part"
        raise SettingsError(f"{source}: {key}.thinking_budget_tokens: {reason}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
