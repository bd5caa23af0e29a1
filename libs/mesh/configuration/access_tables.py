"""What the operator says in mesh.toml of who may call, `[auth]`, and of who may approve, `[approvals]`."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from contracts.fields import LaneName
from mesh.configuration.toml_tables import convert
from mesh.errors import SettingsError

PROXIES_MAX = 256
TOOLS_MAX = 1_000

REQUESTS_PER_SECOND_MAX = 1_000_000
FAILURES_PER_MINUTE_MAX = 1_000_000

Mode = Literal["open", "keys", "jwt"]
SourceHeader = Literal["x-forwarded-for", "forwarded"]


class AuthConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How callers of the HTTP services are told apart."""

    mode: Mode | None = None
    """`open`: anybody, on loopback addresses alone. `keys`: who has an API key. `jwt`: who has a token of an issuer.
    Unset: `open` where a service listens on a loopback address, else `keys`."""
    trusted_proxies: Annotated[list[str], Meta(max_length=PROXIES_MAX)] = []
    """Addresses or networks of front doors, as `10.0.0.0/8`. From there alone `X-Forwarded-For` counts, and a caller
    whose credentials have the scope `operate` may name any tenant by `Mesh-Tenant`."""
    source_header: SourceHeader = "x-forwarded-for"
    """The header in which front doors say whom they serve: `x-forwarded-for`, or `forwarded` (RFC 7239). The other one
    means nothing, since front doors pass on what they do not write."""
    requests_per_second: Annotated[float, Meta(ge=0, le=REQUESTS_PER_SECOND_MAX)] | None = None
    """Requests of one caller, in each process of an HTTP service; more get 429. A caller is an identity, or a source
    where nobody is known by name. A stream counts once, when it is opened. 0: any number. Unset: 200, and any number
    in mode `open`."""
    burst: Annotated[int, Meta(ge=1, le=REQUESTS_PER_SECOND_MAX)] | None = None
    """So many of them may come at once. Unset: those of five seconds."""
    failures_per_minute: Annotated[float, Meta(ge=0, le=FAILURES_PER_MINUTE_MAX)] | None = None
    """So many credentials from one source may be wrong; then those that were not right before are refused with 429, but
    for so many in a minute. A source is an IPv4 address, or an IPv6 network of 64 bits. 0: any number. Unset: 60."""

    def networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The trusted proxies. They were checked when the file was read."""
        return [ipaddress.ip_network(each, strict=False) for each in self.trusted_proxies]


class ApprovalsConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may decide on calls that need a person."""

    four_eyes: bool = False
    """Whether another person than the task's submitter has to approve its calls."""
    tools: Annotated[list[LaneName], Meta(min_length=1, max_length=TOOLS_MAX)] | None = None
    """The tools for which that holds. Unset: all."""


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
