"""A rolling restart: each process is replaced by a successor that serves before it is told to end.

One successor is started at a time. Predecessors end beside that, each in its own time: work goes on, and a restart
takes as long as one drain, not as long as all of them together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

from meshctl.errors import StartFailed
from meshctl.supervision.processes import ServiceProcess, Supervised, Supervisor

log = structlog.get_logger("meshctl.supervision.rolling")

READY_SECONDS_MAX: Final = 60.0
"""How long a successor may take until it serves: everything else of the mesh has work to do meanwhile."""

Told = Callable[[dict[str, Any]], None]


class RestartFailed(Exception):
    """A successor does not serve. Whoever it was to replace is still there, and so are all behind it."""


class Rolling:
    """Replaces the processes of `services`, a list that is kept up to date; `leaving` are those on their way out."""

    def __init__(self, supervisor: Supervisor, services: list[ServiceProcess], stop_seconds: float) -> None:
        """`stop_seconds`: how long one may take to end before it is killed."""
        self.leaving: list[ServiceProcess] = []
        self._supervisor = supervisor
        self._services = services
        self._stop_seconds = stop_seconds
        self._lock = asyncio.Lock()

    async def restart(self, told: Told, broker: Supervised | None = None) -> None:
        """Replace all, and last of all restart `broker`. Returns when all predecessors have ended.

        `told` is told of each step. Raises `RestartFailed`.
        """
        async with self._lock:
            log.info("restart.begun", processes=len(self._services))
            leaving: list[asyncio.Task[None]] = []
            try:
                for old in list(self._services):
                    if not old.is_vacated:
                        leaving.append(await self._replace(old, told))
                if broker is not None:
                    await self._restart(broker, told)
            finally:
                await asyncio.gather(*leaving)
            log.info("restart.done", processes=len(leaving))

    async def _replace(self, old: ServiceProcess, told: Told) -> asyncio.Task[None]:
        new, pid = old.successor(), old.pid
        try:
            await self._supervisor.replace(old, new, READY_SECONDS_MAX)
        except StartFailed as error:
            raise RestartFailed(
                f"{error}: its predecessor goes on, and so do those that were not replaced yet"
            ) from None
        self._services[self._services.index(old)] = new
        self.leaving.append(old)
        told({"event": "process.replaced", "process": old.name, "pid": pid, "successor": new.pid})
        return asyncio.create_task(self._leave(old, pid, told))

    async def _leave(self, old: ServiceProcess, pid: int | None, told: Told) -> None:
        began_at = time.monotonic()
        await self._supervisor.stop([old], self._stop_seconds)
        await self._supervisor.forget([old])
        self.leaving.remove(old)
        told(
            {"event": "process.left", "process": old.name, "pid": pid, "seconds": round(time.monotonic() - began_at, 1)}
        )

    async def _restart(self, broker: Supervised, told: Told) -> None:
        pid = broker.pid
        try:
            async with asyncio.timeout(READY_SECONDS_MAX):
                await broker.restart()
        except TimeoutError:
            raise RestartFailed(f"{broker.name} did not serve again within {READY_SECONDS_MAX:g} s") from None
        told({"event": "process.replaced", "process": broker.name, "pid": pid, "successor": broker.pid})
