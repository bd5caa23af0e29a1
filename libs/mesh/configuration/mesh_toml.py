"""The mesh's configuration file: pools, and the model providers that serve them.

Its tables of tools, webhooks, breakers, the critic, results and sizes have modules of their own beside this one.

`MESH_CONFIG` names it, else it is `mesh.toml` in the working folder, if that is there. Without one, or with one that
names no pool, there is the pool `default` with the scripted model. A wrong key stops the start with one line that names
it. API keys are never in this file: it names the variables or the files that hold them (`secret_sources`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from contracts.codec import exactly
from contracts.retries import AWAY_SECONDS
from contracts.subjects import LANE_NAME_PATTERN
from contracts.tasks import BUDGET_TOKENS_MAX, DEADLINE_SECONDS_MAX
from mesh.configuration.access_tables import (
    ApprovalsConfiguration,
    AuthConfiguration,
    parse_approvals,
    parse_auth,
)
from mesh.configuration.addresses import is_host
from mesh.configuration.breaker_table import BreakerSettings
from mesh.configuration.capacity_table import CapacitySettings, PlacesSettings, check_capacity, check_places
from mesh.configuration.critic_table import CriticConfiguration, parse_critic
from mesh.configuration.logs_table import LogsConfiguration, parse_logs
from mesh.configuration.pace_table import PaceSettings
from mesh.configuration.results_table import ResultsConfiguration, parse_results
from mesh.configuration.secret_files import SecretPath, check_one
from mesh.configuration.storage_table import StorageConfiguration, parse_storage
from mesh.configuration.tenants_table import TenantsConfiguration, parse_tenants
from mesh.configuration.toml_tables import HEADER_NAME, HEADER_VALUE, convert, named_tables
from mesh.configuration.tool_tables import ToolsConfiguration, parse_tools
from mesh.configuration.webhook_tables import WebhookConfiguration, parse_webhooks
from mesh.errors import SettingsError

CONFIG_VARIABLE = "MESH_CONFIG"
DEFAULT_FILE = "mesh.toml"
NO_FILE = os.devnull
"""What MESH_CONFIG names where no file must count: it reads as an empty one."""
KEYS = (
    *("pools", "providers", "tenants", "tools", "mcp", "webhooks", "critic", "results", "storage", "logs", "auth"),
    "approvals",
)
FILE_BYTES_MAX = 1024 * 1024

Seconds = Annotated[float, Meta(gt=0, le=24 * 3600)]
Name = Annotated[str, exactly(LANE_NAME_PATTERN, 48)]
_RESERVED_HEADERS = frozenset({"authorization", "content-type", "content-length", "host", "transfer-encoding"})
_RESERVED_OF_ANTHROPIC = frozenset({"x-api-key", "anthropic-version"})


class ScriptedProviderConfiguration(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="scripted"
):
    """The scripted model. It needs no server, and is there under the name `scripted` without a table."""

    breaker: BreakerSettings = BreakerSettings(enabled=False)
    """When the provider counts as down. Off unless this table is there, since a script asks for its failures."""
    pace: PaceSettings = PaceSettings()
    """What it allows all workers together."""


class ServerConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server of models. The table's name is yours: pools, claims and dead letters show it."""

    base_url: Annotated[str, Meta(max_length=2048)]
    """Where the server is. The kind's own path is appended. It holds no user, no query and no fragment."""
    api_key_env: Annotated[str, exactly("[A-Za-z_][A-Za-z0-9_]{0,127}")] | None = None
    """Name of the variable that holds the key, never the key itself."""
    api_key_file: SecretPath | None = None
    """A file that holds the key, in place of `api_key_env`. With neither no key is sent."""
    connect_seconds: Seconds = 10.0
    """How long a connection may take, TLS included."""
    first_token_seconds: Seconds = 300.0
    """How long the first token may take. Queueing, loading the model and reading the prompt count."""
    between_tokens_seconds: Seconds = 60.0
    """How long each later token may take after the one before it."""
    away_seconds: Seconds = AWAY_SECONDS
    """How long a turn waits for a server that can't be reached, or loads its model, without using up its tries.

    Then it becomes a dead letter. A deadline ends its task sooner.
    """
    tool_choice: Literal["auto", "required"] | None = None
    """Sent beside tools. Unset: it is not, which means `auto`. With `required` no turn ends without a call."""
    parallel_tool_calls: bool | None = None
    """Sent beside tools: whether a turn may ask for several calls. Unset: it is not sent."""
    images: bool | None = None
    """Whether its models are given the images that tools return. Unset: at api.openai.com and api.anthropic.com.

    A request has up to 8 of them, the newest, and 3.75 MiB in all. Otherwise a model reads their types and sizes; so it
    does if the server refuses a request with images.
    """
    headers: dict[str, str] = {}
    """Sent with each request. Headers that the worker sets itself, such as `Authorization`, can't be set here."""
    breaker: BreakerSettings = BreakerSettings()
    """When the provider counts as down, for all workers."""
    pace: PaceSettings = PaceSettings()
    """What it allows all workers together."""
    capacity: CapacitySettings | None = None
    """How many turns the server gets at once. Unset: as many as the workers have places."""

    @property
    def host(self) -> str | None:
        """The name of the server's host: of some it is known what they demand."""
        return urlsplit(self.base_url).hostname


