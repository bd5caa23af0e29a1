"""Front doors: who is trusted to ask for others, for any tenant and any person."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from litestar.types import HTTPScope

from contracts import headers
from contracts.errors import InvalidName
from contracts.fields import BY_CHARACTERS_MAX
from mesh.access.callers import Identity
from mesh.access.sources import Network, is_from

CALLER_CHARACTERS_MAX: Final = 128

_CALLER: Final = re.compile(rb"[\x21-\x7e]{1,%d}" % CALLER_CHARACTERS_MAX)
_HEADER: Final = headers.HTTP_CALLER.lower().encode()


def asked_for(identity: Identity, scope: HTTPScope, trusted: Sequence[Network]) -> Identity:
    """Who asks, where a front door asks for somebody: it comes from a trusted address, and may operate.

    It may name any tenant, and by `Mesh-Caller` a person, who is then known as `<front door>/<person>`. From anywhere
    else `Mesh-Caller` means nothing. Raises `InvalidName` for a person whose name can't be one.
    """
    if not trusted or "operate" not in identity.scopes or not is_from(scope, trusted):
        return identity
    named = [value for name, value in scope["headers"] if name == _HEADER]
    if not named:
        return replace(identity, any_tenant=True)
    if len(named) > 1 or _CALLER.fullmatch(named[0]) is None:
        raise InvalidName(
            f"{headers.HTTP_CALLER} must be there once, with 1 to {CALLER_CHARACTERS_MAX} printable ASCII characters"
            " without spaces"
        )
    name = f"{identity.name}/{named[0].decode('ascii')}"
    if len(name) > BY_CHARACTERS_MAX:
        # What bears a longer one is read by nobody.
        raise InvalidName(
            f"{headers.HTTP_CALLER} and the front door's name may have {BY_CHARACTERS_MAX} characters together"
        )
    return replace(identity, any_tenant=True, name=name)
