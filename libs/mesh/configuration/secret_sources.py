"""Secrets that the configuration names: where each one is, which service needs it, and what it holds.

A service reads its own at its start, and again at each reload, and no other's (ADR-29).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from contracts.errors import InvalidPayload
from contracts.messages.notifications import secret_key
from mesh.configuration.mesh_toml import Configuration
from mesh.configuration.provider_tables import ServerConfiguration
from mesh.configuration.secret_files import is_open_to_all, read_secret, secret_path
from mesh.configuration.toml_tables import HEADER_VALUE
from mesh.configuration.tool_tables import McpServerConfiguration
from mesh.configuration.webhook_tables import SECRETS_MAX
from mesh.errors import SettingsError

PLAIN = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "NO_PROXY", "no_proxy"}
)
"""No secrets, though a program may be given them as if they were."""


class Secrets:
    """What the secrets of a service are, each by the key of its table: `providers.openai.api_key`.

    Neither `repr` nor an error shows a value.
    """

    __slots__ = ("_values",)
    __hash__ = None  # type: ignore[assignment]  # like a dictionary's

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values: Final = dict(values or {})

    def __getitem__(self, key: str) -> str:
        return self._values[key]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secrets) and self._values == other._values

    def __repr__(self) -> str:
        return f"Secrets({', '.join(sorted(self._values))})"

    def get(self, key: str) -> str | None:
        """One of them; None if there is none of that name."""
        return self._values.get(key)

    def texts(self) -> list[str]:
        """What must be in no text that leaves the process; a program's HOME is none of it."""
        return [value for key, value in self._values.items() if key.rpartition(".env.")[2] not in PLAIN]


class SecretSource(NamedTuple):
    """Where one secret is: in a variable, or in a file. `check` says what is wrong with a value, if anything is."""

    key: str
    service: str
    """The one that needs it."""
    variable: str | None
    file: str | None
    named_by: str
    """The key of the configuration file that says where it is."""
    check: Callable[[str], str | None]


def sources(configuration: Configuration) -> Iterator[SecretSource]:
    """Where the secrets are: of the providers that a pool uses, of webhooks, and of MCP servers."""
    for name in sorted({name for pool in configuration.pools for name in configuration.providers_of(pool)}):
        provider = configuration.providers[name]
        if isinstance(provider, ServerConfiguration):
            yield from _sources_of_provider(name, provider)
    for name, webhook in configuration.webhooks.items():
        key = f"webhooks.{name}.secret"
        yield _source(key, "steward", webhook.secret_env, webhook.secret_file, _no_signing_keys)
    for name, server in configuration.tools.mcp.items():
        yield from _sources_of_server(f"mcp.{name}", server)


def _sources_of_provider(name: str, provider: ServerConfiguration) -> Iterator[SecretSource]:
    if provider.api_key_env is not None or provider.api_key_file is not None:
        key = f"providers.{name}.api_key"
        yield _source(key, "inference_worker", provider.api_key_env, provider.api_key_file, _no_key)


def _sources_of_server(table: str, server: McpServerConfiguration) -> Iterator[SecretSource]:
    for variable in server.env_from:
        yield SecretSource(f"{table}.env.{variable}", "tool_runner", variable, None, f"{table}.env_from", _no_variable)
    for variable, file in server.env_file.items():
        named_by = f"{table}.env_file.{variable}"
        yield SecretSource(f"{table}.env.{variable}", "tool_runner", None, file, named_by, _no_variable)
    for header, variable in server.headers_env.items():
        named_by = f"{table}.headers_env.{header}"
        yield SecretSource(f"{table}.headers.{header}", "tool_runner", variable, None, named_by, _no_header)
    for header, file in server.headers_file.items():
        named_by = f"{table}.headers_file.{header}"
        yield SecretSource(f"{table}.headers.{header}", "tool_runner", None, file, named_by, _no_header)
    if server.api_key_env is not None or server.api_key_file is not None:
        yield _source(f"{table}.api_key", "tool_runner", server.api_key_env, server.api_key_file, _no_header)


def _source(
    key: str, service: str, variable: str | None, file: str | None, check: Callable[[str], str | None]
) -> SecretSource:
    return SecretSource(key, service, variable, file, f"{key}_env" if variable is not None else f"{key}_file", check)


