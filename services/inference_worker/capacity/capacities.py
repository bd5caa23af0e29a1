"""What the servers of all pools bear: they are asked beside the work, and never on its way.

A server is asked about twice a second while this worker has something under way there, and seldom while it has not.
How many workers share it is counted in the bucket `workers`: those that serve a pool with that provider.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog

from contracts.errors import TaskmeshError
from contracts.records.status import WorkerRecord
from contracts.streams import WORKERS_BUCKET
from inference_worker.capacity.gpu import memory_is_full
from inference_worker.capacity.measured_source import Measured
from inference_worker.capacity.server import ServerCapacity
from inference_worker.capacity.signals import NotTold
from inference_worker.models.candidates import Source
from inference_worker.models.watched_source import WatchedSource
from mesh.background import first_of
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.configuration.addresses import is_near
from mesh.configuration.capacity_table import CapacitySettings
from mesh.configuration.mesh_toml import Configuration
from mesh.configuration.provider_tables import ServerConfiguration
from mesh.configuration.settings import Settings
from mesh.fleet.records import read_records
from mesh.loop_health import LoopHealth

if TYPE_CHECKING:
    import httpx

    from inference_worker.capacity.reading import LoadReader

log = structlog.get_logger("inference_worker.capacity.capacities")

ASK_SECONDS: Final = 0.5
"""How often a server is asked. Of more than four workers each asks less often, so that it is asked eight times a
second at most."""
ASK_SECONDS_IDLE: Final = 5.0
WORKERS_SHARING_ASKS: Final = 4
AT_ONCE_ASKS: Final = 3
"""After so many in vain it is asked more and more seldom:"""
ASK_SECONDS_SILENT: Final = 5.0
ASK_SECONDS_UNKNOWN: Final = 60.0
ASK_SECONDS_UNASKED: Final = 600.0
"""one that has told of itself lately; one that has not; and one without a table that never has, and perhaps can't."""
COUNT_SECONDS: Final = 5.0
COUNT_SECONDS_PER_WORKER: Final = 0.1
"""How often the workers are counted: a fleet of 100 every 10 s, since each reads all of their records."""
SILENT_SECONDS: Final = 45.0
"""A heartbeat and a half. A worker that was killed has a record for longer, and no part in a server."""


