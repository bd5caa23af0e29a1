"""A process that looks for other meshes in its account: it does not start beside one, and says so when one comes."""

from __future__ import annotations

import asyncio
import random

import nats.errors
import structlog

from contracts.errors import TaskmeshError
from contracts.records.status import HealthCheck
from mesh.background import first_of
from mesh.broker.connection import Connection
from mesh.broker.mesh_identity import mesh_id
from mesh.broker.other_meshes import MESH, REMEDY, Seen, check_alone, look
from mesh.errors import SettingsError

log = structlog.get_logger("mesh.serving.neighbours")

LOOK_SECONDS = 1.0
AGAIN_SECONDS = 60.0
PROCESSES_MAX = 16
"""A mesh of more processes looks no more often than this many would: each look is answered by all of them."""
SOON_SECONDS = 5.0
"""How long until a mesh whose streams are not there is asked for its id again."""
_SPREAD = 0.2


class Neighbours:
    """The meshes in the account, as one process sees them. `metadata` is what it tells of itself on `$SRV.INFO`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._seen = Seen(0, {})
        self._reconnected = asyncio.Event()
        self.metadata: dict[str, str] = {}

    @property
    def mesh(self) -> str | None:
        """The id of the mesh that this process is of; None if it has no streams."""
        return self.metadata.get(MESH)

    async def check_start(self) -> None:
        """Learn the id of one's own mesh. Raises `SettingsError` if another one is there."""
        try:
            self._set(await check_alone(self._connection))
        except (TaskmeshError, nats.errors.Error, OSError) as error:
            if isinstance(error, SettingsError):
                raise
            log.info("mesh.not_looked", error=str(error))

    async def keep_looking(self) -> None:
        """Look now and then until cancelled, and say what has changed."""
        self._connection.on_reconnected(self._reconnected.set)
        while True:
            await first_of(self._reconnected, seconds=self._pause_seconds())
            if self._reconnected.is_set():
                self._reconnected.clear()
                # The broker may be another one, or an empty one. To look as well would be too much: all do this now.
                await self._learn()
            else:
                await self.look_again()

    async def look_again(self) -> None:
        """Look once. A broker that is away changes nothing."""
        if not self._connection.is_connected:
            return
        await self._learn()
        if self.mesh is None:
            return
        try:
            seen = await look(self._connection.client, self.mesh, LOOK_SECONDS)
        except (nats.errors.Error, OSError):
            return
        was, self._seen = self._seen, seen
        if seen.others and set(seen.others) != set(was.others):
            log.error("mesh.other", mesh=self.mesh, others=str(seen), remedy=REMEDY)
        elif was.others and not seen.others:
            log.info("mesh.alone_again", mesh=self.mesh)

    def checks(self) -> list[HealthCheck]:
        """What is not well: empty while no other mesh is there."""
        if not self._seen.others:
            return []
        return [HealthCheck(name="other_mesh", ok=False, detail=f"in the same account: {self._seen}: {REMEDY}")]

    def _pause_seconds(self) -> float:
        seconds = AGAIN_SECONDS * max(1.0, self._seen.own / PROCESSES_MAX) if self.mesh else SOON_SECONDS
        return seconds * random.uniform(1 - _SPREAD, 1 + _SPREAD)

    async def _learn(self) -> None:
        try:
            self._set(await mesh_id(self._connection.requests))
        except TaskmeshError as error:
            log.debug("mesh.unknown", error=str(error))

    def _set(self, mesh: str | None) -> None:
        if mesh is None:
            self.metadata.pop(MESH, None)
        else:
            self.metadata[MESH] = mesh
