"""Model providers in mesh.toml: `[providers.<name>]`, by what speaks to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from contracts.codec import exactly
from contracts.retries import AWAY_SECONDS
from contracts.subjects import LANE_NAME_PATTERN
from mesh.configuration.addresses import is_host
from mesh.configuration.breaker_table import BreakerSettings
from mesh.configuration.capacity_table import CapacitySettings, check_capacity
from mesh.configuration.pace_table import PaceSettings
from mesh.configuration.prices_table import Prices
from mesh.configuration.secret_files import SecretPath, check_one
from mesh.configuration.toml_tables import HEADER_NAME, HEADER_VALUE, convert, named_tables
from mesh.errors import SettingsError

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
    prices: Prices = {}
    """What its tokens cost, by the model's name."""


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
    prices: Prices = {}
    """What its tokens cost, by the model's name; `"*"` is any other. What has no price costs an unknown amount."""
    capacity: CapacitySettings | None = None
    """How many turns the server gets at once. Unset: as many as the workers have places; near by, as it tells.

    Near by is this machine, a private address, or a name without a dot.
    """

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


def parse_providers(tables: Mapping[str, Any], source: str) -> dict[str, ProviderConfiguration]:
    """Read `[providers.…]`; `scripted` is always there. Raises `SettingsError`: one line, with source and key."""
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
    return providers


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