def read_source(source: SecretSource, configuration: Configuration, environment: Mapping[str, str]) -> str:
    """What one secret is. Raises `SettingsError`: one line with its key, which never shows it."""
    key = f"{configuration.source}: {source.named_by}"
    if source.variable is not None:
        where = f"the variable {source.variable}"
        value = environment.get(source.variable, "").strip()
        if not value:
            raise SettingsError(f"{key}: {where} is not set")
    else:
        path = secret_path(source.file or "", configuration.source, environment, key)
        where = f"the file {path}"
        value = read_secret(path, key)
    wrong = source.check(value)
    if wrong is not None:
        raise SettingsError(f"{key}: {where} {wrong}")
    return value


def read_secrets(configuration: Configuration, environment: Mapping[str, str], service: str | None = None) -> Secrets:
    """The secrets of a service (None: all that there are). Raises `SettingsError` for the first that is missing."""
    found, mistakes = gather(configuration, environment, service)
    for mistake in mistakes:
        raise SettingsError(mistake)
    return found


def secret_mistakes(configuration: Configuration, environment: Mapping[str, str]) -> list[str]:
    """What is wrong with any of the secrets, one line each."""
    return gather(configuration, environment)[1]


def gather(
    configuration: Configuration, environment: Mapping[str, str], service: str | None = None
) -> tuple[Secrets, list[str]]:
    """The secrets of a service (None: all that there are), and what is wrong with the others, one line each."""
    values: dict[str, str] = {}
    mistakes: list[str] = []
    for source in sources(configuration):
        if service in (None, source.service):
            try:
                values[source.key] = read_source(source, configuration, environment)
            except SettingsError as error:
                mistakes.append(str(error))
    return Secrets(values), mistakes


def open_to_all(configuration: Configuration, environment: Mapping[str, str], service: str) -> list[Path]:
    """The files with secrets of a service that every user of this machine may read."""
    paths = []
    for source in sources(configuration):
        if source.file is not None and source.service == service:
            try:
                paths.append(secret_path(source.file, configuration.source, environment, source.key))
            except SettingsError:
                continue  # It is a mistake, and told as such.
    return [path for path in dict.fromkeys(paths) if is_open_to_all(path)]


def signing_keys(configuration: Configuration, secrets: Secrets) -> dict[str, tuple[bytes, ...]]:
    """The keys that each webhook is signed with."""
    return {
        name: tuple(secret_key(secret) for secret in secrets[f"webhooks.{name}.secret"].split())
        for name in configuration.webhooks
    }


class ServerSecrets(NamedTuple):
    """What one MCP server is given: headers with secrets for one at a URL, variables for a program."""

    headers: dict[str, str]
    variables: dict[str, str]

    def texts(self) -> list[str]:
        """What must be in no text that leaves the process."""
        return [*self.headers.values(), *(text for name, text in self.variables.items() if name not in PLAIN)]


def server_secrets(name: str, server: McpServerConfiguration, secrets: Secrets) -> ServerSecrets:
    """The secrets of one MCP server."""
    table = f"mcp.{name}"
    headers = {header: secrets[f"{table}.headers.{header}"] for header in (*server.headers_env, *server.headers_file)}
    api_key = secrets.get(f"{table}.api_key")
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    variables = {each: secrets[f"{table}.env.{each}"] for each in (*server.env_from, *server.env_file)}
    return ServerSecrets(headers, variables)


def secrets_of(configuration: Configuration, service: str) -> frozenset[str]:
    """The variables with secrets that a service needs: empty for one that needs none."""
    return frozenset(
        source.variable
        for source in sources(configuration)
        if source.service == service and source.variable is not None
    )


def named_variables(configuration: Configuration) -> frozenset[str]:
    """The variables that a configuration names for secrets, those of providers that no pool uses among them."""
    names = {source.variable for source in sources(configuration)}
    names |= {each.api_key_env for each in configuration.providers.values() if isinstance(each, ServerConfiguration)}
    return frozenset(name for name in names if name is not None)


def _no_key(value: str) -> str | None:
    return None if value.isascii() and value.isprintable() and " " not in value else "holds what can't be a key"


def _no_header(value: str) -> str | None:
    return None if HEADER_VALUE.fullmatch(value) else "holds what can't be in a header"


def _no_variable(value: str) -> str | None:
    return "holds a NUL character" if "\0" in value else None


def _no_signing_keys(value: str) -> str | None:
    secrets = value.split()
    try:
        for secret in secrets:
            secret_key(secret)
    except InvalidPayload as error:
        return f"holds what can't be a secret: {error}"
    return f"holds more than {SECRETS_MAX} secrets" if len(secrets) > SECRETS_MAX else None
