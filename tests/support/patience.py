"""How long tests wait: bounds in seconds of a quiet machine, which a busy one stretches while the wait lasts.

    async with within(20):
        await asked.wait()

A bound says how long something may take on a machine that has nothing else to do. A thread ticks ten times a second,
and looks each time how many processes want a core, and how many cores there are. Where three want each, a tick counts a
third; one that comes late counts once, however late it is. So a bound of 20 s ends a hang in 20 s on a quiet machine,
in a minute on one that gives a third, and on none in more than `STRETCH_MAX` times its seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

TICK_SECONDS = 0.1
WATCH_TICKS = 10
STRETCH_MAX = 20.0
"""A bound ends after so many times its seconds, whatever the machine gives."""
RECENT_SHARE = 0.05
"""How much one tick counts in the average of the last seconds."""
SLACK, LEASE_SLACK = 2.0, 4.0
"""So many may want each core before a time, and a lease, are made longer: tests set them with that much to spare."""
POLL_SECONDS = 0.01


class Machine:
    """What the machine gives: ticks that weigh less the more processes want its cores. `stat`: as /proc/stat."""

    def __init__(self, stat: Path = Path("/proc/stat"), cores: int | None = None) -> None:
        self._stat = stat
        self._cores = cores or os.cpu_count() or 1
        self._stolen = 0
        self._jiffies = 0
        self._passed = 0.0
        self._crowd = self._look()
        self._recent = self._crowd
        self._ticked_at = time.monotonic()
        self.watchers: list[Callable[[], None]] = []
        """What is called once a second."""

    @property
    def seconds(self) -> float:
        """How long a quiet machine would have needed for what this one has done since the start."""
        since = min(time.monotonic() - self._ticked_at, TICK_SECONDS)
        return self._passed + max(0.0, since) / self._crowd

    @property
    def crowd(self) -> float:
        """How many want a core for each there is, in the last few seconds; 1 if none has to wait."""
        return self._recent

    def run(self) -> None:
        """Tick, for as long as the process lives."""
        for tick in itertools.count(1):
            time.sleep(TICK_SECONDS)
            self.tick()
            if tick % WATCH_TICKS == 0:
                for watch in self.watchers:
                    watch()

    def tick(self) -> None:
        """Let one tick pass, however long it took."""
        self._crowd = self._look()
        self._passed += TICK_SECONDS / self._crowd
        self._recent += RECENT_SHARE * (self._crowd - self._recent)
        self._ticked_at = time.monotonic()

    def _look(self) -> float:
        """How many want a core for each that there is, now; at least 1."""
        try:
            lines = self._stat.read_text().splitlines()
        except OSError:
            return max(1.0, _load_average() / self._cores)
        counts = {name: rest for name, _, rest in (line.partition(" ") for line in lines)}
        running, blocked = int(counts["procs_running"]) - 1, int(counts["procs_blocked"])  # without this thread
        return max(1.0, running / self._cores, blocked) / (1.0 - self._stolen_share(counts["cpu"]))

    def _stolen_share(self, jiffies: str) -> float:
        """What a hypervisor gave to others since the last look, at most nine tenths."""
        times = [int(each) for each in jiffies.split()]
        stolen, total = times[7] if len(times) > 7 else 0, sum(times[:8])
        share = (stolen - self._stolen) / max(1, total - self._jiffies) if self._jiffies else 0.0
        self._stolen, self._jiffies = stolen, total
        return min(0.9, max(0.0, share))


def _load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


MACHINE = Machine()
threading.Thread(target=MACHINE.run, name="patience", daemon=True).start()


class Bound:
    """A bound that runs. `seconds` are those of a quiet machine."""

    def __init__(self, seconds: float, machine: Machine = MACHINE) -> None:
        self.seconds = seconds
        self._machine = machine
        self._began = time.monotonic(), machine.seconds

    @property
    def spent(self) -> float:
        """How much of it is over."""
        wall, machine = self._began
        return max(self._machine.seconds - machine, (time.monotonic() - wall) / STRETCH_MAX)

    @property
    def left(self) -> float:
        """How much of it is left, 0 when it is over: so long it lasts at least."""
        return max(0.0, self.seconds - self.spent)

    def __str__(self) -> str:
        """For whoever reads that it was not enough."""
        took = time.monotonic() - self._began[0]
        crowd = f"{self._machine.crowd:.1f} that want each core"
        return f"{self.seconds:g} s of a quiet machine ({took:.1f} s of this one, with {crowd})"


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[Bound]:
    """Run the block within a bound; `TimeoutError` beyond it."""
    loop = asyncio.get_running_loop()
    bound = Bound(seconds)
    try:
        async with asyncio.timeout(None) as timeout:

            def look() -> None:
                if bound.left:
                    looking.append(loop.call_later(bound.left, look))
                    looking.pop(0)
                else:
                    timeout.reschedule(loop.time())

            looking = [loop.call_later(bound.left, look)]
            try:
                yield bound
            finally:
                looking[0].cancel()
    except TimeoutError:
        if timeout.expired():
            raise TimeoutError(f"not within {bound}") from None
        raise


async def ended(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait for the end of a process; its exit status."""
    async with within(seconds):
        while (status := process.poll()) is None:  # noqa: ASYNC110 - the system sets no event
            await asyncio.sleep(POLL_SECONDS)
    return status


def stretched(seconds: float, slack: float = SLACK) -> float:
    """A time for a setting, as long as the machine needs now: longer where more than `slack` want each core."""
    return round(seconds * max(1.0, min(MACHINE.crowd, STRETCH_MAX) / slack), 3)


def lease(seconds: float) -> float:
    """A lease for a test that waits until it passes: no shorter than a process needs here to renew it.

    In halves of a second, which are whole nanoseconds in every language's arithmetic.
    """
    return math.ceil(2 * stretched(seconds, LEASE_SLACK)) / 2
