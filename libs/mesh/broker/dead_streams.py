"""Streams that are there and take nothing any more, since the broker could not write: a disk that was full, or failed.

Such a stream (nats-server 2.14 and newer) answers for its state, refuses what breaks a condition, and is silent to any
other publish until its server starts again, whatever room there is by then. It says why when it is asked to purge what
it does not have (measured), which changes nothing in one that is well.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from contracts.streams import BACKLOG, BUCKETS, STREAMS
from mesh.broker.levels import NEEDED, stream_info
from mesh.broker.requests import Requests
from mesh.broker.rights import Rights
from mesh.errors import BrokerError

STORE_FAILED: Final = (10051, 10110)
"""JetStream's numbers for a purge that its store refused."""
ASK_SECONDS_MAX: Final = 3.0
PURGE: Final = "STREAM.PURGE."


class DeadStream(NamedTuple):
    """A stream that takes nothing, and the error of its first write that failed."""

    stream: str
    reason: str


_SUBJECTS: Final = {each.name: each.subjects[0] for each in (*STREAMS, *(bucket.as_stream() for bucket in BUCKETS))}


async def dead_streams(requests: Requests, rights: Rights | None = None) -> list[DeadStream]:
    """The dead ones of the streams that tasks need. Of a replicated one others answer: it is passed over.

    So is one that the broker's user may not purge, as an ingress with least rights may none: it finds out by what it
    publishes (`Requests.is_silent`). Raises `BrokerUnavailable`, `BrokerError`.
    """
    asked = [each for each in (*NEEDED, BACKLOG.name) if rights is None or rights.may_call(PURGE + each)]
    found = await asyncio.gather(*(_examine(requests, stream) for stream in asked))
    return [each for each in found if each is not None]


async def _examine(requests: Requests, stream: str) -> DeadStream | None:
    info = await stream_info(requests, stream)
    if info is None or int(info["config"].get("num_replicas", 1)) > 1:
        return None
    # No name has such a token, so that nothing can match.
    nothing = _SUBJECTS[stream].replace("*", "_").replace(">", "_")
    try:
        await requests.api(PURGE + stream, {"filter": nothing}, ASK_SECONDS_MAX)
    except BrokerError as error:
        if error.number not in STORE_FAILED:
            raise
        # It names the file on the broker's machine, which says nothing here.
        return DeadStream(stream, str(error).rsplit(": ", 1)[-1].removesuffix(f" ({error.number})"))
    return None
