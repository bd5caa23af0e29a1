"""`python -m tests.benchmarks.edge_day`: 24 hours of an edge box at one task a second, played in some minutes.

The broker stamps with real time. What the steward reads of a stamp, and the time that it goes by, are both set forward
alike: a minute of the day begins when it is played. So all that is bounded by a time, a lease or a day, is so in the
box's own hours. Yesterday is filled in first, since a box that has run for a while packs yesterday's tasks.
"""

from __future__ import annotations

import argparse
import bisect
import logging
import random
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from unittest import mock

import structlog
import uvloop

from contracts.codec import decode
from contracts.headers import TIME_STAMP
from mesh.broker.direct_get import Stored
from mesh.clock import now
from mesh.journal.journal import Journal
from steward.archiving.packing import GATHERS
from steward.retention import SHARE_MAX, Retention
from steward.sweeping import Sweeps
from tests.benchmarks import places
from tests.benchmarks.bench import Stage, cpu_seconds, stage
from tests.benchmarks.figures import Figure, table
from tests.benchmarks.store import MIB, Restart, broker_mib, disk, restart, store_of
from tests.support.months import Filler
from tests.support.small_disk import small_disk

MINUTE = timedelta(minutes=1)
DISK_MIB = 2_048
PACK_AFTER_HOURS = 24.0
RETENTION_SHARE = 1.5
"""Tasks are kept for so many times that: in the second half of the day as much goes as comes."""
SAMPLE = 50
"""Tasks that are read each hour, at random."""
SLACK = timedelta(minutes=2)
"""What has come since the steward looked, beside those that wait for more."""
FLAT_RATIO_MAX, FLAT_MIB = 1.15, 16.0
"""What is flat grows by no more than that; a few MiB come and go."""


class PlayedTime:
    """What time it is in the box, and what its stamps say."""

    def __init__(self) -> None:
        self._real: list[datetime] = []
        self._played: list[datetime] = []
        self.at = now()

    def begin_minute(self) -> None:
        """The next minute begins now."""
        self._real.append(now())
        self._played.append(self.at)
        self.at += MINUTE

    def stamp(self, real: datetime) -> datetime:
        """A stamp of the broker, in the box's time: as far into its minute as it was when it was played."""
        place = max(0, bisect.bisect_right(self._real, real) - 1)
        return self._played[place] + min(real - self._real[place], MINUTE)

    def patch(self) -> ExitStack:
        """Let all that reads a stamp in this process read the box's."""

        def stored_at(stored: Stored) -> datetime:
            return self.stamp(decode(f'"{stored.headers[TIME_STAMP]}"'.encode(), datetime))

        stack = ExitStack()
        stack.enter_context(mock.patch.object(Stored, "stored_at", property(stored_at)))
        return stack


@dataclass
class Hour:
    """How the box stands at the end of one."""

    hot: int
    resident_mib: float
    disk_mib: float
    archive_mib: float
    rounds_seconds: float


@dataclass
class Day:
    """The box."""

    on: Stage
    filler: Filler
    clock: PlayedTime
    tasks_per_minute: int
    kept: int
    """So many tasks are not old enough to go."""
    retention: Retention
    sweeps: Sweeps
    hours: list[Hour] = field(default_factory=list)
    hot_max: int = 0
    rounds_seconds: float = 0.0
    busy_minutes: int = 0
    """In which a steward's share of the time was used up."""

    async def yesterday(self, hours: float) -> None:
        """Tasks of the day before, none of which is due yet."""
        for _ in range(int(hours * 60)):
            self.clock.begin_minute()
            await self.filler.fill(self.tasks_per_minute)

    async def play(self, hours: int) -> None:
        """Hour by hour: tasks come, the steward does its rounds, and some are read."""
        for _ in range(hours):
            before = self.rounds_seconds
            for _ in range(60):
                await self._minute()
            await self._read_some()
            stored = disk(store_of(self.on))
            hour = Hour(
                await self.filler.hot_tasks(),
                broker_mib(self.on),
                stored.total / MIB,
                stored.by_stream.get("ARCHIVE", 0) / MIB,
                self.rounds_seconds - before,
            )
            self.hours.append(hour)
            held = f"{hour.hot:,} hot, broker {hour.resident_mib:.0f} MiB, disk {hour.disk_mib:.0f} MiB"
            say(f"hour {len(self.hours)}: {held}, {hour.archive_mib:.0f} of packs; rounds {hour.rounds_seconds:.1f} s")

    async def _minute(self) -> None:
        self.clock.begin_minute()
        await self.filler.fill(self.tasks_per_minute)
        self.hot_max = max(self.hot_max, await self.filler.hot_tasks())
        began_at = time.perf_counter()
        allowed = MINUTE.total_seconds() * SHARE_MAX
        more = True
        while more and time.perf_counter() - began_at < allowed:
            more = await self.retention.round()
        self.busy_minutes += more
        await self.sweeps.round()
        self.rounds_seconds += time.perf_counter() - began_at

    async def _read_some(self) -> None:
        first = max(0, len(self.filler.ledger) - self.kept)
        for _ in range(SAMPLE):
            task = self.filler.ledger[random.randrange(first, len(self.filler.ledger))]
            journal = await Journal.load(self.on.connection.requests, task.tenant, task.id)
            if journal.state.status != task.status:
                raise RuntimeError(f"{task} reads as {journal.state.status}")


def say(words: str) -> None:
    """A line of progress."""
    print(f"edge day: {words}", file=sys.stderr, flush=True)


