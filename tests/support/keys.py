"""API keys of a test's own, straight into the bucket `keys`: no command and no door has a part in it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from msgspec.structs import replace

from contracts.access import SCOPES, Key, KeyRecord, Scope, hash_of, new_key
from contracts.codec import decode, encode
from contracts.streams import KEYS_BUCKET
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.clock import now


async def write_key(
    requests: Requests,
    tenant: str = "default",
    *scopes: Scope,
    expires_at: datetime | None = None,
    revoked_at: datetime | None = None,
    **fields: Any,
) -> Key:
    """Write the record of a new key, with these scopes, or all; `str` of the key is what a caller shows.

    `fields`: others of `KeyRecord`, such as `pool`.
    """
    key = new_key()
    record = KeyRecord(
        id=key.id,
        tenant=tenant,
        scopes=[*(scopes or SCOPES)],
        hash=hash_of(key.secret),
        created_at=now(),
        by="test",
        expires_at=expires_at,
        revoked_at=revoked_at,
        **fields,
    )
    await key_value.put(requests, KEYS_BUCKET.name, key.id, encode(record))
    return key


async def change_key(requests: Requests, key: Key, **fields: Any) -> None:
    """Write the record of a key again, with other fields."""
    entry = await key_value.get_from_leader(requests, KEYS_BUCKET.name, key.id)
    assert entry is not None
    assert entry.value is not None
    changed = replace(decode(entry.value, KeyRecord), **fields)
    await key_value.put(requests, KEYS_BUCKET.name, key.id, encode(changed))


def bearer(key: Key | str, **headers: str) -> dict[str, str]:
    """The headers of a request that shows a key, or a token."""
    return {"Authorization": f"Bearer {key}", **headers}
