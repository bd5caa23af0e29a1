"""What the operator says in mesh.toml of who may call, `[auth]`, and of who may approve, `[approvals]`."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from contracts.access import Scope
from contracts.fields import LaneName
from mesh.configuration.toml_tables import convert
from mesh.errors import SettingsError

PROXIES_MAX = 256
TOOLS_MAX = 1_000

Mode = Literal["open", "keys", "jwt"]


class AuthConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How callers of the HTTP services are told apart."""

    mode: Mode | None = None
    """`open`: anybody, on loopback addresses alone. `keys`: who has an API key. `jwt`: who has a token of an issuer.
    Unset: `open` where a service listens on a loopback address, else `keys`."""
    trusted_proxies: Annotated[list[str], Meta(max_length=PROXIES_MAX)] = []
    """Addresses or networks of front doors, as `10.0.0.0/8`. From there alone `X-Forwarded-For` counts, and a caller
    whose credentials have the scope `operate` may name any tenant by `Mesh-Tenant`."""

    def networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The trusted proxies. They were checked when the file was read."""
        return [ipaddress.ip_network(each, strict=False) for each in self.trusted_proxies]


class ApprovalsConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may decide on calls that need a person."""

    four_eyes: bool = False
    """Whether another person than the task's submitter has to approve its calls. It takes callers who are known: the
    modes `keys` and `jwt` of `[auth]`."""
    tools: Annotated[list[LaneName], Meta(min_length=1, max_length=TOOLS_MAX)] | None = None
    """The tools whose calls that holds for. Unset: all."""
    scope: Scope = "answer"
    """The scope that it takes to approve a call. `[tools.<name>] approve_scope` outranks it."""

    def takes_four_eyes(self, tool: str) -> bool:
        """Whether another person than the submitter has to approve a tool's calls."""
        return self.four_eyes and (self.tools is None or tool in self.tools)


def parse_auth(tables: Mapping[str, Any], source: str) -> AuthConfiguration:
    """Read `[auth]`. Raises `SettingsError`: one line, with the source and the key."""
    auth = convert(tables.get("auth", {}), AuthConfiguration, "auth", source)
    for at, each in enumerate(auth.trusted_proxies):
        try:
            ipaddress.ip_network(each, strict=False)
        except ValueError:
            raise SettingsError(f"{source}: auth.trusted_proxies[{at}]: must be an address or a network") from None
    return auth


def parse_approvals(tables: Mapping[str, Any], source: str) -> ApprovalsConfiguration:
    """Read `[approvals]`. Raises `SettingsError`: one line, with the source and the key."""
    return convert(tables.get("approvals", {}), ApprovalsConfiguration, "approvals", source)
