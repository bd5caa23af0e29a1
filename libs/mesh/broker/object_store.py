"""Writing into an object store bucket (NATS ADR-20) over raw requests: `nats object get` and every client read it."""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress

from contracts.codec import encode
from contracts.errors import TaskmeshError
from contracts.identifiers import new_id
from contracts.journal.parts import ObjectReference
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.errors import NoRoom

CHUNK_BYTES = 512 * 1024
"""Half of a message's limit: each chunk waits for its ack, so larger ones are fewer round trips."""
_ROLLUP = "Nats-Rollup"


async def put(requests: Requests, bucket: str, name: str, payload: bytes) -> ObjectReference:
    """Store an object under a name that is used once; returns where it is.

    It is there once its last message, the information, is stored. Raises `BrokerError`, `BrokerUnavailable`.
    """
    chunks_id = new_id()
    chunks = [payload[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES)]
    digest = "SHA-256=" + base64.urlsafe_b64encode(hashlib.sha256(payload).digest()).decode()
    information = {
        "name": name,
        "bucket": bucket,
        "nuid": chunks_id,
        "size": len(payload),
        "chunks": len(chunks),
        "digest": digest,
        "mtime": now(),
        "options": {"max_chunk_size": CHUNK_BYTES},
    }
    key = base64.urlsafe_b64encode(name.encode()).decode()
    try:
        for chunk in chunks:
            # One after the other: their order in the stream is that in the object.
            await requests.publish(f"$O.{bucket}.C.{chunks_id}", chunk)
        await requests.publish(f"$O.{bucket}.M.{key}", encode(information), {_ROLLUP: "sub"})
    except NoRoom:
        # Half an object is nobody's, and takes the room that a whole one may find.
        with suppress(TaskmeshError):
            await requests.api(f"STREAM.PURGE.OBJ_{bucket}", {"filter": f"$O.{bucket}.C.{chunks_id}"})
        raise
    return ObjectReference(bucket, name, len(payload), digest)
