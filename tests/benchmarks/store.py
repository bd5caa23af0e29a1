"""What a broker's store costs: memory, disk by stream, and how long a start takes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from mesh.broker.connection import connect
from tests.benchmarks.bench import Stage
from tests.support.patience import ended
from tests.support.waiting import until

STOP_SECONDS_MAX = 120.0
START_SECONDS_MAX = 120.0
ANSWERS = ("EVENTS", "KV_tasks", "ARCHIVE", "KV_archive")
"""Streams that have to answer before a broker counts as started."""
SETTLE_SECONDS = 3.0
"""Until what a start has needed for itself is given back, as far as it is."""
MIB = 2**20


@dataclass(frozen=True)
class Restart:
    """How a broker came back."""

    stop_seconds: float
    start_seconds: float
    """From the start of the process to the last of the answers."""
    resident_mib: float


@dataclass(frozen=True)
class Disk:
    """Bytes that the files of each stream take, in blocks of the file system."""

    by_stream: dict[str, int]

    @property
    def total(self) -> int:
        """Of all."""
        return sum(self.by_stream.values())


async def restart(on: Stage, how: signal.Signals, *, cold: bool = False) -> Restart:
    """Stop the broker, and start it again. `cold`: with nothing of its store in the system's page cache."""
    broker = on.mesh.broker
    assert broker.process is not None
    began_at = time.perf_counter()
    broker.process.send_signal(how)
    await ended(broker.process, STOP_SECONDS_MAX)
    stopped_at = time.perf_counter()
    if cold:
        await asyncio.to_thread(forget, store_of(on))
    started_at = time.perf_counter()
    await broker.start(START_SECONDS_MAX)
    async with connect(on.mesh.settings, "bench") as connection:
        for stream in ANSWERS:
            await connection.requests.api(f"STREAM.INFO.{stream}", timeout_seconds=START_SECONDS_MAX)
    took = time.perf_counter() - started_at
    await until(lambda: on.connection.is_connected)
    await asyncio.sleep(SETTLE_SECONDS)
    return Restart(stopped_at - began_at, took, resident_mib(broker.process.pid))


def store_of(on: Stage) -> Path:
    """The folder that the broker writes to."""
    return on.mesh.broker.store


def disk(store: Path) -> Disk:
    """What lies there now."""
    by_stream: dict[str, int] = {}
    for path in store.rglob("*"):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue  # The broker goes on meanwhile.
        if path.is_file():
            parts = path.relative_to(store).parts
            stream = parts[parts.index("streams") + 1] if "streams" in parts else "-"
            by_stream[stream] = by_stream.get(stream, 0) + found.st_blocks * 512
    return Disk(by_stream)


def forget(store: Path) -> None:
    """Drop a store from the page cache (Linux), as if the machine had just been switched on."""
    os.sync()
    for path in store.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def resident_mib(pid: int) -> float:
    """Memory of a process (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def broker_mib(on: Stage) -> float:
    """Memory of the broker."""
    assert on.mesh.broker.process is not None
    return resident_mib(on.mesh.broker.process.pid)


def slope(points: list[tuple[int, float]]) -> float:
    """How much more there is for each task more: the line that fits best."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