class Capacities:
    """The capacity of each provider that has a table for it, or is near by. `run` keeps them, and must be running."""

    def __init__(self, requests: Requests, settings: Settings, worker: str) -> None:
        self._requests = requests
        self._worker = worker
        self._callbacks: list[Callable[[], None]] = []
        self._servers: dict[str, ServerCapacity] = {}
        self._limited: dict[str, ServerCapacity] = {}
        self._has_limits = asyncio.Event()
        self._readers: dict[str, LoadReader] = {}
        self._pools: dict[str, frozenset[str]] = {}
        """The pools of each provider."""
        self._wake = asyncio.Event()
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Go by these settings. What is known of a server stays, if its tables do."""
        configuration = settings.configuration
        before, readers = self._servers, self._readers
        self._servers, self._readers = {}, {}
        for name, (provider, capacity) in _with_capacity(configuration).items():
            known = before.get(name)
            kept = known is not None and known.settings == capacity
            wide = settings.worker_concurrency if provider.capacity is None else None
            if known is None or not kept or known.is_wide != (wide is not None):
                known = ServerCapacity(name, capacity, self._tell, wide)
            self._servers[name] = known
            # A server is asked anew by whatever the file says now: its address and its key may be others.
            reader = _reader(provider, capacity, settings.secrets.get(f"providers.{name}.api_key"))
            if name in readers and kept:
                reader.kind = readers[name].kind or reader.kind
            self._readers[name] = reader
            self._pools[name] = frozenset(
                pool for pool in configuration.pools if name in configuration.providers_of(pool)
            )
        self._wake.set()
        self._tell()

    @property
    def servers(self) -> Mapping[str, ServerCapacity]:
        """What is known of each provider that has a limit."""
        return self._limited

    def on_changed(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever a limit is another one."""
        self._callbacks.append(callback)

    def measured(self, source: Source) -> Source:
        """The source, counted and timed if its provider has a capacity."""
        server = self._servers.get(source.name)
        return source if server is None else WatchedSource(source, Measured(server))

    async def run(self) -> None:
        """Ask the servers, and count who shares them, until cancelled. Without any it does nothing."""
        while True:
            self._wake.clear()
            if not self._servers:
                await self._wake.wait()
                continue
            import httpx  # noqa: PLC0415 - where there is something to ask

            # Certificates are read only for a server that has one: that takes a moment, and some megabytes.
            secure = any(reader.is_secure for reader in self._readers.values())
            async with httpx.AsyncClient(verify=secure) as client, asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._count())]
                tasks += [group.create_task(self._ask(client, name)) for name in self._readers]
                await self._wake.wait()
                for task in tasks:
                    task.cancel()

    async def _ask(self, client: httpx.AsyncClient, name: str) -> None:
        """Ask one server, again and again."""
        reader, server = self._readers[name], self._servers[name]
        is_here = reader.is_on_loopback
        in_vain = 0
        while True:
            if reader.asks:
                try:
                    load = await reader.read(client)
                except NotTold as error:
                    in_vain += 1
                    server.silent(str(error))
                    if not server.is_told:
                        reader.forget()
                else:
                    in_vain = 0
                    if reader.kind is not None:
                        server.told(reader.kind, load)
            if is_here and server.counts and reader.kind in (None, "ollama"):
                server.gpu_is_full(is_full=memory_is_full())
            share = max(1.0, server.workers / WORKERS_SHARING_ASKS)
            pause_seconds = ASK_SECONDS * share if server.under_way else ASK_SECONDS_IDLE
            if in_vain >= AT_ONCE_ASKS:
                may_never_tell = server.is_wide and not server.has_told
                unknown = ASK_SECONDS_UNASKED if may_never_tell else ASK_SECONDS_UNKNOWN
                seldom = ASK_SECONDS_SILENT if server.is_told else unknown
                pause_seconds = min(seldom, ASK_SECONDS * 2.0 ** min(in_vain, 12))
            await self._pause(server, pause_seconds * random.uniform(0.8, 1.0), in_vain)

    async def _pause(self, server: ServerCapacity, seconds: float, in_vain: int) -> None:
        """Wait so long; of a server that gets its first turn no longer than is usual while it has some."""
        if server.under_way or in_vain >= AT_ONCE_ASKS:
            await asyncio.sleep(seconds)
        else:
            await first_of(server.busy, seconds=seconds)

    async def _count(self) -> None:
        """Count the workers of each server, again and again."""
        health = LoopHealth(log, "capacity.workers_not_counted")
        while True:
            # Nobody shares what has no limit.
            await self._has_limits.wait()
            found = 0
            try:
                records = await read_records(self._requests, WORKERS_BUCKET, WorkerRecord)
                found = len(records)
                for name, server in self._servers.items():
                    self._share(server, self._pools[name], records)
                health.succeeded()
            except TaskmeshError as error:
                health.failed(error)
            await asyncio.sleep(COUNT_SECONDS + COUNT_SECONDS_PER_WORKER * found)

    def _share(self, server: ServerCapacity, pools: frozenset[str], records: list[WorkerRecord]) -> None:
        since = now() - timedelta(seconds=SILENT_SECONDS)
        living = {
            record.worker
            for record in records
            if record.time >= since and not record.draining and pools.intersection(record.pools)
        }
        # Its own record may not be there yet.
        names = sorted(living | {self._worker})
        server.shared(len(names), names.index(self._worker))

    def _tell(self) -> None:
        self._limited = {name: server for name, server in self._servers.items() if server.counts}
        if self._limited:
            self._has_limits.set()
        else:
            self._has_limits.clear()
        for callback in self._callbacks:
            callback()


def _with_capacity(configuration: Configuration) -> dict[str, tuple[ServerConfiguration, CapacitySettings]]:
    """The providers that pools use and that have a table of their capacity, with that; and those near by, without."""
    used = {provider for pool in configuration.pools for provider in configuration.providers_of(pool)}
    return {
        name: (provider, provider.capacity or CapacitySettings())
        for name in sorted(used)
        if isinstance(provider := configuration.providers[name], ServerConfiguration)
        and (provider.capacity is not None or is_near(provider.host or ""))
    }


def _reader(provider: ServerConfiguration, capacity: CapacitySettings, key: str | None) -> LoadReader:
    from inference_worker.capacity.reading import LoadReader  # noqa: PLC0415 - it takes httpx along

    return LoadReader(provider, capacity, key)
