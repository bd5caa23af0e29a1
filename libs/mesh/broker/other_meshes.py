"""Whether another mesh is in the same account: then both take every task, and run it twice.

Two meshes come to share an account by a link that somebody adds between two servers, such as a leaf and its hub. Each
has its own streams, and both store what is published to their subjects. So processes ask who is there (`$SRV.INFO`, of
nats micro), and tell the id of their mesh in their metadata.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from contracts.headers import STATUS
from mesh.background import first_of
from mesh.broker.connection import Connection
from mesh.broker.mesh_identity import mesh_id
from mesh.errors import SettingsError
from mesh.wording import first_few

INFO_SUBJECT = "$SRV.INFO"
MESH = "mesh"
"""The key of a process's metadata that has the id of its mesh."""
ANSWERS_MAX = 4096
START_SECONDS = 1.0
"""How long to wait for the first answer, where somebody is there who may be of another mesh: a link may be slow."""
REMEDY = "give each mesh an account of its own"
_NAMES_MAX = 3


class Seen(NamedTuple):
    """Who has answered: how many of one's own mesh, and the processes of each other one, by its id."""

    own: int
    others: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        """The other meshes, for people; empty if there is none."""
        return "; ".join(
            f"mesh {mesh} ({first_few(workers, _NAMES_MAX)})" for mesh, workers in sorted(self.others.items())
        )


async def check_alone(connection: Connection) -> str | None:
    """The id of the mesh, None if it has no streams yet. Raises `SettingsError` if another one is in its account.

    Takes one round trip where nobody is there, or a process of the mesh itself; raises `BrokerError`,
    `BrokerUnavailable`.
    """
    mesh = await mesh_id(connection.requests)
    seen = await look(connection.client, mesh, START_SECONDS, until_known=True)
    if seen.others:
        raise SettingsError(f"another mesh in the same account would run each task again: {seen}: {REMEDY}")
    return mesh


async def look(client: Client, mesh: str | None, seconds: float, *, until_known: bool = False) -> Seen:
    """Ask which meshes are there, and gather answers for so long; nobody says which one is the last.

    It ends at once if nobody is there at all. With `until_known` also with the first process of another mesh, or of
    one's own: that one looks for others itself. What has no mesh in its metadata is none of a mesh.
    """
    own = 0
    others: dict[str, set[str]] = {}
    ended = asyncio.Event()

    async def on_answer(message: Msg) -> None:
        nonlocal own
        if message.headers and STATUS in message.headers:
            ended.set()
            return
        # A stranger on the subject may answer anything.
        with suppress(msgspec.MsgspecError, KeyError, AttributeError, TypeError):
            info = msgspec.json.decode(message.data, type=dict[str, Any])
            told = (info.get("metadata") or {}).get(MESH)
            if not told or own + sum(map(len, others.values())) >= ANSWERS_MAX:
                return
            if told == mesh:
                own += 1
            else:
                others.setdefault(str(told), set()).add(str(info["metadata"].get("worker") or info["name"]))
            if until_known:
                ended.set()

    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, cb=on_answer)
    await client.publish(INFO_SUBJECT, reply=inbox)
    await first_of(ended, seconds=seconds)
    await subscription.unsubscribe()
    return Seen(own, {each: tuple(sorted(workers)) for each, workers in others.items()})
