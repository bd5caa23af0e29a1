"""Months of tasks on one box: what so many ended ones cost the broker, and what clients notice of them.

`python -m tests.benchmarks months --tasks 2000000` fills that many, while stewards pack them; progress goes to stderr.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field

from tests.benchmarks import places, reading
from tests.benchmarks.bench import Run, Stage, stage
from tests.benchmarks.figures import Figure
from tests.benchmarks.later_steward import AHEAD_VARIABLE, SHARE_VARIABLE, STEWARD
from tests.benchmarks.store import MIB, Disk, Restart, broker_mib, disk, restart, slope, store_of
from tests.support.months import Filler, Task
from tests.support.processes import ROOT, Process

TASKS, TASKS_QUICK = 50_000, 5_000
HOT_TASKS_MAX = 100_000
"""The filler waits while there are more that are not packed: as many as a day of one task a second."""
STEWARDS = 2
AHEAD_SECONDS = 24 * 3600 + 30 * 60
"""A day, and the quarter of an hour that one may wait for others: all that was filled in is due at once."""
PARTS = (0.25, 0.5, 1.0)
"""Of all tasks, where memory and disk are measured: a slope needs more than two points."""
RESIDENT_MIB_MAX = 600.0
DISK_BYTES_MAX = 1.5 * 1024
"""For each packed task."""
START_SECONDS_MAX = 5.0
TASKS_PER_SECOND_MIN = 100
"""As slowly as a run of any size may go, before it counts as stuck."""
INDEX_SECONDS_MAX = 900.0
PROGRESS_SECONDS = 10.0
POLL_SECONDS = 0.5
SERVICES = ("ingress", "stream_edge", "steward")
QUIET = {
    # What waits here was only written down: its messages would be found to be missing, and be put back.
    "MESH_RECONCILE_AFTER_SECONDS": "86400",
    "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("libs", "services", ".")),
}


@dataclass(frozen=True)
class Point:
    """What so many packed tasks cost, after a restart."""

    tasks: int
    resident_mib: float
    disk: Disk
    start_seconds: float


@dataclass
class Months:
    """A store that fills."""

    on: Stage
    filler: Filler
    count: int
    points: list[Point] = field(default_factory=list)
    stewards: list[Process] = field(default_factory=list)
    fill_seconds: float = 0.0
    resident_mib_max: float = 0.0
    """While it was filled and packed."""
    _said_at: float = 0.0

    async def grow(self) -> None:
        """Fill and pack, and look at each of the parts."""
        variables = {AHEAD_VARIABLE: str(AHEAD_SECONDS), SHARE_VARIABLE: "1"}
        self.stewards = [await self.on.mesh.start(STEWARD, **variables) for _ in range(STEWARDS)]
        for part in PARTS:
            wanted = int(self.count * part)
            began_at = time.monotonic()
            await self.filler.fill(wanted - len(self.filler.ledger), hot_tasks_max=HOT_TASKS_MAX, at_looks=self._look)
            await self._until_packed()
            self.fill_seconds += time.monotonic() - began_at
            back = await restart(self.on, signal.SIGTERM)
            self.points.append(Point(wanted, back.resident_mib, disk(store_of(self.on)), back.start_seconds))
            say(f"{wanted:,} packed: {back.resident_mib:.0f} MiB, {self.points[-1].disk.total / MIB:.0f} MiB of disk")
        for steward in self.stewards:
            await steward.stop()

    async def _until_packed(self) -> None:
        while (hot := await self.filler.hot_tasks()) > 0:
            await self._look(hot)
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self, hot: int) -> None:
        self.resident_mib_max = max(self.resident_mib_max, broker_mib(self.on))
        if time.monotonic() - self._said_at > PROGRESS_SECONDS:
            self._said_at = time.monotonic()
            say(f"{len(self.filler.ledger):,} written, {hot:,} not packed, broker {broker_mib(self.on):.0f} MiB")

    def sample(self, count: int, first: int, end: int, seed: int) -> list[Task]:
        """Tasks at random, of those that were written as number `first` up to `end`."""
        numbers = random.Random(seed).sample(range(first, end), min(count, end - first))
        return [self.filler.ledger[number] for number in numbers]

    def of_tenant(self, tenant: str) -> Task:
        """Any task of a tenant."""
        while True:
            task = self.filler.ledger[random.randrange(len(self.filler.ledger))]
            if task.tenant == tenant:
                return task


def say(words: str) -> None:
    """A line of progress."""
    print(f"months: {words}", file=sys.stderr, flush=True)


def seconds_max(run: Run) -> float:
    """How long it may take."""
    return 600.0 + tasks_of(run) / TASKS_PER_SECOND_MIN


def tasks_of(run: Run) -> int:
    """How many it fills in."""
    return run.tasks or run.scale(TASKS, TASKS_QUICK)


async def measure(run: Run) -> list[Figure]:
    """Fill, pack and restart; then read as clients do, beside an empty store."""
    count = tasks_of(run)
    hot = max(1_000, count // 50)
    built_seconds = 0.0
    async with stage(run.folder / "full", **QUIET) as on:
        months = Months(on, Filler(on.connection, f"127.0.0.1:{on.mesh.broker.port}", run.seed), count)
        await months.grow()
        after_kill = await restart(on, signal.SIGKILL)
        say(f"{hot:,} tasks that stay as they are")
        await months.filler.fill(hot)
        for service in SERVICES:
            await on.start(service, MESH_INDEX_FOLDER=str(run.folder / "index"))
            if service == "ingress":
                built_seconds = await reading.until_listed(on, INDEX_SECONDS_MAX)
        with_hot = await restart(on, signal.SIGTERM, cold=True)
        figures = [*_growth(months), *_restarts(months, after_kill, with_hot, hot)]
        figures.append(Figure("months: tasks a second, as the ingress builds its index", "/s", count / built_seconds))
        say(f"reads, after the index was built in {built_seconds:.0f} s")
        figures += await _reads(run, months, hot)
        figures.append(_memory("the broker's memory after these reads", broker_mib(on)))
        async with stage(run.folder / "empty", *SERVICES, **QUIET) as empty:
            say("beside an empty store")
            figures += await reading.against_empty(run, on, empty)
        figures.append(await reading.posts_beside_lists(on, run, months.of_tenant))
        say("the checker")
        # What was posted meanwhile is none of the ledger's.
        await places.check(on.connection.requests, months.filler.ledger, seed=run.seed, strangers=True)
    return figures


async def _reads(run: Run, months: Months, hot: int) -> list[Figure]:
    count, many = months.count, run.scale(1_000, 100)
    packed = months.sample(3 * many, 0, count, run.seed)
    cold, warm, followed = packed[:many], packed[many : 2 * many], packed[2 * many :]
    hot_tasks = months.sample(many, count, count + hot, run.seed)
    what = "; the first reads after a start of the broker, with nothing of its store in the page cache"
    return [
        *await reading.get_tasks(months.on, "packed, cold", cold, reading.PACKED_MILLISECONDS_MAX, what),
        *await reading.get_tasks(months.on, "packed", warm, reading.PACKED_MILLISECONDS_MAX),
        *await reading.get_tasks(months.on, "hot", hot_tasks, reading.HOT_MILLISECONDS_MAX),
        *await reading.follow_packed(months.on, followed[: many // 5]),
        *await reading.list_tasks(months.on, months.of_tenant),
    ]


def _growth(months: Months) -> list[Figure]:
    whole = months.points[-1]
    by_stream = sorted(whole.disk.by_stream.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{name} {size / whole.tasks:.0f}" for name, size in by_stream if size / whole.tasks >= 1)
    bytes_each = whole.disk.total / whole.tasks
    memory = slope([(point.tasks, point.resident_mib) for point in months.points]) * 100_000
    room = slope([(point.tasks, point.disk.total / MIB) for point in months.points]) * 100_000
    measured = "; ".join(
        f"{point.tasks:,}: {point.resident_mib:.0f} and {point.disk.total / MIB:.0f} MiB" for point in months.points
    )
    return [
        Figure(
            "months: tasks filled in and packed", "/s", months.count / months.fill_seconds, note=f"{STEWARDS} stewards"
        ),
        Figure(
            "disk of a packed task",
            "bytes",
            bytes_each,
            target=f"≤ {DISK_BYTES_MAX:.0f}",
            met=bytes_each <= DISK_BYTES_MAX,
            note=parts,
        ),
        Figure("memory for each 100,000 packed tasks more", "MiB", memory, note=measured),
        Figure("disk for each 100,000 packed tasks more", "MiB", room),
        Figure("memory of the broker at most, while it is filled", "MiB", months.resident_mib_max),
    ]


def _restarts(months: Months, after_kill: Restart, with_hot: Restart, hot: int) -> list[Figure]:
    whole = months.points[-1]
    return [
        _memory(f"memory after a restart, {whole.tasks:,} packed", whole.resident_mib),
        _memory(f"memory after a restart, {hot:,} hot ones as well", with_hot.resident_mib),
        _start("start of the broker after SIGTERM", whole.start_seconds),
        _start("start of the broker after kill -9", after_kill.start_seconds),
        _start(
            "start of the broker, cold page cache",
            with_hot.start_seconds,
            f"it took {with_hot.stop_seconds:.1f} s to stop",
        ),
    ]


def _memory(name: str, mib: float) -> Figure:
    return Figure(name, "MiB", mib, target=f"≤ {RESIDENT_MIB_MAX:.0f}", met=mib <= RESIDENT_MIB_MAX)


def _start(name: str, seconds: float, note: str = "") -> Figure:
    return Figure(name, "s", seconds, target=f"≤ {START_SECONDS_MAX:g} s", met=seconds <= START_SECONDS_MAX, note=note)
