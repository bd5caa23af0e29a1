"""The credentials of a request, off its head: one `Authorization: Bearer`, and nothing else. Pure."""

from __future__ import annotations

import re
from typing import Final

from litestar.types import HTTPScope

from mesh.serving.http import RequestRefused

TOKEN_CHARACTERS_MAX: Final = 8_192
"""A token of an issuer has some hundreds to some thousand; what is longer is looked at by nobody."""

# RFC 6750, 2.1; the name of the scheme in any case (RFC 9110, 11.1).
_BEARER: Final = re.compile(rb"(?i:bearer) +([A-Za-z0-9._~+/-]+=*)")


def refused(detail: str) -> RequestRefused:
    """Nobody is known by these credentials. `detail` holds nothing of them."""
    return RequestRefused("unauthorized", detail)


def bearer_of(scope: HTTPScope) -> str:
    """What a request shows. Raises `RequestRefused`; a query is no place for credentials, and is not looked at."""
    found: bytes | None = None
    for name, value in scope["headers"]:
        if name == b"authorization":
            if found is not None:
                # Whoever checked the request on its way may have looked at the other one.
                raise refused("Authorization may be there once")
            found = value
    if found is None:
        raise refused("Authorization is missing: Bearer, and an API key or a token")
    if len(found) > TOKEN_CHARACTERS_MAX:
        raise refused(f"Authorization is longer than {TOKEN_CHARACTERS_MAX} characters")
    # Blanks around a value are not a part of it (RFC 9110, 5.5), and the parser leaves those behind it.
    match = _BEARER.fullmatch(found.strip(b" \t"))
    if match is None:
        raise refused("Authorization must be Bearer, a space, and an API key or a token without spaces")
    return match[1].decode("ascii")
