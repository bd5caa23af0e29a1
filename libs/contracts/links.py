"""Signed links: URLs by which whoever has one reads one task's events until a moment, without a header.

A browser's EventSource can send none. The token in the query `link` is
`<key id>.<expiry, Unix seconds>.<tenant>.<signature>`; the signature is HMAC-SHA256 over the other three and the task,
which stands in the path. It is compared as text, so that no other spelling of the same bytes is one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from contracts.codec import exactly
from contracts.errors import TaskmeshError
from contracts.fields import Time
from contracts.subjects import TENANT_PATTERN

LINK_KEYS_KEY: Final = "_links"
"""Where the signing keys lie in the bucket `keys`. No key of a caller has an id that begins like it."""
LINK_QUERY: Final = "link"
LINK_SECONDS_DEFAULT: Final = 3600
LINK_SECONDS_MAX: Final = 24 * 3600
TOKEN_CHARACTERS_MAX: Final = 128
SIGNING_KEYS_MAX: Final = 8
"""The one that signs, and those before it whose links still hold."""
LINK_KEY_ID_PATTERN: Final = r"[0-9a-z]{8}"
SIGNATURE_PATTERN: Final = r"[A-Za-z0-9_-]{43}"

_TOKEN = re.compile(rf"({LINK_KEY_ID_PATTERN})\.([1-9][0-9]{{9}})\.({TENANT_PATTERN})\.({SIGNATURE_PATTERN})")
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID_CHARACTERS = 8
_SECRET_BYTES = 32
_PURPOSE = "taskmesh-link-1"


class LinkInvalid(TaskmeshError):
    """A link that is none: altered, cut off, for another task, or of another mesh."""

    code = "unauthorized"


class LinkExpired(TaskmeshError):
    """A link whose time is over, or whose key was taken away. Another one has to be asked for."""

    code = "link-expired"


class LinkKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key that signs links, or did."""

    id: Annotated[str, exactly(LINK_KEY_ID_PATTERN, _ID_CHARACTERS)]
    secret: Annotated[str, exactly(SIGNATURE_PATTERN, 43)]
    """32 random bytes, in base64url without padding. Its bytes are the key of the HMAC."""
    created_at: Time
    until: Time | None = None
    """When links that it has signed hold no more, whatever they say. Absent: while they say so."""

    def __repr__(self) -> str:
        return f"LinkKey(id={self.id!r}, secret=***)"


class LinkKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The signing keys of a mesh, in the bucket `keys` under `_links`. The first one signs."""

    keys: Annotated[list[LinkKey], Meta(min_length=1, max_length=SIGNING_KEYS_MAX)]


class Link(NamedTuple):
    """What a valid link lets its holder read: a task's events, until then."""

    tenant: str
    task: str
    expires_at: datetime


class _Token(NamedTuple):
    key: str
    expires: str
    tenant: str
    signature: str


def new_link_key(now: datetime) -> LinkKey:
    """A key that nobody has."""
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_CHARACTERS))
    return LinkKey(id=key_id, secret=_text(secrets.token_bytes(_SECRET_BYTES)), created_at=now)


def rotated(keys: Sequence[LinkKey], now: datetime, grace_seconds: float) -> list[LinkKey]:
    """The keys with a new one that signs. Links of the others hold until they expire, or for as long as the grace."""
    ends_at = now + timedelta(seconds=grace_seconds)
    kept = [msgspec.structs.replace(each, until=min(each.until or ends_at, ends_at)) for each in keys]
    return [new_link_key(now), *(each for each in kept if each.until is not None and each.until > now)][
        :SIGNING_KEYS_MAX
    ]


def expiry_of(now: datetime, seconds: int) -> datetime:
    """When a link that is made now ends, in whole seconds."""
    return datetime.fromtimestamp(int(now.timestamp()) + seconds, UTC)


def sign(key: LinkKey, link: Link) -> str:
    """The token of a link."""
    expires = str(int(link.expires_at.timestamp()))
    return f"{key.id}.{expires}.{link.tenant}.{_signature(key, expires, link.tenant, link.task)}"


def key_of(token: str) -> str | None:
    """The id of the key that a token says it is signed with; None for what is no token."""
    parsed = _parsed(token)
    return parsed.key if parsed is not None else None


def verify(keys: Sequence[LinkKey], token: str, task: str, now: datetime) -> Link:
    """What a token lets its holder read of a task. Raises `LinkInvalid`, `LinkExpired`, which never show the token."""
    parsed = _parsed(token)
    key = next((each for each in keys if parsed is not None and each.id == parsed.key), None)
    if parsed is None or key is None:
        raise LinkInvalid("the link is not valid")
    signature = _signature(key, parsed.expires, parsed.tenant, task)
    if not hmac.compare_digest(signature, parsed.signature):
        raise LinkInvalid("the link is not valid")
    link = Link(parsed.tenant, task, datetime.fromtimestamp(int(parsed.expires), UTC))
    if now >= link.expires_at or (key.until is not None and now >= key.until):
        raise LinkExpired("the link has expired: ask for another one")
    return link if key.until is None else link._replace(expires_at=min(link.expires_at, key.until))


def _parsed(token: str) -> _Token | None:
    match = _TOKEN.fullmatch(token) if len(token) <= TOKEN_CHARACTERS_MAX else None
    return _Token(*match.groups()) if match is not None else None


def _signature(key: LinkKey, expires: str, tenant: str, task: str) -> str:
    # None of these can hold a line break: what is signed reads in one way only.
    signed = "\n".join((_PURPOSE, key.id, expires, tenant, task))
    digest = hmac.digest(base64.urlsafe_b64decode(key.secret + "="), signed.encode(), hashlib.sha256)
    return _text(digest)


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode("ascii").rstrip("=")
