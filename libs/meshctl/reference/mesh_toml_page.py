"""docs/reference/mesh-toml.md: every table of mesh.toml and its keys, rendered from the types that read them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, get_args

import msgspec

from mesh.configuration.access_tables import ApprovalsConfiguration, AuthConfiguration, JwtConfiguration
from mesh.configuration.breaker_table import BreakerSettings
from mesh.configuration.capacity_table import CapacitySettings, PlacesSettings
from mesh.configuration.critic_table import CriticConfiguration
from mesh.configuration.descriptions import field_descriptions
from mesh.configuration.logs_table import LogsConfiguration
from mesh.configuration.mesh_toml import FallbackConfiguration, PoolConfiguration
from mesh.configuration.pace_table import PaceSettings
from mesh.configuration.prices_table import MODELS_MAX, ModelPrices
from mesh.configuration.provider_tables import (
    AnthropicProviderConfiguration,
    OpenAIProviderConfiguration,
    ProviderConfiguration,
    ScriptedProviderConfiguration,
    ServerConfiguration,
)
from mesh.configuration.results_table import ResultsConfiguration
from mesh.configuration.storage_table import BucketsConfiguration, StorageConfiguration
from mesh.configuration.tenants_table import TENANTS_MAX, TenantConfiguration
from mesh.configuration.tool_tables import (
    SERVERS_MAX,
    HttpGetConfiguration,
    McpServerConfiguration,
    SendSignalConfiguration,
    ToolConfiguration,
)
from mesh.configuration.webhook_tables import WEBHOOKS_MAX, WebhookConfiguration
from meshctl.reference.markdown import GENERATED, alternatives, anchor, block, code, link, page, paragraphs, table
from meshctl.reference.values import LONG, REQUIRED, WORDS, default_text, value_text

KIND: Final = "kind"
"""The key that says what a provider is; the types have it as their tag."""


class Table(NamedTuple):
    """A table of the file, and the type that reads it. It has the keys of another one, `extends`, beside its own.

    `example` is a whole file, and `names` is the path of the table in it.
    """

    title: str
    kind: type[msgspec.Struct]
    example: str
    names: tuple[str, ...]
    extends: type[msgspec.Struct] | None = None
    tables_max: int | None = None
    """The most such tables in a file."""


TABLES: Final = (
    Table(
        "[providers.<name>]",
        ServerConfiguration,
        """
[providers.mine]
kind = "openai"
base_url = "http://127.0.0.1:8000/v1"
first_token_seconds = 600
headers = { "X-Title" = "taskmesh" }
""",
        ("providers", "mine"),
    ),
    Table(
        '[providers.<name>] kind = "openai"',
        OpenAIProviderConfiguration,
        """
[providers.vllm]
kind = "openai"
base_url = "http://127.0.0.1:8000/v1"
continue_prefix = "vllm"
""",
        ("providers", "vllm"),
        ServerConfiguration,
    ),
    Table(
        '[providers.<name>] kind = "anthropic"',
        AnthropicProviderConfiguration,
        """
[providers.anthropic]
kind = "anthropic"
api_key_env = "ANTHROPIC_API_KEY"
thinking_budget_tokens = 2048
""",
        ("providers", "anthropic"),
        ServerConfiguration,
    ),
    Table(
        '[providers.<name>] kind = "scripted"',
        ScriptedProviderConfiguration,
        """
[providers.scripted]
kind = "scripted"
breaker = { samples_min = 5 }
""",
        ("providers", "scripted"),
    ),
    Table(
        "[providers.<name>.breaker]",
        BreakerSettings,
        """
[providers.mine]
kind = "openai"
base_url = "http://127.0.0.1:8000/v1"

[providers.mine.breaker]
slow_first_token_seconds = 20
open_seconds_max = 30
""",
        ("providers", "mine", "breaker"),
    ),
    Table(
        "[providers.<name>.pace]",
        PaceSettings,
        """
[providers.mine]
kind = "openai"
base_url = "http://127.0.0.1:8000/v1"

[providers.mine.pace]
requests_per_minute = 600
tokens_per_minute = 60_000
concurrency = 32
""",
        ("providers", "mine", "pace"),
    ),
    Table(
        '[providers.<name>.prices."<model>"]',
        ModelPrices,
        """
[providers.mine]
kind = "openai"
base_url = "http://127.0.0.1:8000/v1"

