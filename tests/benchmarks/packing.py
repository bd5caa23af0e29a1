"""How fast tasks are packed: by one steward at full pace and in a tenth of the time, by three, and beside new ones."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from steward.archiving.packing import GATHERS_SHARE
from steward.retention import SHARE_MAX
from tests.benchmarks import places
from tests.benchmarks.bench import Run, Stage, cpu_seconds, stage
from tests.benchmarks.figures import Figure, percentile
from tests.benchmarks.later_steward import AHEAD_VARIABLE, ROUND_EVENT, SHARE_VARIABLE, STEWARD
from tests.support.months import Filler
from tests.support.patience import within
from tests.support.processes import ROOT, Process

AGE = timedelta(seconds=50)
"""How long after its end a task is packed here. For a tenth of it one may wait for others, to be packed with them."""
AHEAD_SECONDS = AGE.total_seconds()
"""So that what has just ended is due, once it has waited for more."""
VARIABLES = {
    "MESH_PACK_AFTER_HOURS": str(AGE / timedelta(hours=1)),
    "MESH_RECONCILE_AFTER_SECONDS": "86400",
    "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("libs", "services", ".")),
}
NO_LONGER_SECONDS = (AGE * (1 + GATHERS_SHARE)).total_seconds()
"""So that nothing waits for more."""
FEED_TASKS_PER_SECOND = 100
SHARE_AT_MOST = 0.1
FULL_PACE = "1"
POLL_SECONDS = 0.05
FEED_LOOK_SECONDS = 0.5
PACK_SECONDS_MAX = 200.0


@dataclass
class Work:
    """What some stewards did in a while. Shares are of a core, all stewards together."""

    seconds: float
    packed: int
    steward_share: float
    broker_share: float
    rounds_share: float
    """Of the time of each, on average, in which it was in a round."""

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return self.packed / self.seconds

    @property
    def note(self) -> str:
        """CPU by task."""
        each = [share * self.seconds / max(1, self.packed) * 1e6 for share in (self.steward_share, self.broker_share)]
        crowd = f"{os.getloadavg()[0]:.1f} processes want a core"
        return f"{each[0]:.0f} µs of CPU for a task in stewards, {each[1]:.0f} in the broker; {crowd}"


class Bench:
    """A store, and the stewards that pack it."""

    def __init__(self, on: Stage, run: Run) -> None:
        self.on = on
        self.filler = Filler(on.connection, f"127.0.0.1:{on.mesh.broker.port}", run.seed)

    async def at_work(self, stewards: int, share: str, seconds: float | None = None) -> Work:
        """Start stewards, let them pack all there is, or for this long, and stop them."""
        variables = {AHEAD_VARIABLE: str(NO_LONGER_SECONDS), SHARE_VARIABLE: share}
        processes = await asyncio.gather(*(self.on.mesh.start(STEWARD, **variables) for _ in range(stewards)))

        async def meanwhile() -> None:
            ends_at = time.monotonic() + (seconds or PACK_SECONDS_MAX)
            async with within(PACK_SECONDS_MAX):
                while time.monotonic() < ends_at:
                    await asyncio.sleep(POLL_SECONDS)
                    if not await self.filler.hot_tasks():
                        break

        before = await self.filler.hot_tasks()
        work = await self._measured(processes, meanwhile)
        await asyncio.gather(*(process.stop() for process in processes))
        work.packed = before - await self.filler.hot_tasks()
        return work

    async def beside_new_ones(self, seconds: int) -> tuple[Work, list[int]]:
        """One steward at its own pace while tasks come; how many wait, now and then."""
        steward = await self.on.mesh.start(STEWARD, **{AHEAD_VARIABLE: str(AHEAD_SECONDS)})
        hot: list[int] = []

        async def look_on() -> None:
            while True:
                hot.append(await self.filler.hot_tasks())
                await asyncio.sleep(FEED_LOOK_SECONDS)

        async def meanwhile() -> None:
            looking = asyncio.create_task(look_on())
            await self.filler.fill(FEED_TASKS_PER_SECOND * seconds, tasks_per_second=FEED_TASKS_PER_SECOND)
            looking.cancel()

        work = await self._measured([steward], meanwhile)
        await steward.stop()
        work.packed = FEED_TASKS_PER_SECOND * seconds - await self.filler.hot_tasks()
        return work, hot

    async def _measured(self, stewards: list[Process], meanwhile: Callable[[], asyncio.Future[None] | object]) -> Work:
        broker = self.on.mesh.broker.process
        assert broker is not None
        pids = [process.pid for process in stewards]
        rounds = len(self.on.mesh.logs_of(ROUND_EVENT))
        before = sum(map(cpu_seconds, pids)), cpu_seconds(broker.pid)
        began_at = time.perf_counter()
        await meanwhile()  # type: ignore[misc]  # each is a coroutine
        took = time.perf_counter() - began_at
        in_rounds = sum(float(str(line["seconds"])) for line in self.on.mesh.logs_of(ROUND_EVENT)[rounds:])
        return Work(
            took,
            0,
            (sum(map(cpu_seconds, pids)) - before[0]) / took,
            (cpu_seconds(broker.pid) - before[1]) / took,
            in_rounds / took / len(stewards),
        )


async def measure(run: Run) -> list[Figure]:
    """With a broker that syncs each second, and one that syncs each write."""
    figures: list[Figure] = []
    count = run.scale(20_000, 3_000)
    for sync_interval in ("1s", "always"):
        async with stage(run.folder / sync_interval, sync_interval=sync_interval, **VARIABLES) as on:
            bench = Bench(on, run)
            await bench.filler.fill(count)
            tenth = await bench.at_work(1, str(SHARE_MAX), run.scale(15, 6))
            alone = await bench.at_work(1, FULL_PACE)
            await bench.filler.fill(count)
            three = await bench.at_work(3, FULL_PACE)
            feed, hot = await bench.beside_new_ones(run.scale(30, 10))
            await bench.at_work(1, FULL_PACE)
            await places.check(on.connection.requests, bench.filler.ledger)
        figures += _figures(f"packing, sync {sync_interval}", alone, tenth, three)
        figures += _feed(f"packing, sync {sync_interval}", feed, hot)
    return figures


def _figures(name: str, alone: Work, tenth: Work, three: Work) -> list[Figure]:
    return [
        Figure(f"{name}: one steward at full pace", "/s", alone.rate, note=alone.note),
        Figure(
            f"{name}: one steward in a tenth of the time",
            "/s",
            tenth.rate,
            target=f"≥ {FEED_TASKS_PER_SECOND}",
            met=tenth.rate >= FEED_TASKS_PER_SECOND,
            note=f"{tenth.note}; in a round for {tenth.rounds_share:.0%} of the time",
        ),
        Figure(f"{name}: three stewards at full pace", "/s", three.rate, "/s alone", alone.rate, note=three.note),
    ]


def _feed(name: str, feed: Work, hot: list[int]) -> list[Figure]:
    half = len(hot) // 2
    first, second = max(hot[:half]), max(hot[half:])
    what = f"{FEED_TASKS_PER_SECOND} new tasks a second"
    return [
        Figure(
            f"{name}: backlog with {what}, at most",
            "tasks",
            second,
            "in the first half",
            first,
            "≤ 1.5",
            second <= 1.5 * first,
            note=f"over {feed.seconds:.0f} s; the median {percentile(hot, 50):.0f}. What has waited for "
            f"{AGE.total_seconds() / 10:.0f} s is packed together",
            rounds={"subject": [float(each) for each in hot]},
        ),
        Figure(
            f"{name}: share of the time in rounds, with {what}",
            "",
            feed.rounds_share,
            target=f"≤ {SHARE_AT_MOST}",
            met=feed.rounds_share <= SHARE_AT_MOST,
            note=f"of a core {feed.steward_share:.0%} for the steward, {feed.broker_share:.0%} for broker and new ones",
        ),
    ]
