"""The mesh's configuration file: pools, and all the other tables, which have modules of their own beside this one.

`MESH_CONFIG` names it, else it is `mesh.toml` in the working folder, if that is there. Without one, or with one that
names no pool, there is the pool `default` with the scripted model. A wrong key stops the start with one line that names
it. API keys are never in this file: it names the variables or the files that hold them (`secret_sources`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from contracts.tasks import BUDGET_TOKENS_MAX, DEADLINE_SECONDS_MAX
from mesh.configuration.access_tables import (
    ApprovalsConfiguration,
    AuthConfiguration,
    parse_approvals,
    parse_auth,
)
from mesh.configuration.breaker_table import BreakerSettings
from mesh.configuration.capacity_table import PlacesSettings, check_places
from mesh.configuration.critic_table import CriticConfiguration, parse_critic
from mesh.configuration.logs_table import LogsConfiguration, parse_logs
from mesh.configuration.pace_table import PaceSettings
from mesh.configuration.pool_routing import Prefer, Weight, check_routing
from mesh.configuration.provider_tables import (
    Name,
    ProviderConfiguration,
    ScriptedProviderConfiguration,
    Seconds,
    ServerConfiguration,
    parse_providers,
)
from mesh.configuration.results_table import ResultsConfiguration, parse_results
from mesh.configuration.storage_table import StorageConfiguration, parse_storage
from mesh.configuration.tenants_table import TenantsConfiguration, parse_tenants
from mesh.configuration.toml_tables import convert, named_tables
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
    weight: Weight = 1.0
    """As the pool's own `weight`."""


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
    prefer: Prefer = "order"
    """Which of the pool's models a turn goes to. `order`: the first that can be asked.

    `latency`: the one that is expected to be done first. `cost`: the cheapest that meets the task's deadline.
    `balanced`: twice as fast may cost twice as much. These three need fallbacks; the last two, prices of each model.
    """
    weight: Weight = 1.0
    """The share of turns that the pool's own model gets, beside others that `prefer` finds as good."""
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
    def models(self) -> list[PoolConfiguration | FallbackConfiguration]:
        """What names a model: the pool itself, then its fallbacks."""
        return [self, *self.fallbacks]

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
    providers = parse_providers(tables, source)
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
    prices = {name: each.prices for name, each in providers.items()}
    check_routing(pool.prefer, [(each.provider, each.model, each.weight) for each in pool.models], prices, where)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
