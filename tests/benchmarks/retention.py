"""What packing costs with very many tasks stored, and whether who follows a task notices that it is at work."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from nats.aio.msg import Msg

from contracts.streams import ARCHIVE_BUCKET
from steward.archiving.packing import GATHERS_SHARE
from steward.retention import SHARE_MAX
from tests.benchmarks import places
from tests.benchmarks.bench import STREAM_BYTES_MAX, Run, Stage, cpu_seconds, stage
from tests.benchmarks.figures import Figure, beside, percentile
from tests.benchmarks.later_steward import LATER_VARIABLE, STEWARD
from tests.benchmarks.store import MIB
from tests.support.clients import open_stream
from tests.support.ended_tasks import EVENTS_OF_TASK
from tests.support.months import Filler
from tests.support.past import LOG_EVENTS, PastTask, store, time_of_the_broker
from tests.support.processes import ROOT, Process
from tests.support.tasks import append_text, begin_journal, turn_work
from tests.support.waiting import until

AGE = timedelta(seconds=18)
"""How long after its end a task is packed here: of the tenth of it that may be waited for more, one has to wait."""
HOURS = str(AGE / timedelta(hours=1))
RETENTION = {
    "MESH_PACK_AFTER_HOURS": HOURS,
    "MESH_DELTA_RETENTION_HOURS": HOURS,
    # What waits here was only written down: its timers would be found to be missing, and be put back.
    "MESH_RECONCILE_AFTER_SECONDS": "86400",
    "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("libs", "services", ".")),
}
CHUNK = 50
"""Ended tasks and such that wait take turns in so many."""
CHANGES_MAX = 3.5
"""For each packed task: its record and its journal are purged, its place is written; all else is done for many."""
_READS = "$JS.API.DIRECT.GET."
FOLLOWED_EVENTS = 3
"""Of each task that is followed."""
RATIO_MAX = 1.2
RATIO_P95_MAX = 1.5
"""How much longer a follower may wait while the steward is at work. One in ten meets a round, and runs differ."""
FOLLOWER_EVERY_SECONDS = 0.05
"""Enough of them to meet every round, too few to keep the machine busy by themselves."""
WARM_UP_SECONDS = 1.0
IDLE_SECONDS = 5.0
POLL_SECONDS = 0.2
DRAIN_SECONDS_MAX = 220.0


class Followers:
    """New tasks, each with a new follower, and how many milliseconds those waited."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.opening: list[float] = []
        """From the connection to the task's first event."""
        self.live: list[float] = []
        """From the append of a token to its frame."""

    async def come(self, on: Stage, seconds: float) -> None:
        """One after the other, for this long."""
        ends_at = time.perf_counter() + seconds
        while (began_at := time.perf_counter()) < ends_at:
            await self._one(on)
            await asyncio.sleep(max(0.0, began_at + FOLLOWER_EVERY_SECONDS - time.perf_counter()))

    async def _one(self, on: Stage) -> None:
        journal = await begin_journal(on.connection.requests, turn_work())
        self.tasks.append(journal.state.task)
        address = on.process("stream_edge").address
        opened_at = time.perf_counter()
        status, reader, writer = await open_stream(address, journal.state.task, None, STREAM_BYTES_MAX)
        assert status == 200
        await reader.readuntil(b"event: task.queued")
        self.opening.append((time.perf_counter() - opened_at) * 1000)
        await reader.readuntil(b"event: step.claimed")
        frame = asyncio.create_task(reader.readuntil(b"event: output.delta"))
        appended_at = time.perf_counter()
        await asyncio.gather(append_text(journal, "token "), frame)
        self.live.append((time.perf_counter() - appended_at) * 1000)
        writer.close()


@dataclass
class Population:
    """All that is stored, and what of it must be left at the end."""

    on: Stage
    filler: Filler
    count: int
    due: int
    """How many of them are packed."""
    waiting: list[str] = field(default_factory=list)
    """As old as those that are due."""
    followed: list[str] = field(default_factory=list)
    later: str = ""
    """When all that is due is, and nothing else."""

    async def write(self) -> None:
        """Store it, the old ones first, as they would have been; every other of those waits for a person."""
        requests = self.on.connection.requests
        for done in range(0, self.due, CHUNK):
            several = min(CHUNK, self.due - done)
            await self.filler.fill(several)
            self.waiting += await store(requests, [PastTask(ended=False)] * several)
        await asyncio.sleep((AGE * GATHERS_SHARE).total_seconds())
        self.later = (await time_of_the_broker(requests) + AGE).isoformat()
        await self.filler.fill(self.count - 2 * self.due)

    async def start_steward(self) -> Process:
        """Start one that looks from then."""
        return await self.on.start(STEWARD, **{LATER_VARIABLE: self.later})

    async def is_packed(self) -> bool:
        """Whether no more is stored than should be left."""
        await asyncio.sleep(POLL_SECONDS)
        infos = [await self.on.connection.requests.api(f"STREAM.INFO.{name}") for name in ("EVENTS", "KV_tasks")]
        events, records = (int(info["state"]["messages"]) for info in infos)
        young = self.count - 2 * self.due
        # Of those that wait the delta, too: it goes later than what has ended is packed.
        events_left = (
            young * EVENTS_OF_TASK + len(self.waiting) * (LOG_EVENTS + 1) + len(self.followed) * FOLLOWED_EVENTS
        )
        return events <= events_left and records <= young + len(self.waiting)

    async def check(self) -> None:
        """All that was due is packed, and nothing else: `RuntimeError` if not, since that is no matter of time."""
        found = await places.check(self.on.connection.requests, self.filler.ledger, strangers=True)
        ledger = self.filler.ledger
        due = {f"{ledger[number].tenant}.{ledger[number].id}" for number in range(self.due)}
        waiting = {f"default.{task}" for task in self.waiting}
        if set(found.packed) != due or not waiting <= found.hot & found.records:
            raise RuntimeError(f"{len(due ^ set(found.packed))} were packed, or not, that should not, or should")


