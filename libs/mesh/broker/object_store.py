"""Object store buckets (NATS ADR-20) over raw requests: `nats object get` and every client read what is put here."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from contextlib import suppress

import msgspec
import structlog

from contracts import result_objects
from contracts.codec import decode, encode
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.identifiers import new_id
from contracts.journal.parts import ObjectReference
from mesh.broker.direct_get import (
    LAST_SUBJECTS_MAX,
    first_from_leader,
    last_from_leader,
    last_of_each,
    read_page,
)
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.errors import NoRoom

log = structlog.get_logger("mesh.broker.object_store")

CHUNK_BYTES = 512 * 1024
"""Half of a message's limit: each chunk waits for its ack, so larger ones are fewer round trips."""
_ROLLUP = "Nats-Rollup"


class _Information(msgspec.Struct):
    """What is read of the message that tells of an object."""

    nuid: str = ""


async def put(
    requests: Requests, bucket: str, name: str, payload: bytes, chunks_id: str | None = None
) -> ObjectReference:
    """Store an object under a name that is used once; returns where it is.

    It is there once its last message, the information, is stored. `chunks_id` says where its chunks lie until then and
    after, and is used once, too. Raises `BrokerError`, `BrokerUnavailable`.
    """
    chunks_id = chunks_id or new_id()
    chunk_bytes = requests.fitting(CHUNK_BYTES)
    chunks = [payload[start : start + chunk_bytes] for start in range(0, len(payload), chunk_bytes)]
    digest = _digest(payload)
    information = {
        "name": name,
        "bucket": bucket,
        "nuid": chunks_id,
        "size": len(payload),
        "chunks": len(chunks),
        "digest": digest,
        "mtime": now(),
        "options": {"max_chunk_size": chunk_bytes},
    }
    subject = result_objects.chunks_subject(bucket, chunks_id)
    try:
        for chunk in chunks:
            # One after the other: their order in the stream is that in the object.
            await requests.publish(subject, chunk)
        told = result_objects.information_subject(bucket, name)
        await requests.publish(told, encode(information), {_ROLLUP: "sub"})
    except NoRoom:
        # Half an object is nobody's, and takes the room that a whole one may find.
        with suppress(TaskmeshError):
            await requests.purge(f"OBJ_{bucket}", subject)
        raise
    return ObjectReference(bucket, name, len(payload), digest)


async def get(requests: Requests, reference: ObjectReference) -> bytes | None:
    """Read an object; None if it is not there any more, or not what the reference says.

    It reads no more than the size that the reference names, and one page. Raises `BrokerError`, `BrokerUnavailable`.
    """
    stream = f"OBJ_{reference.bucket}"
    subject = result_objects.information_subject(reference.bucket, reference.name)
    found = await last_of_each(requests, stream, subject)
    # A replica may be behind: that there is nothing is the leader's to say.
    told = found[0] if found else await last_from_leader(requests, stream, subject)
    try:
        nuid = decode(told.payload, _Information).nuid if told is not None else ""
    except InvalidPayload:
        nuid = ""
    if not result_objects.is_chunks_id(nuid):
        return None
    chunks = result_objects.chunks_subject(reference.bucket, nuid)
    payload, after = bytearray(), 0
    while len(payload) < reference.size:
        some = (await read_page(requests, stream, chunks, after)).messages
        if not some:
            next_one = await first_from_leader(requests, stream, chunks, after)
            if next_one is None:
                return None
            some = [next_one]
        for chunk in some:
            payload += chunk.payload
        after = some[-1].sequence
    return bytes(payload) if _digest(payload) == reference.digest else None


def _digest(payload: bytes | bytearray) -> str:
    return "SHA-256=" + base64.urlsafe_b64encode(hashlib.sha256(payload).digest()).decode()


async def purge_objects(requests: Requests, bucket: str, names: Iterable[str]) -> int:
    """Purge objects, with all of their chunks; returns how many were there. What is not there is as good.

    To do it twice is the same as once. Raises `BrokerError`, `BrokerUnavailable`.
    """
    wanted = [*dict.fromkeys(names)]
    purged = 0
    for start in range(0, len(wanted), LAST_SUBJECTS_MAX):
        purged += await _purge_some(requests, bucket, wanted[start : start + LAST_SUBJECTS_MAX])
    return purged


async def _purge_some(requests: Requests, bucket: str, names: list[str]) -> int:
    stream = f"OBJ_{bucket}"
    subjects = [result_objects.information_subject(bucket, name) for name in names]
    found = {each.subject: each for each in await last_of_each(requests, stream, *subjects)}
    purged = 0
    for name, subject in zip(names, subjects, strict=True):
        # A replica may be behind: that there is nothing is the leader's to say.
        told = found.get(subject) or await last_from_leader(requests, stream, subject)
        if told is None:
            continue
        try:
            nuid = decode(told.payload, _Information).nuid
        except InvalidPayload:
            nuid = ""
        if not result_objects.is_chunks_id(nuid):
            # Nobody knows where its chunks are, and a wildcard there would purge those of others.
            log.error("object.unreadable", bucket=bucket, name=name)
            continue
        await requests.purge(stream, result_objects.chunks_subject(bucket, nuid))
        # Last: while it is there, what somebody who died in between has left is found again.
        await requests.purge(stream, subject)
        purged += 1
    return purged