async def measure(folder: Path, hours: int, tasks_per_second: int, pack_after_hours: float) -> list[Figure]:
    """Play the day."""
    clock = PlayedTime()
    kept = timedelta(hours=pack_after_hours) * RETENTION_SHARE
    async with stage(folder) as on:
        settings = replace(
            on.mesh.settings,
            retention_days=kept / timedelta(days=1),
            pack_after_hours=pack_after_hours,
            delta_retention_hours=pack_after_hours,
        )
        requests = on.connection.requests
        clock.at = now()
        day = Day(
            on,
            Filler(on.connection, f"127.0.0.1:{on.mesh.broker.port}"),
            clock,
            tasks_per_second * 60,
            int(kept.total_seconds()) * tasks_per_second,
            Retention(requests, settings, "edge", lambda: clock.at),
            Sweeps(requests, settings, "edge", lambda: clock.at),
        )
        with clock.patch():
            await day.yesterday(pack_after_hours)
            morning = await restart(on, signal.SIGTERM)
            say(f"yesterday: {len(day.filler.ledger):,} tasks, {morning.resident_mib:.0f} MiB after a restart")
            broker = on.mesh.broker.process
            assert broker is not None
            before = time.process_time(), cpu_seconds(broker.pid)
            await day.play(hours)
            cpu = time.process_time() - before[0] + cpu_seconds(broker.pid) - before[1]
            evening = await restart(on, signal.SIGTERM)
            say(f"{evening.resident_mib:.0f} MiB after a restart; the checker")
            gone = max(0, len(day.filler.ledger) - day.kept)
            found = await places.check(requests, day.filler.ledger, dropped=gone)
    bound = int((timedelta(hours=pack_after_hours) + GATHERS + SLACK).total_seconds() * tasks_per_second)
    return [_memory(day, morning, evening), *_figures(day, bound, found, gone, cpu)]


def _figures(day: Day, bound: int, found: places.Places, gone: int, cpu: float) -> list[Figure]:
    per_second = day.tasks_per_minute / 60
    half = len(day.hours) // 2
    first, second = day.hours[:half], day.hours[half:]
    seconds = len(day.hours) * 3600
    kept = len(day.filler.ledger) - gone
    late = len(found.hot) + found.packed.total() - kept
    one_pack = int(GATHERS.total_seconds() * per_second) + 512
    return [
        Figure(
            "edge day: hot tasks at most",
            "",
            day.hot_max,
            "until they are packed, and those that wait for more",
            bound,
            "≤ 1",
            day.hot_max <= bound,
        ),
        _flat("disk but for packs", *[[each.disk_mib - each.archive_mib for each in part] for part in (first, second)]),
        _flat("disk for packs, in the last quarter", *_quarters([hour.archive_mib for hour in day.hours])),
        Figure(
            "edge day: share of the time in rounds",
            "%",
            day.rounds_seconds / seconds * 100,
            target=f"≤ {SHARE_MAX:.0%}",
            met=day.rounds_seconds <= SHARE_MAX * seconds,
            note=f"{day.busy_minutes} minutes used all of it; {cpu / seconds:.1%} of a core in all, new tasks included",
        ),
        Figure(
            "edge day: tasks that should have gone, and have not yet",
            "",
            late,
            "in a pack",
            one_pack,
            "≤ 1",
            late <= one_pack,
            note=f"of {gone:,}. Each of the {kept:,} others is in exactly one place, and found there: "
            f"{len(found.hot):,} hot, {found.packed.total():,} in {found.packs:,} packs; no record without a journal",
        ),
    ]


def _memory(day: Day, morning: Restart, evening: Restart) -> Figure:
    most = max(hour.resident_mib for hour in day.hours)
    memory = _flat("memory of the broker after a restart", [morning.resident_mib], [evening.resident_mib])
    memory.note = (
        f"{most:.0f} MiB at most while it was played: what the server has read it keeps for ten real seconds, "
        f"which have hours in them here"
    )
    return memory


def _quarters(values: list[float]) -> tuple[list[float], list[float]]:
    """The third quarter, and the last."""
    return values[len(values) // 2 : len(values) * 3 // 4], values[len(values) * 3 // 4 :]


def _flat(name: str, first: list[float], second: list[float]) -> Figure:
    value, limit = max(second or first), max(first or second)
    return Figure(
        f"edge day: {name}",
        "MiB",
        value,
        "MiB before",
        limit,
        f"≤ {FLAT_RATIO_MAX}",
        value <= max(FLAT_RATIO_MAX * limit, limit + FLAT_MIB),
        rounds={"first": first, "second": second},
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.edge_day", description=__doc__)
    parser.add_argument("--hours", type=int, default=24, help="how many are played (24)")
    parser.add_argument("--tasks-per-second", type=int, default=1, help="how many come (1)")
    parser.add_argument("--pack-after-hours", type=float, default=PACK_AFTER_HOURS, help="until one is packed (24)")
    parser.add_argument("--disk-mib", type=int, default=DISK_MIB, help=f"size of the disk ({DISK_MIB:,})")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    began_at = time.monotonic()
    # An end like any other: the small disk must not stay mounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with (
        tempfile.TemporaryDirectory(prefix="taskmesh-edge-") as folder,
        small_disk(Path(folder) / "disk", arguments.disk_mib * MIB) as small,
    ):
        figures = uvloop.run(measure(small, arguments.hours, arguments.tasks_per_second, arguments.pack_after_hours))
    print(table(figures))
    print(f"\n{arguments.hours} hours in {time.monotonic() - began_at:.0f} s, on a disk of {arguments.disk_mib:,} MiB")
    return 0 if all(figure.met is not False for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