Roles = Literal["free", "merged", "strict"]
ReasoningField = Literal["reasoning_content", "reasoning", "none"]


class OpenAIProviderConfiguration(
    ServerConfiguration, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="openai"
):
    """Any server with OpenAI-compatible chat completions: vLLM, Ollama, llama.cpp, OpenAI.

    `/chat/completions` is appended to `base_url`.
    """

    max_tokens_field: Literal["max_tokens", "max_completion_tokens", "none"] | None = None
    """Name of the output limit in requests. Unset: `max_completion_tokens` at api.openai.com, else `max_tokens`.

    `none`: no limit is sent.
    """
    stream_options: bool = True
    """Asks for the count of tokens. Some older servers refuse the field; without it a turn may count none."""
    roles: Roles | None = None
    """The order of messages. `merged`: neighbours of one role are one message. `free`: all as they are.

    `strict`: neighbours are merged, instructions come first, then a user, and a word of the assistant stands between a
    tool's answer and a user's message. Many chat templates demand it. Unset: `strict` at api.mistral.ai, else `merged`.
    """
    reasoning_field: ReasoningField | None = None
    """Where the reasoning of a turn with calls goes back to its model. `none`: it does not.

    Unset: `reasoning_content` at api.deepseek.com, api.moonshot.ai and api.moonshot.cn, which demand it, else `none`.
    """
    continue_prefix: Literal["vllm"] | None = None
    """Continues a turn in mid-sentence after its worker died, in vLLM's way. Unset: it is generated again.

    The server then counts the part that was there as input, and a limit of output from there on. A turn begins again if
    its text is shorter than 16 characters, or if the server begins anew.
    """


class AnthropicProviderConfiguration(
    ServerConfiguration, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="anthropic"
):
    """Anthropic's Messages API, or a server that has the same. `/v1/messages` is appended to `base_url`."""

    base_url: Annotated[str, Meta(max_length=2048)] = "https://api.anthropic.com"
    prefill: bool | None = None
    """Continues a turn in mid-sentence after its worker died: its text is sent as the beginning of the answer.

    Not every server with this API goes on behind it. Unset: at api.anthropic.com. Otherwise the turn is generated
    again; so it is if its text is shorter than 16 characters, if the server begins anew, or if the model refuses.
    """
    max_output_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 4096
    """The limit of output, thinking included, where neither request nor pool has one. This API demands one."""
    thinking_budget_tokens: Annotated[int, Meta(ge=1024, le=1_000_000)] | None = None
    """How many tokens the model may think before it answers; less than `max_output_tokens`. Unset: it does not.

    A turn whose limit of output leaves no room for thinking goes without it. A turn that thinks is generated again
    after its worker died, not continued.
    """


