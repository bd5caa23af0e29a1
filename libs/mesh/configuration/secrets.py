"""Which variables a service is given: all but the secrets of others. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.configuration.mesh_toml import Configuration
from mesh.configuration.secret_sources import PLAIN, named_variables, secrets_of
from mesh.configuration.settings import BROKER_ROLES, role_variables

_EVERYBODYS = PLAIN | {"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"}
_EVERYBODYS_PREFIXES = ("MESH_", "OTEL_", "PYTHON", "LC_")
"""What each service needs, or may need, though an MCP server is given it too."""


def environment_for(service: str, environment: Mapping[str, str], configuration: Configuration) -> dict[str, str]:
    """The variables that a service is given: all but the secrets of others.

    A file is as readable to one process of a user as to another: nothing here keeps one service from another's.
    """
    withheld = named_variables(configuration) - secrets_of(configuration, service)
    of_others = {name for role in BROKER_ROLES if role != service for name in role_variables(role)}
    return {
        name: value
        for name, value in environment.items()
        if name not in of_others and (name not in withheld or _is_everybodys(name))
    }


def _is_everybodys(name: str) -> bool:
    return name in _EVERYBODYS or name.startswith(_EVERYBODYS_PREFIXES)