[providers.mine.prices."qwen3-8b"]
input = 0.25
cached_input = 0.025
output = 2.0
""",
        ("providers", "mine", "prices", "qwen3-8b"),
        tables_max=MODELS_MAX,
    ),
    Table(
        "[providers.<name>.capacity]",
        CapacitySettings,
        """
[providers.mine]
kind = "openai"
base_url = "http://127.0.0.1:8000/v1"

[providers.mine.capacity]
signals = "vllm"
max = 256
""",
        ("providers", "mine", "capacity"),
    ),
    Table(
        "[tenants.<name>]",
        TenantConfiguration,
        """
[tenants.acme]
weight = 3
tier = "normal"
backlog = 500
tokens_per_day = 2_000_000
on_exhausted = "wait"
""",
        ("tenants", "acme"),
        tables_max=TENANTS_MAX,
    ),
    Table(
        "[pools.<name>]",
        PoolConfiguration,
        """
providers.mine = { kind = "openai", base_url = "http://127.0.0.1:8000/v1" }

[pools.default]
provider = "mine"
model = "Qwen/Qwen3-8B"
max_output_tokens = 2000
deadline_seconds = 3600
""",
        ("pools", "default"),
    ),
    Table(
        "[pools.<name>.places]",
        PlacesSettings,
        """
[pools.default]

[pools.urgent.places]
weight = 4
min = 8
""",
        ("pools", "urgent", "places"),
    ),
    Table(
        "[[pools.<name>.fallbacks]]",
        FallbackConfiguration,
        """
providers.large = { kind = "anthropic", api_key_env = "ANTHROPIC_API_KEY" }
providers.small = { kind = "openai", base_url = "http://127.0.0.1:11434/v1" }

[pools.default]
provider = "large"
model = "claude-sonnet-4-5"
on_slow = "switch"

[[pools.default.fallbacks]]
provider = "small"
model = "qwen3"
""",
        ("pools", "default", "fallbacks"),
    ),
    Table(
        "[tools.<name>]",
        ToolConfiguration,
        """
[tools.files_delete_file]
approval = "always"
idempotent = false
timeout_seconds = 30
""",
        ("tools", "files_delete_file"),
    ),
    Table(
        "[tools.http_get]",
        HttpGetConfiguration,
        """
[tools.http_get]
allowed_hosts = ["api.example.com", "*.example.org", "intranet.example.com:8080"]
""",
        ("tools", "http_get"),
        ToolConfiguration,
    ),
    Table(
        "[tools.send_signal]",
        SendSignalConfiguration,
        """
[tools.send_signal]
subjects = ["inventory.*", "orders.>"]
""",
        ("tools", "send_signal"),
        ToolConfiguration,
    ),
    Table(
        "[mcp.<server>]",
        McpServerConfiguration,
        """
[mcp.files]
command = ["npx", "-y", "@modelcontextprotocol/server-filesystem", "/srv/files"]
env_from = ["FILES_TOKEN"]
""",
        ("mcp", "files"),
        tables_max=SERVERS_MAX,
    ),
    Table(
        "[webhooks.<name>]",
        WebhookConfiguration,
        """
[webhooks.ops]
url = "https://hooks.example.com/taskmesh"
secret_env = "OPS_WEBHOOK_SECRET"
on = ["approval", "question", "task.failed"]
""",
        ("webhooks", "ops"),
        tables_max=WEBHOOKS_MAX,
    ),
    Table(
        "[critic]",
        CriticConfiguration,
        """
[critic]
codes = ["deliveries-exhausted", "tool-error"]
per_hour_max = 10
""",
        ("critic",),
    ),
    Table(
        "[results]",
        ResultsConfiguration,
        """
[results]
tenant_share = 0.1
""",
        ("results",),
    ),
    Table(
        "[storage]",
        StorageConfiguration,
        """
[storage]
total = "200GiB"
results = "40GiB"
""",
        ("storage",),
    ),
    Table(
        "[storage.buckets]",
        BucketsConfiguration,
        """
[storage.buckets]
tasks = "4GiB"
""",
        ("storage", "buckets"),
    ),
    Table(
        "[logs]",
        LogsConfiguration,
        """
[logs]
level = "debug"
""",
        ("logs",),
    ),
    Table(
        "[auth]",
        AuthConfiguration,
        """
