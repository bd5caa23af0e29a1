"""What the operator says in mesh.toml of who may call, `[auth]`, and of who may approve, `[approvals]`."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from contracts.access import Scope
from contracts.fields import LaneName
from mesh.configuration.addresses import is_host, is_loopback
from mesh.configuration.toml_tables import convert
from mesh.errors import SettingsError

PROXIES_MAX = 256
TOOLS_MAX = 1_000

REQUESTS_PER_SECOND_MAX = 1_000_000
FAILURES_PER_MINUTE_MAX = 1_000_000

Mode = Literal["open", "keys", "jwt"]
SourceHeader = Literal["x-forwarded-for", "forwarded"]


Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Those with a public key. What is signed with a shared secret could be signed by each service that checks it."""
ALGORITHMS: tuple[Algorithm, ...] = ("RS256", "PS256", "ES256", "EdDSA")
CLAIM_CHARACTERS_MAX = 256
SCOPE_NAMES_MAX = 100

ClaimName = Annotated[str, Meta(min_length=1, max_length=CLAIM_CHARACTERS_MAX)]


class JwtConfiguration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens of an issuer (RFC 7519), such as an OpenID provider's, in mode `jwt`."""

    issuer: Annotated[str, Meta(min_length=1, max_length=2048)]
    """What `iss` has to be."""
    audience: Annotated[str, Meta(min_length=1, max_length=2048)]
    """What has to be `aud`, or among it: the name that this mesh has at the issuer."""
    jwks: Annotated[str, Meta(min_length=1, max_length=2048)]
    """Where the issuer's public keys are (RFC 7517): an https URL, or a file, by the folder of this one. They are read
    again every few minutes, and when a token names a key that is not among them."""
    algorithms: Annotated[list[Algorithm], Meta(min_length=1, max_length=10)] | None = None
    """What tokens may be signed with. Unset: RS256, PS256, ES256 and EdDSA."""
    leeway_seconds: Annotated[float, Meta(ge=0, le=300)] = 30.0
    """How far the issuer's clock may be from the broker's."""
    tenant_claim: ClaimName = "tenant"
    """The claim that holds the tenant."""
    scopes_claim: ClaimName = "scope"
    """The claim that holds names of scopes: a list, or a text with spaces between them."""
    scopes: Annotated[dict[ClaimName, list[Scope]], Meta(max_length=SCOPE_NAMES_MAX)] = {}
    """What the names mean, where they are others: `"tasks.write" = ["submit", "read"]`. Others mean nothing. Unset: the
    names are those of the scopes."""

    @property
    def taken(self) -> Sequence[Algorithm]:
        """The algorithms that are taken."""
        return self.algorithms or ALGORITHMS

    @property
    def is_url(self) -> bool:
        """Whether the keys are fetched; else they are in a file."""
        return "://" in self.jwks


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

    jwt: JwtConfiguration | None = None
    """The tokens that are taken. Needed in mode `jwt`, and there alone."""

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
    if (auth.mode == "jwt") is not (auth.jwt is not None):
        told = "is needed" if auth.jwt is None else "is there, and the mode is another"
        raise SettingsError(f'{source}: auth.jwt: {told}: it goes with auth.mode = "jwt"')
    if auth.jwt is not None and auth.jwt.is_url and not _is_fetchable(auth.jwt.jwks):
        raise SettingsError(
            f"{source}: auth.jwt.jwks: must be https://<host>[:<port>]/<path>, without a user, or a file"
        )
    return auth


def _is_fetchable(text: str) -> bool:
    """Whether keys may be fetched there: nobody on the way must be able to put in one of theirs."""
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
    except ValueError:
        return False
    secure = url.scheme == "https" or (url.scheme == "http" and is_loopback(host))
    return secure and is_host(host) and port != 0 and url.username is None and text.isascii() and " " not in text


def parse_approvals(tables: Mapping[str, Any], source: str) -> ApprovalsConfiguration:
    """Read `[approvals]`. Raises `SettingsError`: one line, with the source and the key."""
    return convert(tables.get("approvals", {}), ApprovalsConfiguration, "approvals", source)
