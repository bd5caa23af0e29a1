"""The configuration file: what it gives, and how each wrong key is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.configuration.breaker_table import BreakerSettings
from mesh.configuration.checking import file_mistakes
from mesh.configuration.mesh_toml import (
    NO_FILE,
    PoolConfiguration,
    default_configuration,
    load_configuration,
    parse_configuration,
)
from mesh.configuration.provider_tables import (
    AnthropicProviderConfiguration,
    OpenAIProviderConfiguration,
    ScriptedProviderConfiguration,
)
from mesh.configuration.secret_sources import Secrets, read_secrets
from mesh.configuration.tool_tables import McpServerConfiguration, ToolConfiguration
from mesh.errors import SettingsError

ROOT = Path(__file__).resolve().parents[2]
LOCAL = '[providers.local]\nkind = "openai"\nbase_url = "http://127.0.0.1:8000/v1"\n'
CLAUDE = '[providers.claude]\nkind = "anthropic"\n'
POOL = '[pools.default]\nprovider = "local"\nmodel = "m"\n'
POOL_OF_TWO = f"{LOCAL}{POOL}"
SECRET = "sk-made-up-0123456789"


def parse(text: str) -> object:
    return parse_configuration(text.encode())


def error_of(text: str) -> str:
    with pytest.raises(SettingsError) as failed:
        parse(text)
    said = str(failed.value)
    assert "\n" not in said, "one line"
    assert said in file_mistakes(text.encode(), "mesh.toml"), "who looks for all mistakes finds it, too"
    return said


def test_pools_and_providers_are_read() -> None:
    configuration = parse_configuration(
        b"""
        [providers.local]
        kind = "openai"
        base_url = "https://models.example:8443/v1/"
        api_key_env = "LOCAL_KEY"
        connect_seconds = 1
        first_token_seconds = 2.5
        between_tokens_seconds = 3
        headers = { "X-Title" = "taskmesh" }
        max_tokens_field = "max_completion_tokens"
        continue_prefix = "vllm"
        away_seconds = 60
        stream_options = false
        tool_choice = "required"
        parallel_tool_calls = false
        roles = "strict"
        reasoning_field = "reasoning"

        [pools.default]

        [pools.gpu-0_a]
        provider = "local"
        model = "Qwen/Qwen3-8B"
        max_output_tokens = 100
        """
    )
    local = OpenAIProviderConfiguration(
        base_url="https://models.example:8443/v1/",
        api_key_env="LOCAL_KEY",
        connect_seconds=1,
        first_token_seconds=2.5,
        between_tokens_seconds=3,
        headers={"X-Title": "taskmesh"},
        max_tokens_field="max_completion_tokens",
        continue_prefix="vllm",
        away_seconds=60,
        stream_options=False,
        tool_choice="required",
        parallel_tool_calls=False,
        roles="strict",
        reasoning_field="reasoning",
    )
    assert configuration.providers == {"scripted": ScriptedProviderConfiguration(), "local": local}
    assert configuration.pools == {
        "default": PoolConfiguration(provider="scripted"),
        "gpu-0_a": PoolConfiguration(provider="local", model="Qwen/Qwen3-8B", max_output_tokens=100),
    }
    assert configuration.providers_of("gpu-0_a") == ("local",)


def test_a_pools_next_models_and_limits_are_read() -> None:
    configuration = parse_configuration(
        f"""{LOCAL}{CLAUDE}
        [pools.default]
        provider = "local"
        model = "m"
        fallbacks = [
            {{ provider = "local", model = "n" }},
            {{ provider = "claude", model = "c" }},
            {{ provider = "scripted" }},
        ]
        on_context = ["switch", "compact"]
        on_slow = "hedge"
        slow_seconds = 2.5
        deadline_seconds = 600
        budget_tokens = 100_000
        [pools.plain]
        [pools.compacting]
        on_context = "compact"
        """.encode()
    )
    pool = configuration.pools["default"]
    assert [(each.provider, each.model) for each in pool.fallbacks] == [
        ("local", "n"),
        ("claude", "c"),
        ("scripted", None),
    ]
    assert (pool.on_slow, pool.slow_seconds, pool.deadline_seconds, pool.budget_tokens) == ("hedge", 2.5, 600, 100_000)
    assert configuration.providers_of("default") == ("local", "claude", "scripted")
    assert configuration.providers_of("plain") == ("scripted",)
    on_context = {
        name: (pool.switches_on_context, pool.compacts_on_context) for name, pool in configuration.pools.items()
    }
    assert on_context == {"default": (True, True), "plain": (True, False), "compacting": (False, True)}


def test_the_key_of_a_fallbacks_provider_is_needed_too() -> None:
    fallback = '{ provider = "claude", model = "c" }'
    text = f'{LOCAL}{CLAUDE}api_key_env = "CLAUDE_KEY"\n{POOL}fallbacks = [{fallback}]'
    with pytest.raises(SettingsError, match="CLAUDE_KEY is not set"):
        read_secrets(parse_configuration(text.encode()), {})


def test_a_servers_breaker_is_on_and_the_scripted_models_off_unless_they_are_set() -> None:
    configuration = parse_configuration(
        b"""
        [providers.plain]
        kind = "anthropic"
        [providers.local]
        kind = "anthropic"
        breaker = { samples_min = 5, open_seconds = 0.5, slow_first_token_seconds = 2 }
        [pools.default]
        [pools.plain]
        provider = "plain"
        model = "any"
        wait_seconds = 5
        [pools.local]
        provider = "local"
        model = "any"
        """
    )
    assert configuration.breakers == {
        "scripted": BreakerSettings(enabled=False),
        "plain": BreakerSettings(),
        "local": BreakerSettings(samples_min=5, open_seconds=0.5, slow_first_token_seconds=2.0),
    }
    assert configuration.providers_of("local") == ("local",)
    assert [configuration.pools[pool].wait_seconds for pool in ("default", "plain")] == [60.0, 5.0]
    scripted = parse_configuration(b"[providers.scripted]\nkind = 'scripted'\n[providers.scripted.breaker]\n")
    assert scripted.breakers == {"scripted": BreakerSettings()}


def test_anthropics_provider_is_read_and_needs_nothing() -> None:
    configuration = parse_configuration(
        b"""
        [providers.plain]
        kind = "anthropic"

        [providers.deep]
        kind = "anthropic"
        base_url = "https://models.example"
        api_key_env = "DEEP_KEY"
        first_token_seconds = 2.5
        headers = { "anthropic-beta" = "some-1" }
        max_output_tokens = 9000
        thinking_budget_tokens = 8999
        """
    )
    assert configuration.providers["plain"] == AnthropicProviderConfiguration(base_url="https://api.anthropic.com")
    assert configuration.providers["deep"] == AnthropicProviderConfiguration(
        base_url="https://models.example",
        api_key_env="DEEP_KEY",
        first_token_seconds=2.5,
        headers={"anthropic-beta": "some-1"},
        max_output_tokens=9000,
        thinking_budget_tokens=8999,
    )


def test_tools_and_mcp_servers_are_read() -> None:
    tools = parse_configuration(
        b"""
        [tools.http_get]
        allowed_hosts = ["a.example", "*.b.example:8080", "[::1]:9000", "10.0.0.1"]
        allow_private = true

        [tools.files_read]
        approval = "always"
        idempotent = false
        timeout_seconds = 3

        [mcp.files]
        command = ["npx", "server"]
        env_from = ["TOKEN"]
        """
    ).tools
    assert tools.http_get.allow_private
    assert len(tools.http_get.allowed_hosts) == 4
    assert tools.of("files_read") == ToolConfiguration(approval="always", idempotent=False, timeout_seconds=3)
    assert tools.of("add") == ToolConfiguration()
    assert tools.mcp == {"files": McpServerConfiguration(command=["npx", "server"], env_from=["TOKEN"])}


def test_a_tenants_share_of_results_is_read() -> None:
    assert parse_configuration(b"").results.tenant_share == 0.25
    assert parse_configuration(b"[results]\ntenant_share = 1").results.tenant_share == 1


def test_what_names_no_pool_has_the_default_one() -> None:
    assert parse("") == default_configuration()
    assert load_configuration(Path(NO_FILE)).pools == default_configuration().pools


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("pools = 1", "pools", "must be tables"),
        ("[poools.default]", "poools", "no such key"),
        ("[pools.Default]", "pools.'Default'", "matching regex"),
        ('[pools."a.b"]', "pools.'a.b'", "matching regex"),
        ("[pools.default]\nmodell = 'x'", "pools.default", "`modell`"),
        ("[pools.default]\nmodel = 1", "pools.default.model", "got `int`"),
        ("[pools.default]\nmax_output_tokens = 0", "pools.default.max_output_tokens", ">= 1"),
        ("[pools.default]\nprovider = 'nobody'", "pools.default.provider", "there is no provider 'nobody'"),
        ("[pools.gpu]", "pools.default", "required"),
        ("results = 1", "results", "got `int`"),
        ("[results]\ntenant_share = 0", "results.tenant_share", "> 0"),
        ("[results]\ntenant_share = 1.5", "results.tenant_share", "<= 1"),
        ("[results]\ntenant_bytes = 1", "results", "`tenant_bytes`"),
        (f"{POOL_OF_TWO}fallbacks = [{{ model = 'b' }}]", "pools.default.fallbacks[0]", "`provider`"),
        (f"{POOL_OF_TWO}fallbacks = [{{ provider = 'local' }}]", "pools.default.fallbacks[0].model", "required"),
        (f"{POOL_OF_TWO}fallbacks = [{{ provider = 'no' }}]", "pools.default.fallbacks[0].provider", "no provider"),
        (
            f"{POOL_OF_TWO}fallbacks = [{{ provider = 'local', model = 'm' }}]",
            "pools.default.fallbacks[0]",
            "models already",
        ),
        (f"{POOL_OF_TWO}fallbacks = [{{ provider = 'local', modell = 'b' }}]", "pools.default.fallbacks[0]", "modell"),
        (f"{POOL_OF_TWO}on_context = 'switch'", "pools.default.on_context", "needs fallbacks"),
        (f"{POOL_OF_TWO}on_context = 'shrink'", "pools.default.on_context", "'shrink'"),
        (f"{POOL_OF_TWO}on_context = ['compact', 'switch']", "pools.default.on_context", "of lists"),
        (f"{POOL_OF_TWO}on_slow = 'hedge'", "pools.default.on_slow", "needs fallbacks"),
        (f"{POOL_OF_TWO}on_slow = 'hurry'", "pools.default.on_slow", "'hurry'"),
        (f"{POOL_OF_TWO}slow_seconds = 0", "pools.default.slow_seconds", "> 0"),
        (f"{POOL_OF_TWO}deadline_seconds = 0", "pools.default.deadline_seconds", "> 0"),
        (f"{POOL_OF_TWO}budget_tokens = 0", "pools.default.budget_tokens", ">= 1"),
        (f"{LOCAL}[pools.default]\nprovider = 'local'", "pools.default.model", "required"),
        ("[providers.local]\nbase_url = 'http://a'", "providers.local", "`kind`"),
        ("[providers.local]\nkind = 'openaai'", "providers.local.kind", "'openaai'"),
        ("[providers.local]\nkind = 'openai'", "providers.local", "`base_url`"),
        (f"{LOCAL}connect_seconds = 0", "providers.local.connect_seconds", "> 0"),
        (f"{LOCAL}first_token_seconds = 'soon'", "providers.local.first_token_seconds", "got `str`"),
        (f"{LOCAL}between_tokens_seconds = nan", "providers.local.between_tokens_seconds", "> 0"),
        (f"{LOCAL}base_urll = 'x'", "providers.local", "`base_urll`"),
        (f"{LOCAL}continue_prefix = 'always'", "providers.local.continue_prefix", "'always'"),
        (f'{LOCAL}headers = {{ Authorization = "x" }}', "providers.local.headers.'Authorization'", "api_key_env"),
        (f'{LOCAL}headers = {{ "X-A" = "b\\r\\nX-C: d" }}', "providers.local.headers.'X-A'", "no header"),
        (f'{LOCAL}headers = {{ "X A" = "b" }}', "providers.local.headers.'X A'", "no header"),
        (f"{LOCAL}breaker = {{ samples_min = 1 }}", "providers.local.breaker.samples_min", ">= 2"),
        (f"{LOCAL}breaker = {{ failure_rate = 1.5 }}", "providers.local.breaker.failure_rate", "<= 1"),
        (f"{LOCAL}breaker = {{ open_second = 1 }}", "providers.local.breaker", "`open_second`"),
        (f"{LOCAL}breaker = {{ open_seconds = 61 }}", "providers.local.breaker.open_seconds", "open_seconds_max"),
        (f"{LOCAL}capacity = {{ signals = 'nvml' }}", "providers.local.capacity.signals", "nvml"),
        (f"{LOCAL}capacity = {{ max = 0 }}", "providers.local.capacity.max", ">= 1"),
        (f"{LOCAL}capacity = {{ min = 3, max = 2 }}", "providers.local.capacity.min", "more than max"),
        (f"{LOCAL}capacity = {{ url = 'file:///etc/passwd' }}", "providers.local.capacity.url", "http(s)://"),
        (f"{LOCAL}capacity = {{ url = 'http://u:p@h/' }}", "providers.local.capacity.url", "without user"),
        ("[pools.default.places]\nweight = 0", "pools.default.places.weight", ">= 0.01"),
        ("[pools.default.places]\nmin = -1", "pools.default.places.min", ">= 0"),
        ("[pools.default.places]\nmin = 5\nmax = 4", "pools.default.places.min", "more than max"),
        (f"{CLAUDE}base_url = 'ftp://a'", "providers.claude.base_url", "must be http"),
        (f"{CLAUDE}continue_prefix = 'vllm'", "providers.claude", "`continue_prefix`"),
        (
            f"{CLAUDE}thinking_budget_tokens = 1024\ntool_choice = 'required'",
            "providers.claude.tool_choice",
            "beside thinking_budget_tokens",
        ),
        (f"{CLAUDE}prefill = 'vllm'", "providers.claude.prefill", "`bool"),
        (f"{LOCAL}roles = 'any'", "providers.local.roles", "'any'"),
        (f"{LOCAL}tool_choice = 'none'", "providers.local.tool_choice", "'none'"),
        (f"{LOCAL}stream_options = 'no'", "providers.local.stream_options", "`bool`"),
        (f"{LOCAL}away_seconds = 0", "providers.local.away_seconds", "> 0"),
        (f"{CLAUDE}thinking_budget_tokens = 1023", "providers.claude.thinking_budget_tokens", ">= 1024"),
        (f"{CLAUDE}thinking_budget_tokens = 4096", "providers.claude.thinking_budget_tokens", "less than"),
        (f'{CLAUDE}headers = {{ X-Api-Key = "x" }}', "providers.claude.headers.'X-Api-Key'", "api_key_env"),
        ("tools = 1", "tools", "must be tables"),
        ("[tools.'a.b']", "tools.'a.b'", "matching regex"),
        ("[tools.add]\napproval = 'sometimes'", "tools.add.approval", "'sometimes'"),
        ("[tools.add]\ntimeout_seconds = 0", "tools.add.timeout_seconds", "> 0"),
        ("[tools.add]\nallowed_hosts = ['a']", "tools.add", "`allowed_hosts`"),
        ("[tools.http_get]\nallowed_hosts = ['http://a/']", "tools.http_get.allowed_hosts", "no <host>"),
        ("[tools.http_get]\nallowed_hosts = ['*']", "tools.http_get.allowed_hosts", "no <host>"),
        ("[tools.send_signal]\nsubjects = ['a.>.b']", "tools.send_signal.subjects[0]", "matching regex"),
        ("[tools.http_get]\nallowed_hosts = ['a:99999']", "tools.http_get.allowed_hosts", "no <host>"),
        ("[mcp.Files]\nurl = 'http://a/mcp'", "mcp.'Files'", "matching regex"),
        ("[mcp.files]", "mcp.files", "either command or url"),
        ("[mcp.files]\ncommand = ['a']\nurl = 'http://a'", "mcp.files", "either command or url"),
        ("[mcp.files]\ncommand = []", "mcp.files.command", "length >= 1"),
        ("[mcp.files]\nurl = 'ftp://a'", "mcp.files.url", "must be http"),
        ("[mcp.files]\nurl = 'http://u:p@a/'", "mcp.files.url", "takes no user"),
        ("[mcp.files]\nurl = 'http://a'\nenv = { A = 'b' }", "mcp.files", "are for a command"),
        ("[mcp.files]\ncommand = ['a']\napi_key_env = 'A'", "mcp.files.api_key_env", "env_from"),
        ("[providers", "not valid TOML", ""),
        ("[pools.default]\n[pools.default]", "not valid TOML", ""),
    ],
)
def test_a_wrong_key_is_named_in_one_line(text: str, key: str, reason: str) -> None:
    said = error_of(text)
    assert said.startswith(f"mesh.toml: {key}: ")
    assert reason in said


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "ftp://a/v1",
        "http://",
        "http://a:99999/v1",
        "http://a/v1?key=x",
        "http://a/v1#x",
        "http://a b/v1",
        "http://ä/v1",
        "http://a..b/v1",
        "http://-a/v1",
        "http://a%41/v1",
        "http://1.2.3.999/v1",
        "http://[zz]/v1",
        "http://[::1/v1",
        f"http://user:{SECRET}@a/v1",
    ],
)
def test_an_address_that_can_be_none_is_refused_and_never_shown(url: str) -> None:
    said = error_of(f'[providers.local]\nkind = "openai"\nbase_url = "{url}"')
    assert said.startswith("mesh.toml: providers.local.base_url: ")
    assert SECRET not in said


@pytest.mark.parametrize(
    "url", ["http://localhost", "https://models.example:8443/a/b/", "http://[::1]:8000/v1", "http://vllm_0.svc/v1"]
)
def test_addresses(url: str) -> None:
    parse(f'[providers.local]\nkind = "openai"\nbase_url = "{url}"')


def test_a_key_in_the_place_of_its_variable_is_refused_and_never_shown() -> None:
    said = error_of(f'{LOCAL}api_key_env = "{SECRET}"')
    assert said.startswith("mesh.toml: providers.local.api_key_env: ")
    assert SECRET not in said


@pytest.mark.parametrize(
    ("value", "reason"), [(None, "is not set"), (" ", "is not set"), (f"{SECRET} x", "can't"), (f"{SECRET}ä", "can't")]
)
def test_a_key_that_is_missing_or_can_be_none_is_named_by_its_variable(value: str | None, reason: str) -> None:
    configuration = parse_configuration(f'{LOCAL}api_key_env = "LOCAL_KEY"\n{POOL}'.encode())
    with pytest.raises(SettingsError) as failed:
        read_secrets(configuration, {} if value is None else {"LOCAL_KEY": value})
    said = str(failed.value)
    assert said.startswith("mesh.toml: providers.local.api_key_env: the variable LOCAL_KEY ")
    assert reason in said
    assert SECRET not in said


def test_a_key_is_read_without_the_line_break_of_its_file() -> None:
    configuration = parse_configuration(f'{LOCAL}api_key_env = "LOCAL_KEY"\n{POOL}'.encode())
    secrets = read_secrets(configuration, {"LOCAL_KEY": f"{SECRET}\n"})
    assert secrets["providers.local.api_key"] == SECRET
    assert secrets.get("providers.scripted.api_key") is None


def test_a_provider_that_no_pool_uses_needs_no_key() -> None:
    assert read_secrets(parse_configuration(f'{LOCAL}api_key_env = "LOCAL_KEY"'.encode()), {}) == Secrets()


# Where the file is