[auth]
mode = "keys"
trusted_proxies = ["10.0.0.0/8"]
""",
        ("auth",),
    ),
    Table(
        "[auth.jwt]",
        JwtConfiguration,
        """
[auth]
mode = "jwt"

[auth.jwt]
issuer = "https://login.example.com/"
audience = "taskmesh"
jwks = "https://login.example.com/.well-known/jwks.json"
tenant_claim = "org"
scopes = { "tasks.write" = ["submit", "read", "answer"], "tasks.read" = ["read"] }
""",
        ("auth", "jwt"),
    ),
    Table(
        "[approvals]",
        ApprovalsConfiguration,
        """
[approvals]
four_eyes = true
tools = ["charge"]
scope = "operate"
""",
        ("approvals",),
    ),
)
"""All tables, in the order of the page."""

_TITLES: Final = ("key", "value", "default", "meaning")
_EXAMPLE: Final = """\
meshctl example > mesh.toml     # every key, commented out
"""
_INTRODUCTION: Final = """\
`meshctl up` and the services read `mesh.toml` in their working folder, or the file that [`MESH_CONFIG`](settings.md)
names: at their start, and when they are [told to](../configuration.md#reload). A wrong key stops the start with one
line that names it. Without a file there is the pool `default` with the scripted model.

No key and no secret is ever in the file. It names the variables that hold them, or [files](../operating.md#secrets)
with one secret each. A path is absolute, or relative to the folder of `mesh.toml`, or begins with
`$CREDENTIALS_DIRECTORY/`, where systemd puts a unit's credentials.

In the titles `<name>` and `<server>` are yours to choose. [Words](#words) below says what they may be."""


def render() -> str:
    """The page."""
    blocks = [GENERATED, "# mesh.toml", block("sh", _EXAMPLE), paragraphs(_INTRODUCTION)]
    blocks.append("\n".join(f"- {link(each.title)}" for each in TABLES))
    for each in TABLES:
        blocks += _section(each)
    words = ((word.one, code(word.pattern)) for word in WORDS)
    return page(
        *blocks, "## Words", "A value matches the pattern of its word as a whole.", table(("word", "pattern"), words)
    )


def _section(each: Table) -> Iterator[str]:
    yield f"## {code(each.title)}"
    yield paragraphs(inspect.cleandoc(each.kind.__doc__ or ""))
    if each.tables_max is not None:
        yield f"A file has at most {each.tables_max:,} of these."
    if each.extends is not None:
        yield f"It has the keys of {link(_table_of(each.extends).title)}, and these."
    yield table(_TITLES, _rows(each))
    for field in _shown_fields(each):
        if default_text(field) == LONG:
            yield f"The default of {code(field.encode_name)}:"
            yield block("text", paragraphs(str(field.default)))
    yield block("toml", each.example)


def _rows(each: Table) -> Iterator[tuple[str, ...]]:
    descriptions = field_descriptions(each.kind)
    if each.extends is None:
        tags = [kind.__struct_config__.tag for kind in get_args(ProviderConfiguration) if issubclass(kind, each.kind)]
        if tags:
            value = alternatives(code(f'"{tag}"') for tag in tags)
            yield code(KIND), value, REQUIRED, "What the provider is. Its other keys depend on it."
    for field in _shown_fields(each):
        name = field.encode_name
        yield code(name), _linked(value_text(field.type, name), field.type), default_text(field), descriptions[name]


def _shown_fields(each: Table) -> list[msgspec.inspect.Field]:
    info: Any = msgspec.inspect.type_info(each.kind)
    own = _own_fields(each.kind)
    return [field for field in info.fields if field.encode_name in own]


def _own_fields(kind: type[msgspec.Struct]) -> list[str]:
    """The fields that a type declares itself, be it with another default than the type that it extends."""
    own = inspect.get_annotations(kind)
    return [name for name in kind.__struct_fields__ if name in own]


def _linked(text: str, kind: msgspec.inspect.Type) -> str:
    """The text of a value; where it is a table of its own, with a link to that."""
    inner = kind.item_type if isinstance(kind, msgspec.inspect.ListType) else kind
    if not isinstance(inner, msgspec.inspect.StructType):
        return text
    return f"[{text}](#{anchor(_table_of(inner.cls).title)})"


def _table_of(kind: type) -> Table:
    return next(each for each in TABLES if each.kind is kind)