ProviderConfiguration = ScriptedProviderConfiguration | OpenAIProviderConfiguration | AnthropicProviderConfiguration


ModelName = Annotated[str, Meta(min_length=1, max_length=128)]
OnContext = Literal["switch", "compact", "fail"]
SLOW_SECONDS = 10.0
FALLBACKS_MAX = 8


class FallbackConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that a pool goes on with where the one before can't: unavailable, too slow or too small."""

    provider: Name
    """A provider of this file, or `scripted`."""
    model: ModelName | None = None
    """The model's name at the provider. Only the scripted model needs none."""


class PoolConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pool: the provider and the model that run its turns, and what follows where they can't.

    A request names its pool. The pool `default` takes the requests that name none; a file with pools must have it.
    """

    provider: Name = "scripted"
    """A provider of this file, or `scripted`."""
    model: ModelName | None = None
    """The model for requests that name none. Only the scripted model needs none."""
    max_output_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """The most tokens that a turn may put out. A request may ask for less."""
    fallbacks: Annotated[list[FallbackConfiguration], Meta(max_length=FALLBACKS_MAX)] = []
    """The pool's next models, in their order. None comes twice."""
    on_context: OnContext | Annotated[list[OnContext], Meta(min_length=1, max_length=2)] | None = None
    """What follows on a conversation that is too long for the model.

    `switch`: the next model, also for later turns. `compact`: the same one is shown the newest half, down to a
    sixty-fourth. `fail`: the task fails. `["switch", "compact"]`: compact once no model is left. Unset: `switch` with
    fallbacks, else `fail`.
    """
    on_slow: Literal["wait", "switch", "hedge"] = "wait"
    """What follows on a model that has given no token after `slow_seconds`.

    `switch`: the next model, for this turn. `hedge`: the next model is asked beside it, at its price, and the first
    that gives a token goes on. Both need fallbacks.
    """
    slow_seconds: Seconds = SLOW_SECONDS
    """How long a model may give no token before `on_slow` acts."""
    ask_user: bool = True
    """Whether the models are offered the tool `ask_user`. Off for models, or servers, that take no tools at all."""
    tool_wait_seconds: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    """How long a turn waits for a tool of its task that nobody serves. Then the model is told, and does without."""
    deadline_seconds: Annotated[float, Meta(gt=0, le=DEADLINE_SECONDS_MAX)] | None = None
    """How long a task may take from its acceptance. Then it ends with what there is. A request may ask for less."""
    budget_tokens: Annotated[int, Meta(ge=1, le=BUDGET_TOKENS_MAX)] | None = None
    """How many tokens a task's turns may read and put out. Then it ends, incomplete. A request may ask for less."""
    places: PlacesSettings = PlacesSettings()
    """Its part of the places of a worker that serves several pools."""

    @property
    def switches_on_context(self) -> bool:
        """Whether a conversation that is too long goes to the next model."""
        return self.on_context is None or "switch" in self.on_context

    @property
    def compacts_on_context(self) -> bool:
        """Whether a conversation that is too long for the last model is compacted."""
        return self.on_context is not None and "compact" in self.on_context

    wait_seconds: Annotated[float, Meta(ge=0, le=24 * 3600)] = 60.0
    """While none of the pool's providers can be called, new tasks that would wait longer get 503."""


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, checked. `source` is the file's name, for messages."""

    providers: dict[str, ProviderConfiguration]
    pools: dict[str, PoolConfiguration]
    tenants: TenantsConfiguration = TenantsConfiguration()
    tools: ToolsConfiguration = ToolsConfiguration()
    webhooks: dict[str, WebhookConfiguration] = {}
    critic: CriticConfiguration | None = None
    """Absent: there is no critic."""
    results: ResultsConfiguration = ResultsConfiguration()
    storage: StorageConfiguration = StorageConfiguration()
    logs: LogsConfiguration = LogsConfiguration()
    auth: AuthConfiguration = AuthConfiguration()
    approvals: ApprovalsConfiguration = ApprovalsConfiguration()
    source: str = DEFAULT_FILE

    def providers_of(self, pool: str) -> tuple[str, ...]:
        """The names of the providers that a pool may use, its first one first."""
        configured = self.pools[pool]
        return tuple(dict.fromkeys([configured.provider, *(each.provider for each in configured.fallbacks)]))

    @property
    def breakers(self) -> dict[str, BreakerSettings]:
        """The breaker of each provider that a pool uses."""
        used = sorted({provider for pool in self.pools for provider in self.providers_of(pool)})
        return {name: self.providers[name].breaker for name in used}

    @property
    def paces(self) -> dict[str, PaceSettings]:
        """What each provider that a pool uses allows; without the scripted model, unless it has limits."""
        used = {name: self.providers[name] for name in self.breakers}
        return {
            name: each.pace for name, each in used.items() if each.pace.is_set or isinstance(each, ServerConfiguration)
        }


