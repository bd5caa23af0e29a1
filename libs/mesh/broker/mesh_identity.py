"""Which mesh a broker's account holds: an id in the metadata of EVENTS, made once, and kept by backups.

`nats stream backup` and a change of the stream's configuration keep metadata; a copy of a mesh has the id of the first.
"""

from __future__ import annotations

import hashlib
from typing import Any

from contracts.identifiers import new_id
from contracts.streams import EVENTS
from mesh.broker.levels import stream_info
from mesh.broker.requests import Requests

MESH_METADATA = "taskmesh.mesh"
_DIGITS = 26
"""As many as any other id has."""


def with_new_id(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration that EVENTS is created with: that of a mesh which begins here."""
    return config | {"metadata": {MESH_METADATA: new_id()}}


async def mesh_id(requests: Requests) -> str | None:
    """The id of the mesh; None if EVENTS is not there. An EVENTS that has none yet gets one.

    The one that it gets follows from when it was created: processes that start at the same moment give it the same.
    Raises `BrokerError`, `BrokerUnavailable`.
    """
    info = await stream_info(requests, EVENTS.name)
    if info is None:
        return None
    metadata = info["config"].get("metadata") or {}
    if metadata.get(MESH_METADATA):
        return str(metadata[MESH_METADATA])
    given = hashlib.sha256(str(info["created"]).encode()).hexdigest()[:_DIGITS]
    config = info["config"] | {"metadata": metadata | {MESH_METADATA: given}}
    await requests.api(f"STREAM.UPDATE.{EVENTS.name}", config)
    return given
