"""Key-value buckets over raw requests: compare-and-set and direct reads (NATS ADR-8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from contracts import headers
from contracts.codec import decode, encode
from contracts.errors import InvalidPayload
from mesh.broker.direct_get import last_from_leader, last_of_many
from mesh.broker.requests import REQUEST_TIMEOUT_SECONDS, WRONG_LAST_SEQUENCE, Requests
from mesh.errors import BrokerError, BrokerUnavailable

MANY_BYTES_MAX = 4 * 1024 * 1024
"""Of one answer to `get_many`; what is left is asked for again."""

Record = TypeVar("Record")


class KeyValueEntry(NamedTuple):
    """A value and its revision, which is its sequence in the bucket's stream. None: it was deleted."""

    value: bytes | None
    revision: int


def record_of(entry: KeyValueEntry | None, kind: type[Record], log: Any, event: str, **fields: object) -> Record | None:
    """The record in an entry; None where there is none, or none that this version can read: the log says so.

    `log` is a structlog logger, `event` what its line is called, and `fields` are in it.
    """
    if entry is None or not entry.value:
        return None
    try:
        return decode(entry.value, kind)
    except InvalidPayload as error:
        log.warning(event, **fields, error=str(error))
        return None


async def get(requests: Requests, bucket: str, key: str) -> KeyValueEntry | None:
    """Read a value by direct get, from any replica; None if the key was never there."""
    answer = await requests.one(requests.api_subject(f"DIRECT.GET.KV_{bucket}.$KV.{bucket}.{key}"))
    message_headers = answer.headers or {}
    status = message_headers.get(headers.STATUS)
    if status == "404":
        return None
    if status is not None:
        raise BrokerUnavailable(f"bucket {bucket} answered {status}")
    value = None if headers.KV_OPERATION in message_headers else answer.data
    return KeyValueEntry(value, int(message_headers[headers.SEQUENCE]))


async def get_from_leader(requests: Requests, bucket: str, key: str) -> KeyValueEntry | None:
    """Read a value from the bucket's leader; None, which is the truth, if the key was never there."""
    stored = await last_from_leader(requests, f"KV_{bucket}", f"$KV.{bucket}.{key}")
    if stored is None:
        return None
    return KeyValueEntry(None if headers.KV_OPERATION in stored.headers else stored.payload, stored.sequence)


async def get_many(requests: Requests, bucket: str, keys: Sequence[str]) -> dict[str, KeyValueEntry]:
    """Read the values of up to 1,024 keys, from any replica; what was never there is not in it."""
    prefix = f"$KV.{bucket}."
    found = await last_of_many(requests, f"KV_{bucket}", (prefix + key for key in keys), MANY_BYTES_MAX)
    return {
        subject.removeprefix(prefix): KeyValueEntry(
            None if headers.KV_OPERATION in stored.headers else stored.payload, stored.sequence
        )
        for subject, stored in found.items()
    }


async def put(requests: Requests, bucket: str, key: str, value: bytes) -> int:
    """Write a value whatever was there; returns its revision."""
    return (await requests.publish(f"$KV.{bucket}.{key}", value)).seq


async def compare_and_set(requests: Requests, bucket: str, key: str, value: bytes, revision: int) -> bool:
    """Write a value if the key is still at `revision` (0: never there). False if it is not."""
    return await compare_and_put(requests, bucket, key, value, revision) is not None


async def compare_and_put(requests: Requests, bucket: str, key: str, value: bytes, revision: int) -> int | None:
    """The same, and its new revision; None if the key is at another."""
    expected = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(revision)}
    try:
        return (await requests.publish(f"$KV.{bucket}.{key}", value, expected)).seq
    except BrokerError as error:
        if error.number in WRONG_LAST_SEQUENCE:
            return None
        raise


async def delete(requests: Requests, bucket: str, key: str, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> None:
    """Mark a key as deleted; readers find an entry without a value."""
    await requests.publish(f"$KV.{bucket}.{key}", b"", {headers.KV_OPERATION: "DEL"}, timeout_seconds)


async def compare_and_delete(requests: Requests, bucket: str, key: str, revision: int) -> bool:
    """Mark a key as deleted if it is still at `revision`. False if it is not."""
    expected = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(revision), headers.KV_OPERATION: "DEL"}
    try:
        await requests.publish(f"$KV.{bucket}.{key}", b"", expected)
    except BrokerError as error:
        if error.number in WRONG_LAST_SEQUENCE:
            return False
        raise
    return True


async def put_json(requests: Requests, bucket: str, key: str, value: object) -> int:
    """Write a wire type."""
    return await put(requests, bucket, key, encode(value))
