"""What retention costs with very many tasks stored, and whether who follows a task notices that it is at work."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from nats.aio.msg import Msg

from contracts import subjects
from steward.retention import MILESTONES_PER_ROUND_MAX, RECORDS_PER_ROUND_MAX, SHARE_MAX
from tests.benchmarks.bench import STREAM_BYTES_MAX, Run, Stage, cpu_seconds, stage
from tests.benchmarks.figures import Figure, beside, percentile
from tests.benchmarks.later_steward import LATER_VARIABLE
from tests.support.clients import open_stream
from tests.support.past import PastTask, store, stored_messages, stored_subjects, time_of_the_broker
from tests.support.processes import ROOT, Process
from tests.support.tasks import append_text, begin_journal, turn_work
from tests.support.waiting import until

AGE = timedelta(days=30)
RETENTION = {
    "MESH_RETENTION_DAYS": str(AGE.days),
    "MESH_DELTA_RETENTION_HOURS": str(AGE.days * 24),
    # What waits here was only written down: its timers would be found to be missing, and be put back.
    "MESH_RECONCILE_AFTER_SECONDS": "86400",
    "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("libs", "services", ".")),
}
STEWARD = "tests.benchmarks.later_steward"
DEAD_LETTER_EVERY = 10
"""One in so many of the tasks that are due has a dead letter too."""
STREAMS = ("EVENTS", "DEAD_LETTERS", "KV_tasks")
REQUESTS_PER_ROUND_MAX = 2 + 4 * RECORDS_PER_ROUND_MAX + MILESTONES_PER_ROUND_MAX
"""Two pages; for each record a look at its journal and three purges; for each milestone at most one purge."""
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

    def stored(self) -> dict[str, int]:
        """Messages by subject that lie there because of them."""
        logs = {subjects.journal_log("default", task): 2 for task in self.tasks}
        return logs | {subjects.journal_delta("default", task): 1 for task in self.tasks}


class Population:
    """All that is stored, and what of it must be left at the end."""

    def __init__(self, run: Run) -> None:
        self.count = run.scale(100_000, 10_000)
        self.due = self.count // 40
        self.left: dict[str, int] = {}
        """Messages by subject."""
        self.later = ""
        """When all that is due is, and nothing else."""

    async def start_steward(self, on: Stage) -> Process:
        """Start one that looks from then."""
        return await on.start(STEWARD, **{LATER_VARIABLE: self.later})

    async def write(self, on: Stage) -> None:
        """Store it, the old ones first, as they would have been; every other of those waits for a person."""
        waits = PastTask(ended=False)
        old = [
            past
            for number in range(self.due)
            for past in (PastTask(ended=True, dead_letter=number % DEAD_LETTER_EVERY == 0), waits)
        ]
        for task, past in zip(await store(on.connection.requests, old), old, strict=True):
            self.left |= stored_subjects(task, past, deltas=False) if past is waits else {}
        self.later = (await time_of_the_broker(on.connection.requests) + AGE).isoformat()
        young = [PastTask(ended=True)] * (self.count - len(old))
        for task, past in zip(await store(on.connection.requests, young), young, strict=True):
            self.left |= stored_subjects(task, past, deltas=True)

    async def is_purged(self, on: Stage) -> bool:
        """Whether no more is stored than should be left."""
        await asyncio.sleep(POLL_SECONDS)
        infos = [await on.connection.requests.api(f"STREAM.INFO.{stream}") for stream in STREAMS]
        return sum(int(info["state"]["messages"]) for info in infos) <= sum(self.left.values())

    async def check(self, on: Stage) -> None:
        """All that was due is gone, and nothing else: `RuntimeError` if not, since that is no matter of time."""
        found: dict[str, int] = {}
        for stream in STREAMS:
            found |= await stored_messages(on.connection.requests, stream)
        lost = sum(found.get(subject, 0) < count for subject, count in self.left.items())
        remaining = sum(self.left.get(subject, 0) < count for subject, count in found.items())
        if lost or remaining:
            raise RuntimeError(f"{lost} subjects lost what must stay, {remaining} still have what must go")


@dataclass
class Work:
    """What the steward did meanwhile. The shares are of one core."""

    seconds: float
    steward_share: float
    broker_share: float
    purged: int
    """Tasks."""
    requests: list[int]
    """Of retention, in each round."""


@asynccontextmanager
async def counted(on: Stage) -> AsyncIterator[list[int]]:
    """Count the requests of the steward's retention, round by round, where any client of the account can see them."""
    rounds: list[int] = []

    async def see(message: Msg) -> None:
        kind = message.subject.removeprefix("$JS.API.")
        if message.reply.startswith("_INBOX_steward."):
            if kind == "DIRECT.GET.KV_tasks":  # what a round begins with
                rounds.append(0)
            if rounds and kind.startswith(("DIRECT.GET.", "STREAM.MSG.GET.EVENTS", "STREAM.PURGE.")):
                rounds[-1] += 1

    subscription = await on.connection.client.subscribe("$JS.API.>", cb=see)
    try:
        yield rounds
    finally:
        await subscription.unsubscribe()


async def measure(run: Run) -> list[Figure]:
    """Followers while the steward is stopped and while it is at work, in turns; then the rest of its work alone."""
    population = Population(run)
    stopped, at_work = Followers(), Followers()
    async with stage(run.folder / "retention", "stream_edge", **RETENTION) as on:
        await population.write(on)
        warm_up = Followers()
        await warm_up.come(on, WARM_UP_SECONDS)
        for _ in range(run.scale(5, 2)):
            await stopped.come(on, run.scale(4, 2))
            # It begins anew each time, and finds work: it looks at all that waits again.
            steward = await population.start_steward(on)
            await at_work.come(on, run.scale(4, 2))
            await steward.stop()
        for followers in (warm_up, stopped, at_work):
            population.left |= followers.stored()
        steward = await population.start_steward(on)
        megabytes_before = steward.resident_bytes() / 2**20
        busy = await _work(on, steward, until(lambda: population.is_purged(on), DRAIN_SECONDS_MAX))
        megabytes = steward.resident_bytes() / 2**20
        await population.check(on)
        idle = await _work(on, steward, asyncio.sleep(IDLE_SECONDS))
    stored = f"{population.count:,} tasks stored; {population.due:,} due, and {population.due:,} as old that wait"
    at_work_cpu, idle_cpu = busy.steward_share + busy.broker_share, idle.steward_share + idle.broker_share
    return [
        *_latencies("a new follower's first event", at_work.opening, stopped.opening),
        *_latencies("a token to its follower", at_work.live, stopped.live),
        Figure(
            "retention: tasks purged",
            "/s",
            busy.purged / busy.seconds,
            note=f"{stored}, which are looked at in between; rounds may take {SHARE_MAX:.0%} of the time",
        ),
        _requests(busy),
        Figure(
            "retention: CPU of steward and broker",
            "of a core",
            at_work_cpu,
            "when nothing is due",
            idle_cpu,
            note=f"the broker's part of it {busy.broker_share:.2f}, and {idle.broker_share:.2f}",
        ),
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
        requests,
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


def _requests(work: Work) -> Figure:
    most = max(work.requests, default=0)
    return Figure(
        "retention: requests in a round, at most",
        "",
        most,
        "by its bounds",
        REQUESTS_PER_ROUND_MAX,
        target="≤ 1",
        met=most <= REQUESTS_PER_ROUND_MAX,
        note=f"{len(work.requests)} rounds in {work.seconds:.0f} s",
        rounds={"subject": [float(count) for count in work.requests]},
    )
