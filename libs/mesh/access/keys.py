"""API keys at the broker, in the bucket `keys`: made, read, ended. A record holds a hash, and no secret."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import structlog
from msgspec.structs import replace

from contracts import subjects
from contracts.access import KEY_ID_PATTERN, Key, KeyRecord, Scope, hash_of, new_key
from contracts.codec import encode
from contracts.errors import TaskmeshError
from contracts.streams import KEYS_BUCKET
from mesh.broker import key_value
from mesh.broker.direct_get import LAST_SUBJECTS_MAX, subjects_of
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.errors import BrokerUnavailable

log = structlog.get_logger("mesh.access.keys")

CHANGE_TRIES_MAX: Final = 8
"""How often a change is tried while others change the same record."""

_ID: Final = re.compile(KEY_ID_PATTERN)


class KeyUnknown(TaskmeshError):
    """There is no key of that id."""

    code = "not-found"


class MadeKey(NamedTuple):
    """A key that was just made. Nobody can be told its secret again."""

    key: Key
    record: KeyRecord


class Rights(NamedTuple):
    """What a key that is to be made may do, as its record has it."""

    tenant: str
    scopes: list[Scope]
    name: str | None = None
    any_tenant: bool = False
    pool: str | None = None
    budget_tokens: int | None = None


def decode_record(key_id: str, entry: key_value.KeyValueEntry | None) -> KeyRecord | None:
    """The record under an id; None where there is none, or none that this version can read: the log says so."""
    record = key_value.record_of(entry, KeyRecord, log, "key.record_unreadable", key=key_id)
    if record is not None and record.id != key_id:
        log.warning("key.record_unreadable", key=key_id, error="it is of another id")
        return None
    return record


def state_of(record: KeyRecord, at: datetime) -> str:
    """`valid`, `revoked` or `expired`."""
    if record.revoked_at is not None:
        return "revoked"
    return "expired" if record.expires_at is not None and record.expires_at <= at else "valid"


async def make(requests: Requests, rights: Rights, by: str, expires_at: datetime | None = None) -> MadeKey:
    """Make a key. `by` says who does. Raises `BrokerUnavailable`, and `NoRoom` if the bucket is full."""
    key = new_key()
    record = KeyRecord(
        id=key.id,
        tenant=rights.tenant,
        scopes=rights.scopes,
        hash=hash_of(key.secret),
        created_at=now(),
        by=by,
        name=rights.name,
        expires_at=expires_at,
        any_tenant=rights.any_tenant,
        pool=rights.pool,
        budget_tokens=rights.budget_tokens,
    )
    if not await key_value.compare_and_set(requests, KEYS_BUCKET.name, key.id, encode(record), 0):
        raise BrokerUnavailable("a key of the same id was made just now: try again")
    return MadeKey(key, record)


async def read(requests: Requests, key_id: str) -> KeyRecord | None:
    """A key's record, from the bucket's leader: None is the truth. Raises `BrokerUnavailable`."""
    if _ID.fullmatch(key_id) is None:
        return None
    entry = await key_value.get_from_leader(requests, KEYS_BUCKET.name, key_id)
    return decode_record(key_id, entry)


async def read_all(requests: Requests) -> list[KeyRecord]:
    """The records of all keys, the oldest first. Raises `BrokerUnavailable`."""
    named = await subjects_of(requests, KEYS_BUCKET.stream_name, subjects.KEYS_ALL)
    ids = [name for each in named if _ID.fullmatch(name := each.removeprefix(subjects.KEYS_PREFIX))]
    records: list[KeyRecord] = []
    for start in range(0, len(ids), LAST_SUBJECTS_MAX):
        found = await key_value.get_many(requests, KEYS_BUCKET.name, ids[start : start + LAST_SUBJECTS_MAX])
        records += filter(None, (decode_record(key_id, entry) for key_id, entry in found.items()))
    return sorted(records, key=lambda record: (record.created_at, record.id))


async def revoke(requests: Requests, key_id: str) -> KeyRecord:
    """Let nobody in by a key any more. Twice is the same as once. Raises `KeyUnknown`, `BrokerUnavailable`."""
    at = now()
    return await _change(requests, key_id, lambda old: old if old.revoked_at else replace(old, revoked_at=at))


async def rotate(
    requests: Requests, key_id: str, by: str, grace: timedelta, expires_at: datetime | None = None
) -> MadeKey:
    """Make a key with the same rights. The old one goes on for `grace`, if it would have been valid for as long.

    `expires_at`: when the new one ends. Without it the new one lives for as long as the old one was to. Raises
    `KeyUnknown` for a key that is not valid any more, too; `BrokerUnavailable`.
    """
    old = await read(requests, key_id)
    at = now()
    if old is None or state_of(old, at) != "valid":
        raise KeyUnknown(f"there is no valid key {key_id}")
    if expires_at is None and old.expires_at is not None:
        expires_at = at + (old.expires_at - old.created_at)
    rights = Rights(old.tenant, old.scopes, old.name, old.any_tenant, old.pool, old.budget_tokens)
    made = await make(requests, rights, by, expires_at)
    ends_at = at + grace

    def ending(record: KeyRecord) -> KeyRecord:
        earlier = record.expires_at is not None and record.expires_at <= ends_at
        return record if earlier else replace(record, expires_at=ends_at)

    await _change(requests, key_id, ending)
    return made


async def _change(requests: Requests, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
    for _ in range(CHANGE_TRIES_MAX):
        entry = None
        if _ID.fullmatch(key_id) is not None:
            entry = await key_value.get_from_leader(requests, KEYS_BUCKET.name, key_id)
        record = decode_record(key_id, entry)
        if entry is None or record is None:
            raise KeyUnknown(f"there is no key {key_id}")
        changed = change(record)
        if changed is record or await key_value.compare_and_set(
            requests, KEYS_BUCKET.name, key_id, encode(changed), entry.revision
        ):
            return changed
    raise BrokerUnavailable(f"the record of key {key_id} is contended")
