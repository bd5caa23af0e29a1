"""How long commands take against tasks that are written to all the time, next to the broker and at a distance."""

from __future__ import annotations

import asyncio
import math
import statistics
from typing import NamedTuple

from contracts.journal.events import TERMINAL_TYPES
from tests.benchmarks.bench import Run
from tests.benchmarks.figures import Figure
from tests.support.command_latency import KINDS, Commander, Kind, commanding

ROUND_TRIPS = 3
MEDIAN_SECONDS_MAX = 0.1
WORST_SECONDS_MAX = 1.5
"""Both beside `ROUND_TRIPS` round trips."""
QUIET_RATIO_MAX = 2.0
"""How much longer a quiet task's cancel may take beside many commands, and three round trips more."""
COMMANDS_BESIDE = 100
BESIDE_RTT_SECONDS = 0.12
"""Here a worker writes to each task eight times a second, which lets one machine have a hundred of them."""


class Distance(NamedTuple):
    """A round trip, and how fast tasks are written to at it, by how many writers beside each other."""

    rtt_seconds: float | None
    per_second: float
    at_once: int

    @property
    def name(self) -> str:
        """For the table."""
        at = "loopback" if self.rtt_seconds is None else f"{self.rtt_seconds * 1000:g} ms"
        return f"{at}, {self.per_second:g}/s"

    @property
    def round_trips_seconds(self) -> float:
        """Those that a limit grants."""
        return ROUND_TRIPS * (self.rtt_seconds or 0.0)


DISTANCES = (
    Distance(None, 1000, 1),
    Distance(0.002, 300, 1),
    Distance(0.02, 20, 16),
    Distance(0.02, 300, 6),
    Distance(0.12, 300, 8),
)


async def measure(run: Run) -> list[Figure]:
    """Each kind of command at each distance."""
    figures: list[Figure] = []
    for number, distance in enumerate(DISTANCES):
        async with commanding(run.folder / f"distance-{number}", distance.rtt_seconds, seed=run.seed) as commander:
            for kind in KINDS:
                took = await _rounds(commander, kind, distance, run.scale(50, 4))
                figures.append(_figure(kind, distance, took))
    return figures


async def measure_beside(run: Run) -> list[Figure]:
    """A quiet task's cancel, alone and while a hundred others are cancelled that are written to."""
    async with commanding(run.folder / "beside", BESIDE_RTT_SECONDS, seed=run.seed) as commander:
        return [await _beside(run, commander)]


async def _rounds(commander: Commander, kind: Kind, distance: Distance, count: int) -> list[float]:
    """Seconds of each; infinite where the command had no effect in time."""
    took: list[float] = []
    while len(took) < count:
        at_once = min(distance.at_once, count - len(took))
        came = await asyncio.gather(*(commander.measure(kind, distance.per_second) for _ in range(at_once)))
        took += [math.inf if seconds is None else seconds for seconds in came]
    return took


def _figure(kind: Kind, distance: Distance, took: list[float]) -> Figure:
    median, worst = statistics.median(took), max(took)
    never = sum(map(math.isinf, took))
    median_max, worst_max = (bound + distance.round_trips_seconds for bound in (MEDIAN_SECONDS_MAX, WORST_SECONDS_MAX))
    return Figure(
        f"{kind}, {distance.name}",
        "ms",
        median * 1000,
        target=f"≤ {median_max * 1000:.0f} ms, worst {worst_max:.1f} s",
        met=median <= median_max and worst <= worst_max,
        note=f"worst of {len(took)}: {worst * 1000:.0f} ms; without effect: {never}",
        rounds={"subject": took},
    )


async def _beside(run: Run, commander: Commander) -> Figure:
    alone: list[float] = []
    beside: list[float] = []
    for _ in range(run.scale(5, 1)):
        alone.append(await commander.measure_quiet_cancel())
        busy = await asyncio.gather(*(commander.begin("cancel", 20) for _ in range(COMMANDS_BESIDE)))
        quiet, milestones = await commander.begin_quiet()
        *_, since = await asyncio.gather(
            *(commander.send("cancel", task) for task in (*(task for task, _ in busy), quiet))
        )
        beside.append((await milestones.first("task.cancelled")).stored_at - since)
        await asyncio.gather(*(told.first(*TERMINAL_TYPES) for _, told in busy))
    worst, idle = max(beside), statistics.median(alone)
    most = QUIET_RATIO_MAX * idle + ROUND_TRIPS * BESIDE_RTT_SECONDS
    return Figure(
        f"quiet cancel beside {COMMANDS_BESIDE}, {BESIDE_RTT_SECONDS * 1000:g} ms",
        "ms",
        statistics.median(beside) * 1000,
        "ms alone",
        idle * 1000,
        f"≤ {most * 1000:.0f} ms",
        worst <= most,
        f"worst of {len(beside)}: {worst * 1000:.0f} ms",
        {"subject": beside, "limit": alone},
    )
