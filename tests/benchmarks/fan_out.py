"""What one edge delivers to 500 viewers, per second of its CPU, and what a viewer costs in memory. Limit: bare SSE."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Sequence
from typing import Any

from contracts import subjects
from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.journal.events import OutputDelta
from mesh.broker.direct_get import last_sequence
from mesh.clock import now
from mesh.journal.journal import Journal
from tests.benchmarks.bench import LIMIT_SERVER, Run, Stage, cpu_seconds, line, load, stage
from tests.benchmarks.figures import Figure, beside, interleaved
from tests.support.processes import Process
from tests.support.tasks import begin_journal, turn_work
from tests.support.waiting import until

VIEWERS = 500
PER_VIEWER_PER_SECOND = 10.0
"""Tokens a second that each viewer sees: 5,000/s in all, below what either side can do, so that CPU is compared."""


async def measure(run: Run) -> list[Figure]:
    """Each viewer on a task of its own; then ten tasks that fifty each watch; then idle streams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        figures: list[Figure] = []
        for tasks in (VIEWERS, VIEWERS // 50):
            figures += await _measure(run, tasks)
        return figures
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _measure(run: Run, tasks: int) -> list[Figure]:
    events = run.scale(25, 15)
    load_cpu: list[float] = []
    async with stage(run.folder / f"fan-out-{tasks}", "stream_edge", LIMIT_SERVER) as on:
        edge, limit = on.process("stream_edge"), on.process(LIMIT_SERVER)
        journals = [await begin_journal(on.connection.requests, turn_work()) for _ in range(tasks)]
        size = len(_delta(journals[0], 2))

        async def through_edge() -> float:
            after = {journal.state.task: journal.state.revision for journal in journals}
            paths = [_path(journals[number % tasks], after) for number in range(VIEWERS)]
            return await _per_cpu_second(edge, on, paths, journals)

        async def bare() -> float:
            return await _per_cpu_second(
                limit, on, [f"/sse/{VIEWERS}/{events}/{PER_VIEWER_PER_SECOND}/{size}"] * VIEWERS
            )

        async def _per_cpu_second(
            process: Process, on: Stage, paths: list[str], written: Sequence[Journal] = ()
        ) -> float:
            async with load(
                "view", address=process.address, paths=paths, events=events, ready="retry:", hold_seconds=0
            ) as viewers:
                await line(viewers)
                before = cpu_seconds(process.pid)
                if written:
                    await _write(on, written, events)
                result = await line(viewers)
                took = cpu_seconds(process.pid) - before
                load_cpu.append(result["load_cpu"])
                return float(result["frames"]) / took

        delivered, limits = await interleaved(run.scale(3, 1), through_edge, bare, warm_up=not run.quick)
        figure = beside(
            f"fan-out, {VIEWERS} viewers of {tasks} tasks",
            "events per CPU-second",
            delivered,
            "bare uvicorn SSE",
            limits,
            note=f"{VIEWERS * PER_VIEWER_PER_SECOND:.0f} events/s offered, all delivered; CPU of the edge's process "
            f"alone; the viewers, a process of their own, took at most {max(load_cpu):.0%} of a core",
        )
        memory = await _memory(on, journals) if tasks == VIEWERS else []
    return [figure, *memory]


def _path(journal: Journal, after: dict[str, int]) -> str:
    task = journal.state.task
    return f"/v1/tasks/{task}/events?after={after[task]}"


async def _write(on: Stage, journals: Sequence[Journal], events: int) -> None:
    """Deltas for all journals at the pace. Not fenced: nobody else writes, and the writer is not what is measured."""
    loop = asyncio.get_running_loop()
    stored = await last_sequence(on.connection.requests, "EVENTS") + events * len(journals)
    began_at = loop.time()
    for number in range(events):
        await asyncio.sleep(max(0.0, began_at + number / PER_VIEWER_PER_SECOND - loop.time()))
        for journal in journals:
            payload = _delta(journal, journal.state.next_n)
            subject = subjects.journal_delta(journal.state.tenant, journal.state.task)
            await on.connection.client.publish(subject, payload)
            journal.state.next_n += 1

    async def all_stored() -> bool:
        return await last_sequence(on.connection.requests, "EVENTS") >= stored

    await until(all_stored)
    for journal in journals:
        # Know its last sequence again: the next round's viewers begin behind it.
        fresh = await Journal.load(on.connection.requests, journal.state.tenant, journal.state.task)
        journal.folded = fresh.folded


def _delta(journal: Journal, n: int) -> bytes:
    state = journal.state
    return encode(OutputDelta(new_id(), state.task, state.tenant, n, now(), turn=1, text=f"t{n} "))


async def _memory(on: Stage, journals: Sequence[Journal]) -> list[Figure]:
    """Of streams that are open and silent, after all of the above has warmed both processes up."""
    per_stream: list[float] = []
    after = {journal.state.task: journal.state.revision for journal in journals}
    for process, paths in (
        (on.process("stream_edge"), [_path(journal, after) for journal in journals]),
        (on.process(LIMIT_SERVER), [f"/sse/{VIEWERS + 1}/1/1/1"] * VIEWERS),
    ):
        fresh = await on.mesh.start(process.service, MESH_EDGE_ADDRESS="127.0.0.1:0")
        before = fresh.resident_bytes()
        parameters: dict[str, Any] = {"address": fresh.address, "paths": paths, "events": 0, "ready": "retry:"}
        async with load("view", **parameters, hold_seconds=30) as viewers:
            await line(viewers)
            per_stream.append((fresh.resident_bytes() - before) / VIEWERS / 1024)
        await fresh.stop()
    edge, bare = per_stream
    return [
        Figure(
            "memory per open stream",
            "KiB",
            edge,
            "KiB, bare uvicorn SSE",
            bare,
            note=f"resident memory of a fresh process with {VIEWERS} silent streams, less that with none",
        )
    ]