@dataclass
class Work:
    """What the steward did in a while, and what it took: shares are of a core."""

    seconds: float
    steward_share: float
    broker_share: float
    packed: int
    """Tasks."""
    reads: int
    """Of one message, most of them."""
    others: int
    """Other requests: what changes something, and what asks for states."""


@asynccontextmanager
async def counted(on: Stage) -> AsyncIterator[list[str]]:
    """The subjects of the steward's requests, where any client of the account can see them."""
    seen: list[str] = []

    async def see(message: Msg) -> None:
        if message.reply.startswith("_INBOX_steward."):
            seen.append(message.subject)

    filters = ("$JS.API.>", f"$KV.{ARCHIVE_BUCKET.name}.>", "$KV.walks.>", "archive.>")
    subscriptions = [await on.connection.client.subscribe(each, cb=see) for each in filters]
    try:
        yield seen
    finally:
        for subscription in subscriptions:
            await subscription.unsubscribe()


async def measure(run: Run) -> list[Figure]:
    """Followers while the steward is stopped and while it is at work, in turns; then the rest of its work alone."""
    stopped, at_work, warm_up = Followers(), Followers(), Followers()
    async with stage(run.folder / "retention", "stream_edge", **RETENTION) as on:
        filler = Filler(on.connection, f"127.0.0.1:{on.mesh.broker.port}", run.seed)
        population = Population(on, filler, run.scale(100_000, 10_000), run.scale(5_000, 2_000))
        await population.write()
        await warm_up.come(on, WARM_UP_SECONDS)
        for _ in range(run.scale(5, 2)):
            await stopped.come(on, run.scale(4, 2))
            steward = await population.start_steward()
            await at_work.come(on, run.scale(4, 2))
            await steward.stop()
        population.followed = [*warm_up.tasks, *stopped.tasks, *at_work.tasks]
        steward = await population.start_steward()
        megabytes_before = steward.resident_bytes() / MIB
        busy = await _work(on, steward, until(population.is_packed, DRAIN_SECONDS_MAX))
        megabytes = steward.resident_bytes() / MIB
        await population.check()
        idle = await _work(on, steward, asyncio.sleep(IDLE_SECONDS))
    return [
        *_latencies("a new follower's first event", at_work.opening, stopped.opening),
        *_latencies("a token to its follower", at_work.live, stopped.live),
        *_costs(population, busy, idle),
        Figure("retention: memory of the steward", "MiB", megabytes, "MiB at its start", megabytes_before),
    ]


async def _work(on: Stage, steward: Process, meanwhile: Awaitable[None]) -> Work:
    broker = on.mesh.broker.process
    assert broker is not None
    records, began_at = await _records(on), time.perf_counter()
    before = cpu_seconds(steward.pid), cpu_seconds(broker.pid)
    async with counted(on) as requests:
        await meanwhile
    took = time.perf_counter() - began_at
    return Work(
        took,
        (cpu_seconds(steward.pid) - before[0]) / took,
        (cpu_seconds(broker.pid) - before[1]) / took,
        records - await _records(on),
        sum(subject.startswith(_READS) for subject in requests),
        sum(not subject.startswith(_READS) for subject in requests),
    )


async def _records(on: Stage) -> int:
    return int((await on.connection.requests.api("STREAM.INFO.KV_tasks"))["state"]["messages"])


def _latencies(name: str, at_work: list[float], stopped: list[float]) -> list[Figure]:
    limit = "ms, steward stopped"
    median = beside(f"retention: {name}", "ms", at_work, limit, stopped)
    p95 = Figure(f"{median.name}, p95", "ms", percentile(at_work, 95), limit, percentile(stopped, 95))
    for figure, ratio_max in ((median, RATIO_MAX), (p95, RATIO_P95_MAX)):
        figure.target = f"≤ {ratio_max}"
        figure.met = figure.ratio is not None and figure.ratio <= ratio_max
    return [median, p95]


def _costs(population: Population, busy: Work, idle: Work) -> list[Figure]:
    due = population.due
    stored = f"{population.count:,} tasks stored; {due:,} due, and {due:,} as old that wait"
    others = busy.others / max(1, busy.packed)
    return [
        Figure(
            "retention: tasks packed",
            "/s",
            busy.packed / busy.seconds,
            note=f"{stored}, which are passed over; rounds may take {SHARE_MAX:.0%} of the time",
        ),
        Figure(
            "retention: requests for each packed task, but for reads",
            "",
            others,
            target=f"≤ {CHANGES_MAX:g}",
            met=others <= CHANGES_MAX,
            note=f"{busy.others:,} for {busy.packed:,} tasks, and {busy.reads:,} reads of a message, of all walks",
        ),
        Figure(
            "retention: CPU of steward and broker",
            "of a core",
            busy.steward_share + busy.broker_share,
            "when nothing is due",
            idle.steward_share + idle.broker_share,
            note=f"the broker's part of it {busy.broker_share:.2f}, and {idle.broker_share:.2f}; "
            f"{(idle.reads + idle.others) / idle.seconds:.0f} requests a second when nothing is due",
        ),
    ]
