"""How a stream stands, by its leader: what it has from where to where, and how many of it are gone."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from mesh.broker.levels import stream_info
from mesh.broker.requests import Requests


class StreamState(NamedTuple):
    """A stream. `created`: when it was made, which is another time once it was made again.

    `first` and `last` are sequences: the first one is above the last where nothing is left. `deleted`: how many in
    between are gone.
    """

    created: str
    first: int
    last: int
    messages: int
    deleted: int


async def read_state(requests: Requests, stream: str) -> StreamState | None:
    """How a stream stands; None if there is no such stream. Raises `BrokerError`, `BrokerUnavailable`."""
    info = await stream_info(requests, stream)
    if info is None:
        return None
    state = info["state"]
    return StreamState(
        created=str(info["created"]),
        first=max(1, int(state["first_seq"])),
        last=int(state["last_seq"]),
        messages=int(state["messages"]),
        deleted=int(state.get("num_deleted", 0)),
    )


async def deleted_sequences(requests: Requests, stream: str) -> list[int]:
    """Sequences between a stream's first and last one that are gone, the lowest first.

    Raises `BrokerError`, `BrokerUnavailable`.
    """
    info = await stream_info(requests, stream, {"deleted_details": True})
    return [] if info is None else [int(each) for each in info["state"].get("deleted") or ()]


async def messages_on(requests: Requests, stream: str, subject: str) -> int:
    """How many messages a subject has. Raises `BrokerError`, `BrokerUnavailable`."""
    info = await stream_info(requests, stream, {"subjects_filter": subject})
    return 0 if info is None else int((info["state"].get("subjects") or {}).get(subject, 0))


async def broker_time(requests: Requests, stream: str) -> datetime:
    """What time it is by the broker's clock, as the leader of a stream has it. Raises `BrokerUnavailable`."""
    return datetime.fromisoformat(str((await requests.api(f"STREAM.INFO.{stream}"))["ts"]))
