"""What the benchmarks share: a mesh, the limit server and the load generator, each a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import apply, declared
from tests.support import children
from tests.support.broker import Broker
from tests.support.patience import within
from tests.support.processes import Mesh, Process

LIMIT_SERVER = "tests.benchmarks.limit_server"
"""Found from the root of the checkout, where benchmarks are started."""
STREAM_BYTES_MAX = 16 * 1024 * 1024
"""How much of a stream is looked through for one mark."""
LOAD_SECONDS_MAX = 60.0
"""How long one run of the load generator may take."""


@dataclass(frozen=True)
class Run:
    """How this run measures. `scale` picks between a full and a quick run's sizes.

    `tasks`: how many a benchmark fills in whose size can be chosen.
    """

    folder: Path
    seed: int
    quick: bool
    tasks: int | None = None

    def scale(self, full: int, quick: int) -> int:
        """A number of rounds or events."""
        return quick if self.quick else full


@dataclass
class Stage:
    """A running mesh, a connection to its broker, and the limit server where one was asked for."""

    mesh: Mesh
    connection: Connection
    by_service: dict[str, Process]

    def process(self, service: str) -> Process:
        """The process of a service."""
        return self.by_service[service]

    async def start(self, service: str, **variables: str) -> Process:
        """Start one more process."""
        self.by_service[service] = await self.mesh.start(service, **variables)
        return self.by_service[service]


@asynccontextmanager
async def stage(folder: Path, *services: str, sync_interval: str = "1s", **variables: str) -> AsyncIterator[Stage]:
    """A fresh broker with all streams, and these services; everything is stopped at the end."""
    broker = Broker(folder / "broker", sync_interval)
    await broker.start()
    mesh = Mesh(folder, broker, variables)
    try:
        async with connect(mesh.settings, "bench") as connection:
            await apply(connection.requests, declared(mesh.settings), update=False)
            opened = Stage(mesh, connection, {})
            for service in services:
                await opened.start(service)
            yield opened
    finally:
        await asyncio.gather(*(process.stop() for process in mesh.processes if process._popen is not None))
        await broker.stop()


@asynccontextmanager
async def load(mode: str, **parameters: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """The load generator, running: what is to happen meanwhile happens in the block. Read it with `result`."""
    spec = msgspec.json.encode({"mode": mode, **parameters}).decode()
    command = [sys.executable, "-m", "tests.benchmarks.load", spec]
    process = await children.begin(command, stdout=children.PIPE, limit=STREAM_BYTES_MAX)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The next line that the load generator says."""
    assert process.stdout is not None
    async with within(LOAD_SECONDS_MAX):
        said = await process.stdout.readline()
    if not said:
        raise RuntimeError("the load generator ended; see its error above")
    return msgspec.json.decode(said, type=dict[str, Any])


async def run_load(mode: str, **parameters: Any) -> dict[str, Any]:
    """Run the load generator to its end; what it measured."""
    async with load(mode, **parameters) as process:
        return await line(process)


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has taken so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
