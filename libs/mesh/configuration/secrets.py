"""Which variables hold secrets, by the configuration, and which service needs which: no other is given them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.configuration.mesh_toml import Configuration, ServerConfiguration
from mesh.configuration.settings import BROKER_ROLES, role_variables

_EVERYBODYS = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH"}
    | {
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    }
)
_EVERYBODYS_PREFIXES = ("MESH_", "OTEL_", "PYTHON", "LC_")
"""What each service needs, or may need, though an MCP server is given it too."""


def secrets_of(configuration: Configuration, service: str) -> frozenset[str]:
    """The variables with secrets that a service needs: empty for one that needs none."""
    match service:
        case "inference_worker":
            used = {name for pool in configuration.pools for name in configuration.providers_of(pool)}
            servers = [configuration.providers[name] for name in used]
            found = {each.api_key_env for each in servers if isinstance(each, ServerConfiguration) and each.api_key_env}
        case "tool_runner":
            found = set()
            for server in configuration.tools.mcp.values():
                found |= {*server.env_from, *server.headers_env.values(), *filter(None, [server.api_key_env])}
        case "steward":
            found = {webhook.secret_env for webhook in configuration.webhooks.values()}
        case _:
            found = set()
    return frozenset(found)


def environment_for(service: str, environment: Mapping[str, str], configuration: Configuration) -> dict[str, str]:
    """The variables that a service is given: all but the secrets of others."""
    known: set[str] = {
        each.api_key_env
        for each in configuration.providers.values()
        if isinstance(each, ServerConfiguration) and each.api_key_env
    }
    for other in ("tool_runner", "steward"):
        known |= secrets_of(configuration, other)
    withheld = known - secrets_of(configuration, service)
    of_others = {name for role in BROKER_ROLES if role != service for name in role_variables(role)}
    return {
        name: value
        for name, value in environment.items()
        if name not in of_others and (name not in withheld or _is_everybodys(name))
    }


def _is_everybodys(name: str) -> bool:
    return name in _EVERYBODYS or name.startswith(_EVERYBODYS_PREFIXES)