def default_configuration() -> Configuration:
    """What holds without a file: the pool `default` with the scripted model."""
    return Configuration(
        providers={"scripted": ScriptedProviderConfiguration()}, pools={"default": PoolConfiguration()}
    )


def load_configuration(named: Path | None) -> Configuration:
    """Read the file that MESH_CONFIG names, or `mesh.toml` if it is there. Raises `SettingsError`."""
    return parse_configuration(read_file(named), str(named if named is not None else DEFAULT_FILE))


def read_file(named: Path | None) -> bytes:
    """What that file holds; nothing, if none is named and none is there. Raises `SettingsError`."""
    path = named if named is not None else Path(DEFAULT_FILE)
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        if named is None:
            return b""
        raise SettingsError(f"{CONFIG_VARIABLE}='{path}': there is no such file") from None
    except OSError as error:
        raise SettingsError(f"{CONFIG_VARIABLE}='{path}': {error.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise SettingsError(f"{path}: more than {FILE_BYTES_MAX} bytes")
    return content


def parse_configuration(content: bytes, source: str = DEFAULT_FILE) -> Configuration:
    """Read a configuration. Raises `SettingsError`: one line, with the source and the key at fault."""
    return configuration_of(tables_of(content, source), source)


def tables_of(content: bytes, source: str = DEFAULT_FILE) -> dict[str, Any]:
    """The tables of a file, unread. Raises `SettingsError`."""
    try:
        return msgspec.toml.decode(content)  # type: ignore[no-any-return]  # a document is a table
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{source}: not valid TOML: {_one_line(error)}") from None


def configuration_of(tables: Mapping[str, Any], source: str = DEFAULT_FILE) -> Configuration:
    """Read the tables of a file. Raises `SettingsError`: one line, with the source and the key at fault."""
    unknown = sorted(tables.keys() - set(KEYS))
    if unknown:
        raise SettingsError(f"{source}: {unknown[0]}: there is no such key; there are {', '.join(KEYS)}")
    providers: dict[str, ProviderConfiguration] = {"scripted": ScriptedProviderConfiguration()}
    for name, table in named_tables(tables, "providers", Name, source).items():
        key = f"providers.{name}"
        provider: ProviderConfiguration = convert(table, ProviderConfiguration, key, source)  # type: ignore[arg-type]  # a union
        if provider.breaker.open_seconds > provider.breaker.open_seconds_max:
            raise SettingsError(f"{source}: {key}.breaker.open_seconds: must not be more than open_seconds_max")
        if isinstance(provider, ServerConfiguration):
            _check_server(provider, key, source)
            check_capacity(provider.capacity, f"{key}.capacity", source)
        if isinstance(provider, AnthropicProviderConfiguration):
            _check_anthropic(provider, key, source)
        providers[name] = provider
    pools: dict[str, PoolConfiguration] = {}
    for name, table in named_tables(tables, "pools", Name, source).items():
        pool = convert(table, PoolConfiguration, f"pools.{name}", source)
        _check_pool(pool, providers, f"{source}: pools.{name}")
        check_places(pool.places, f"pools.{name}.places", source)
        pools[name] = pool
    if pools and "default" not in pools:
        raise SettingsError(f"{source}: pools.default: required: it takes the requests that name no pool")
    pools = pools or default_configuration().pools
    return Configuration(
        providers=providers,
        pools=pools,
        tenants=parse_tenants(tables, source),
        tools=parse_tools(tables, source),
        webhooks=parse_webhooks(tables, source),
        critic=parse_critic(tables, tuple(pools), source),
        results=parse_results(tables, source),
        storage=parse_storage(tables, source),
        logs=parse_logs(tables, source),
        auth=parse_auth(tables, source),
        approvals=parse_approvals(tables, source),
        source=source,
    )


def _check_pool(pool: PoolConfiguration, providers: Mapping[str, ProviderConfiguration], where: str) -> None:
    """Raise `SettingsError` if the pool's models can't be. `where` is the source and the pool's key."""
    seen: set[tuple[str, str | None]] = set()
    named = [(pool.provider, pool.model, where)]
    named += [(each.provider, each.model, f"{where}.fallbacks[{at}]") for at, each in enumerate(pool.fallbacks)]
    for provider, model, key in named:
        if provider not in providers:
            raise SettingsError(f"{key}.provider: there is no provider {provider!r}; {', '.join(sorted(providers))}")
        if model is None and not isinstance(providers[provider], ScriptedProviderConfiguration):
            raise SettingsError(f"{key}.model: required, as there is no model by default")
        if (provider, model) in seen:
            raise SettingsError(f"{key}: is one of the pool's models already")
        seen.add((provider, model))
    if isinstance(pool.on_context, list) and pool.on_context != ["switch", "compact"]:
        raise SettingsError(f'{where}.on_context: of lists there is ["switch", "compact"] alone')
    if pool.on_context is not None and pool.switches_on_context and not pool.fallbacks:
        raise SettingsError(f"{where}.on_context: switch needs fallbacks")
    if pool.on_slow != "wait" and not pool.fallbacks:
        raise SettingsError(f"{where}.on_slow: {pool.on_slow} needs fallbacks")


def _check_server(provider: ServerConfiguration, key: str, source: str) -> None:
    check_one(("api_key_env", provider.api_key_env), ("api_key_file", provider.api_key_file), f"{source}: {key}")
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
        if HEADER_NAME.fullmatch(name) is None or HEADER_VALUE.fullmatch(value) is None:
            raise SettingsError(f"{source}: {key}.headers.{name!r}: is no header's name, or its value is none")
        if name.lower() in _RESERVED_HEADERS:
            raise SettingsError(
                f"{source}: {key}.headers.{name!r}: can't be set here (a key: api_key_env or api_key_file)"
            )


def _check_anthropic(provider: AnthropicProviderConfiguration, key: str, source: str) -> None:
    budget = provider.thinking_budget_tokens
    for name in provider.headers:
        if name.lower() in _RESERVED_OF_ANTHROPIC:
            raise SettingsError(
                f"{source}: {key}.headers.{name!r}: can't be set here (a key: api_key_env or api_key_file)"
            )
    if budget is not None and provider.tool_choice == "required":
        raise SettingsError(f"{source}: {key}.tool_choice: this API has no `required` beside thinking_budget_tokens")
    if budget is not None and budget >= provider.max_output_tokens:
        reason = f"must be less than max_output_tokens ({provider.max_output_tokens}), of which it is a part"
        raise SettingsError(f"{source}: {key}.thinking_budget_tokens: {reason}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
