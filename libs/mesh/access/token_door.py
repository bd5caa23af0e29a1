"""Who a token of an issuer stands for (RFC 7519): by its signature, its times, and its claims.

The signature is checked by PyJWT, with a public key alone. What a token says is held against this mesh's issuer and
audience, and its times against the broker's clock. A token that was found good is known by its digest until it ends, so
that its signature is checked once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace
from datetime import MAXYEAR, UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import jwt

from contracts import subjects
from contracts.access import SCOPES, Scope
from contracts.errors import InvalidName
from mesh.access.bearer import refused
from mesh.access.callers import Identity
from mesh.access.jwks import KID_CHARACTERS_MAX, KeySet, KeysUnavailable
from mesh.clock import now
from mesh.configuration.access_tables import JwtConfiguration
from mesh.serving.http import RequestRefused

VERIFIED_MAX: Final = 10_000
"""Tokens that are known by their digest."""
SUBJECT_CHARACTERS_MAX: Final = 200
SCOPE_NAMES_MAX: Final = 1_000
CALENDAR_END: Final = datetime(MAXYEAR, 12, 31, tzinfo=UTC).timestamp()
_REQUIRED: Final = ("iss", "aud", "exp", "sub")
_NOT_KNOWN: Final = "these credentials are not known here"


class _Verified(NamedTuple):
    """A token that was found good, but for its times."""

    identity: Identity
    begins_at: float
    ends_at: float
    generation: int


class TokenDoor:
    """Tells who a token stands for."""

    def __init__(self, configuration: JwtConfiguration, folder: Path) -> None:
        """`folder`: by which a file with keys is named."""
        self._configuration = configuration
        self.keys = KeySet(configuration.jwks, folder)
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    async def identity(self, token: str) -> Identity:
        """Who this token stands for. Raises `RequestRefused`."""
        digest = hashlib.sha256(token.encode("ascii")).digest()
        verified = self._verified.get(digest)
        if verified is None or verified.generation != self.keys.generation:
            verified = await self._verify(token)
            self._verified[digest] = verified
            while len(self._verified) > VERIFIED_MAX:
                self._verified.popitem(last=False)
        at = now().timestamp()
        if at >= verified.ends_at + self._configuration.leeway_seconds:
            self._verified.pop(digest, None)
            raise refused("the token has expired")
        if at < verified.begins_at - self._configuration.leeway_seconds:
            raise refused("the token is not valid yet")
        return verified.identity

    async def _verify(self, token: str) -> _Verified:
        configuration = self._configuration
        kid, algorithm = self._head_of(token)
        if not self.keys.has(kid):
            self._peek(token)
        try:
            key = await self.keys.key(kid, algorithm)
        except KeysUnavailable:
            raise RequestRefused(
                "credentials-unavailable", "the issuer's keys can't be read", retry_after_seconds=5
            ) from None
        if key is None:
            raise refused(_NOT_KNOWN)
        generation = self.keys.generation
        try:
            claims = jwt.decode(
                token,
                key=key.key,
                algorithms=[algorithm],
                audience=configuration.audience,
                issuer=configuration.issuer,
                options={
                    "require": list(_REQUIRED),
                    # By the clock of the mesh, not of this machine.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.MissingRequiredClaimError as error:
            raise refused(f"the token has no claim {error.claim!r}") from None
        except jwt.InvalidAudienceError:
            raise refused("the token is for another audience") from None
        except jwt.InvalidIssuerError:
            raise refused("the token is of another issuer") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise refused(_NOT_KNOWN) from None
        ends_at = _time_of(claims, "exp")
        begins_at = max((_time_of(claims, name) for name in ("nbf", "iat") if name in claims), default=0.0)
        # What is beyond any calendar ends with the calendar.
        until = datetime.fromtimestamp(min(ends_at + configuration.leeway_seconds, CALENDAR_END), UTC)
        return _Verified(replace(identity_of(claims, configuration), until=until), begins_at, ends_at, generation)

    def _head_of(self, token: str) -> tuple[str | None, str]:
        """The name of its key, and its algorithm: one of those that are taken."""
        try:
            head = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise refused(_NOT_KNOWN) from None
        algorithm, kid = head.get("alg"), head.get("kid")
        if algorithm not in self._configuration.taken:
            raise refused("the token is not signed by an algorithm that is taken here")
        if "crit" in head or (kid is not None and (not isinstance(kid, str) or len(kid) > KID_CHARACTERS_MAX)):
            raise refused(_NOT_KNOWN)
        return kid, str(algorithm)

    def _peek(self, token: str) -> None:
        """Refuse what is of another issuer before its keys are asked for: only a good guess costs a read."""
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise refused(_NOT_KNOWN) from None
        if "iss" not in claims:
            raise refused("the token has no claim 'iss'")
        if claims["iss"] != self._configuration.issuer:
            raise refused("the token is of another issuer")


def identity_of(claims: dict[str, Any], configuration: JwtConfiguration) -> Identity:
    """Who these claims are of. Raises `RequestRefused`."""
    subject = claims["sub"]
    if not isinstance(subject, str) or not 1 <= len(subject) <= SUBJECT_CHARACTERS_MAX or not subject.isprintable():
        raise refused(f"the token's sub must have 1 to {SUBJECT_CHARACTERS_MAX} printable characters")
    tenant = claims.get(configuration.tenant_claim)
    try:
        tenant = subjects.check_tenant(tenant) if isinstance(tenant, str) else None
    except InvalidName:
        tenant = None
    if tenant is None:
        raise RequestRefused("forbidden", f"the token's {configuration.tenant_claim!r} names no tenant")
    return Identity(f"jwt:{subject}", tenant, scopes_of(claims.get(configuration.scopes_claim), configuration))


def scopes_of(claim: Any, configuration: JwtConfiguration) -> frozenset[Scope]:
    """The scopes that a claim names. What it names otherwise means nothing here."""
    names = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    known: dict[str, list[Scope]] = configuration.scopes or {scope: [scope] for scope in SCOPES}
    named = [name for name in names[:SCOPE_NAMES_MAX] if isinstance(name, str)]
    return frozenset(scope for name in named for scope in known.get(name, []))


def _time_of(claims: dict[str, Any], name: str) -> float:
    told = claims[name]
    if isinstance(told, bool) or not isinstance(told, int | float) or not abs(told) < 2**53:
        raise refused(f"the token's {name!r} is no time")
    return float(told)
