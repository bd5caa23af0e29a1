"""Who may do what: scopes, the form of API keys, and their records in the bucket `keys`.

A key is `tm_<id>_<secret>`. Its record holds a hash of the secret, never the secret: 256 random bits can't be guessed,
so that one round of SHA-256 over them is enough.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Annotated, Final, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta

from contracts.codec import exactly
from contracts.fields import By, LaneName, Tenant, Time
from contracts.tasks import BUDGET_TOKENS_MAX

KEY_ID_PATTERN: Final = r"[0-9a-z]{16}"
KEY_PREFIX: Final = "tm_"
"""What every key begins with, and no token of an issuer does."""
KEY_PATTERN: Final = rf"{KEY_PREFIX}({KEY_ID_PATTERN})_([A-Za-z0-9_-]{{43}})"
SECRET_BYTES: Final = 32
HASH_PATTERN: Final = r"[0-9a-f]{64}"
NAME_CHARACTERS_MAX: Final = 128

Scope = Literal["submit", "read", "answer", "operate"]
"""submit: start tasks and cancel them. read: see tasks, events, tools, dead letters. answer: decide on calls, and say
something to a task. operate: replay and drop dead letters, and see what is everybody's, such as the load of a pool."""
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

_KEY = re.compile(KEY_PATTERN)
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID_CHARACTERS = 16


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An API key, in the bucket `keys` under its id."""

    id: Annotated[str, exactly(KEY_ID_PATTERN, _ID_CHARACTERS)]
    tenant: Tenant
    """Whose tasks it may see: of a request that names no tenant, too."""
    scopes: list[Scope]
    hash: Annotated[str, exactly(HASH_PATTERN, 64)]
    """SHA-256 over the secret, as it stands in the key, in hexadecimal digits."""
    created_at: Time
    by: By
    """Who has made it."""
    name: Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)] | None = None
    """What it is for: for people."""
    expires_at: Time | None = None
    revoked_at: Time | None = None
    any_tenant: bool = False
    """Whether a request may name any other tenant: an operator's key."""
    pool: LaneName | None = None
    """The one pool that its tasks may run in. Absent: any."""
    budget_tokens: Annotated[int, Meta(ge=1, le=BUDGET_TOKENS_MAX)] | None = None
    """The most tokens that one of its tasks may take: a request may ask for less. Absent: as the pool says."""


class Key(NamedTuple):
    """A key, taken apart."""

    id: str
    secret: str

    def __str__(self) -> str:
        return f"{KEY_PREFIX}{self.id}_{self.secret}"

    def __repr__(self) -> str:
        return f"Key({self.id!r}, ***)"


def new_key() -> Key:
    """A key that nobody has."""
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_CHARACTERS))
    return Key(key_id, secrets.token_urlsafe(SECRET_BYTES))


def parse_key(text: str) -> Key | None:
    """Take a key apart; None if it is none. It is never part of an error's text."""
    match = _KEY.fullmatch(text)
    return Key(match[1], match[2]) if match is not None else None


def hash_of(secret: str) -> str:
    """What a record holds of a secret."""
    return hashlib.sha256(secret.encode("ascii")).hexdigest()


def is_secret_of(record: KeyRecord, secret: str) -> bool:
    """Whether a secret is that of a record, in a time that does not tell how much of it is right."""
    return hmac.compare_digest(hash_of(secret), record.hash)
