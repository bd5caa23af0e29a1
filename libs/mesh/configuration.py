"""The mesh's configuration file: pools, and the model providers that serve them.

`MESH_CONFIG` names it, else it is `mesh.toml` in the working folder, if that is there. Without one, or with one that
names no pool, there is the pool `default` with the scripted model. A wrong key stops the start with one line that names
it. API keys are never in this file: it names the variables that hold them.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from contracts.codec import exactly
from contracts.subjects import LANE_NAME_PATTERN
from mesh.errors import SettingsError

CONFIG_VARIABLE = "MESH_CONFIG"
DEFAULT_FILE = "mesh.toml"
NO_FILE = os.devnull
"""What MESH_CONFIG names where no file must count: it reads as an empty one."""
FILE_BYTES_MAX = 1024 * 1024

Seconds = Annotated[float, Meta(gt=0, le=24 * 3600)]
Name = Annotated[str, exactly(LANE_NAME_PATTERN, 48)]
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,1022}[\x21-\x7e])?")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_HOST_CHARACTERS_MAX = 253
_RESERVED_HEADERS = frozenset({"authorization", "content-type", "content-length", "host", "transfer-encoding"})

T = TypeVar("T")


class ScriptedProviderConfiguration(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="scripted"
):
    """The scripted model. It needs nothing, and is there under the name `scripted` without being configured."""


class OpenAIProviderConfiguration(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="openai"
):
    """Any server of OpenAI-compatible chat completions. Times are in seconds."""

    base_url: Annotated[str, Meta(max_length=2048)]
    """What `/chat/completions` is appended to, e.g. `http://127.0.0.1:8000/v1`."""
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
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    """The name of the limit in requests. Absent: OpenAI's own new name at api.openai.com, else the one all know."""
    continue_prefix: Literal["vllm"] | None = None
    """How a turn whose worker died is continued in mid-sentence. Absent: it is generated again.

    The server counts the part that was there as input, and a limit of output from there on.
    """


ProviderConfiguration = ScriptedProviderConfiguration | OpenAIProviderConfiguration


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
    unknown = sorted(tables.keys() - {"providers", "pools"})
    if unknown:
        raise SettingsError(f"{source}: {unknown[0]}: there is no such key; there are pools and providers")
    providers: dict[str, ProviderConfiguration] = {"scripted": ScriptedProviderConfiguration()}
    for name, table in _tables(tables, "providers", source).items():
        key = f"providers.{name}"
        provider: ProviderConfiguration = _convert(table, ProviderConfiguration, key, source)  # type: ignore[arg-type]  # a union
        if isinstance(provider, OpenAIProviderConfiguration):
            _check_openai(provider, key, source)
        providers[name] = provider
    pools: dict[str, PoolConfiguration] = {}
    for name, table in _tables(tables, "pools", source).items():
        pool = _convert(table, PoolConfiguration, f"pools.{name}", source)
        if pool.provider not in providers:
            there = ", ".join(sorted(providers))
            raise SettingsError(f"{source}: pools.{name}.provider: there is no provider {pool.provider!r}; {there}")
        if pool.model is None and not isinstance(providers[pool.provider], ScriptedProviderConfiguration):
            raise SettingsError(f"{source}: pools.{name}.model: required, as there is no model by default")
        pools[name] = pool
    if pools and "default" not in pools:
        raise SettingsError(f"{source}: pools.default: required: it takes the requests that name no pool")
    return Configuration(providers=providers, pools=pools or default_configuration().pools, source=source)


def api_key(configuration: Configuration, provider: str, environment: Mapping[str, str]) -> str | None:
    """The key of a provider; None if it needs none. Raises `SettingsError`, which never shows the key."""
    configured = configuration.providers[provider]
    if not isinstance(configured, OpenAIProviderConfiguration) or configured.api_key_env is None:
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


def _tables(tables: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    found = tables.get(key, {})
    if not isinstance(found, dict):
        raise SettingsError(f"{source}: {key}: must be tables, each with a name: [{key}.<name>]")
    for name in found:
        _convert(name, Name, f"{key}.{name!r}", source)
    return found


def _convert(value: Any, kind: type[T], key: str, source: str) -> T:
    """Read one table; the message of an error says the whole key, down to the field."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        raise SettingsError(f"{source}: {key}{path.rstrip('`')}: {what}") from None


def _check_openai(provider: OpenAIProviderConfiguration, key: str, source: str) -> None:
    try:
        url = urlsplit(provider.base_url)
        usable = url.scheme in ("http", "https") and _is_host(url.hostname or "") and url.port != 0
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


def _is_host(host: str) -> bool:
    """Whether it is an IP address or a DNS name. A last label of digits can only be part of an address (WHATWG URL)."""
    if ":" in host or host.rpartition(".")[2].isdigit():
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True
    return len(host) <= _HOST_CHARACTERS_MAX and all(_LABEL.fullmatch(label) for label in host.split("."))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
