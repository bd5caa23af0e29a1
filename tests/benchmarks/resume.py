"""How long a resume takes, against what else is stored: it must not matter."""

from __future__ import annotations

import asyncio
import random
import statistics
import time

from contracts import subjects
from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.journal.events import OutputDelta, Stamp, TaskCompleted
from contracts.journal.parts import Timings, Usage
from mesh.clock import now
from mesh.journal.journal import Journal
from tests.benchmarks.bench import STREAM_BYTES_MAX, Run, Stage, stage
from tests.benchmarks.figures import Figure, beside
from tests.support.clients import open_stream
from tests.support.tasks import begin_journal, turn_work
from tests.support.waiting import until

TAIL = 100
"""Events that the client has missed, the task's end among them."""
RATIO_MAX = 1.5
_FLUSH_EVERY = 2_000


class Tail:
    """A task whose client comes back for its last events. `before`: events of its own that lie before them."""

    def __init__(self, on: Stage, journal: Journal) -> None:
        self.on = on
        self.task = journal.state.task
        self.next_n = journal.state.next_n
        self.after = 0
        """The client's cursor."""
        self.milliseconds: list[float] = []

    @classmethod
    async def write(cls, on: Stage, before: int, *, strangers_between: int = 0) -> Tail:
        """Its history, then the tail, with so many events of other tasks between each two of its own."""
        tail = cls(on, await begin_journal(on.connection.requests, turn_work()))
        await tail._deltas(before - 1, 0)
        last = encode(OutputDelta(*tail._stamp(), turn=1, text="token "))
        # Answered once it is stored, and so is all before it.
        ack = await on.connection.requests.publish(subjects.journal_delta("default", tail.task), last)
        tail.after = ack.seq
        await tail._deltas(TAIL - 1, strangers_between)
        end = TaskCompleted(*tail._stamp(), output="", usage=Usage(), timings=Timings())
        await on.connection.requests.publish(subjects.journal_log("default", tail.task), encode(end))
        return tail

    async def _deltas(self, count: int, strangers_between: int) -> None:
        for number in range(count):
            payload = encode(OutputDelta(*self._stamp(), turn=1, text="token "))
            await self.on.connection.client.publish(subjects.journal_delta("default", self.task), payload)
            if strangers_between:
                await write_strangers(self.on, strangers_between)
            if number % _FLUSH_EVERY == 0:
                await self.on.connection.client.flush()

    def _stamp(self) -> Stamp:
        self.next_n += 1
        return Stamp(new_id(), self.task, "default", self.next_n - 1, now())

    async def resume(self) -> float:
        """Reconnect with the cursor, and read to the end. Milliseconds."""
        address = self.on.process("stream_edge").address
        began_at = time.perf_counter()
        status, reader, writer = await open_stream(address, self.task, self.after, STREAM_BYTES_MAX)
        assert status == 200
        received = await reader.readuntil(b"event: task.completed")
        took = (time.perf_counter() - began_at) * 1000
        writer.close()
        assert received.count(b"event: output.delta") == TAIL - 1
        return took


async def write_strangers(on: Stage, count: int) -> None:
    """As many other tasks, with one event each. Nobody follows them: only their place in the stream matters."""
    for number in range(count):
        task = new_id()
        payload = encode(OutputDelta(new_id(), task, "default", 0, now(), turn=1, text="token "))
        await on.connection.client.publish(subjects.journal_delta("default", task), payload)
        if number % _FLUSH_EVERY == _FLUSH_EVERY - 1:
            await on.connection.client.flush()


async def measure(run: Run) -> list[Figure]:
    """Histories and other tasks, few and many, measured in turns; the limit is the fastest of them."""
    many = run.scale(100_000, 5_000)
    async with stage(run.folder / "resume", "stream_edge") as on:
        await write_strangers(on, 10)
        tails = {"100 before": await Tail.write(on, 100)}
        for before in (1_000, 10_000, many):
            tails[f"{before:,} before"] = await Tail.write(on, before)
        await write_strangers(on, many)
        tails[f"100 before, {many:,} other tasks before"] = await Tail.write(on, 100)
        tails["interleaved, 10 strange events between"] = await Tail.write(on, 100, strangers_between=10)
        await _settled(on)
        order = random.Random(run.seed)
        for round_number in range(run.scale(25, 8)):
            # In another order each time: who comes first finds caches as the others left them.
            for tail in order.sample(list(tails.values()), len(tails)):
                took = await tail.resume()
                if round_number:
                    tail.milliseconds.append(took)
        # Not the first one: what is stored after it costs too, and a limit must not hide that.
        fastest = min(tails.values(), key=lambda tail: statistics.median(tail.milliseconds))
        figures = [_figure(name, tail, fastest) for name, tail in tails.items() if tail is not fastest]
        figures += await _cold(run, on, fastest, tails)
    return figures


def _figure(name: str, tail: Tail, fastest: Tail) -> Figure:
    limit = "ms, the fastest of these"
    figure = beside(f"resume of {TAIL} events: {name}", "ms", tail.milliseconds, limit, fastest.milliseconds)
    if "interleaved" not in name:
        figure.target = f"≤ {RATIO_MAX}"
        figure.met = figure.ratio is not None and figure.ratio <= RATIO_MAX
    return figure


async def _cold(run: Run, on: Stage, fastest: Tail, tails: dict[str, Tail]) -> list[Figure]:
    """The first resume after the broker was started again: it has no block of the journal in memory."""
    cold: list[float] = []
    longest = max(tails.values(), key=lambda tail: tail.next_n)
    for _ in range(run.scale(3, 1)):
        await on.mesh.broker.stop()
        await on.mesh.broker.start()
        await until(lambda: on.connection.is_connected)
        await _settled(on)
        await on.process("stream_edge").stop()
        # A new edge on the old address: what it takes to connect is not part of the resume.
        await on.start("stream_edge")
        cold.append(await longest.resume())
    return [
        Figure(
            "resume, cold, the longest history",
            "ms",
            statistics.median(cold),
            "ms, the fastest, warm",
            statistics.median(fastest.milliseconds),
            note="the first after a restart of broker and edge; the system's page cache is warm",
            rounds={"subject": cold},
        )
    ]


async def _settled(on: Stage) -> None:
    """Wait until the stream answers, and what was published without an answer is in it."""

    async def answers() -> bool:
        try:
            await on.connection.requests.api("STREAM.INFO.EVENTS")
        except Exception:  # whatever a broker says that is not ready
            await asyncio.sleep(0.1)
            return False
        return True

    await until(answers)
