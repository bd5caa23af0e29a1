"""What a long run costs: a turn far behind in a run beside an early one, reading it, and many calls of one turn."""

from __future__ import annotations

import asyncio
import statistics
import time
from itertools import pairwise
from pathlib import Path

import httpx

from mesh.journal.journal import Journal
from mesh.task.state import TaskState
from tests.benchmarks.agents import declare_add
from tests.benchmarks.bench import Run, Stage, stage
from tests.benchmarks.figures import Figure, interleaved, percentile
from tests.support.agents import Agents

SERVICES = ("ingress", "inference_worker", "tool_runner", "steward")
TURNS_PER_WINDOW = 10
"""Turns whose CPU is taken together."""
EARLY, RATIO_MAX = 10, 1.5
GET_MILLISECONDS_MAX = 2.0
CALLS = 64
CALLS_SECONDS_MAX = 0.3
ONE_CALL = '!call add {"a": 1, "b": 2}'


async def measure(run: Run) -> list[Figure]:
    """An agent of 1,000 turns with a call each; then calls of one turn that do nothing."""
    turns = run.scale(1_000, 100)
    async with stage(run.folder / "long", *SERVICES) as on:
        await declare_add(on)
        agents = Agents(on.connection)
        script = "\n!then\n".join([ONE_CALL] * (turns - 1) + ["done"])
        task = await agents.submit(script, tools=["add"], max_turns=turns)
        cpu = await _cpu_by_turn(on, task)
        got, bare = await _gets(on, task, run.scale(200, 20))
        parallel = [await _parallel(agents) for _ in range(run.scale(10, 3))]
        await agents.close()
    early = statistics.mean(cpu[EARLY - TURNS_PER_WINDOW // 2 : EARLY + TURNS_PER_WINDOW // 2])
    late = statistics.mean(cpu[-TURNS_PER_WINDOW - 1 : -1])
    return [
        Figure(
            f"CPU of turn {turns:,} with its call",
            "ms",
            late,
            f"ms, turn {EARLY}",
            early,
            f"≤ {RATIO_MAX}",
            late <= RATIO_MAX * early,
            note="all services together, the mean of ten turns",
        ),
        Figure(
            f"GET of it after {turns:,} turns",
            "ms",
            percentile(got, 50),
            "ms, GET /health/live",
            percentile(bare, 50),
            f"≤ {GET_MILLISECONDS_MAX:g} ms",
            percentile(got, 50) <= GET_MILLISECONDS_MAX,
            note=f"p95 {percentile(got, 95):.1f} ms",
        ),
        Figure(
            f"{CALLS} calls of one turn that do nothing",
            "s",
            statistics.median(parallel),
            target=f"≤ {CALLS_SECONDS_MAX:g} s",
            met=statistics.median(parallel) <= CALLS_SECONDS_MAX,
            note="from the turn's end to the claim of the next one",
            rounds={"subject": parallel},
        ),
    ]


async def _cpu_by_turn(on: Stage, task: str) -> list[float]:
    """CPU milliseconds of all services in each turn, which a call follows."""
    journal = await Journal.load(on.connection.requests, "default", task)
    marks: list[float] = [_cpu_milliseconds(on)]
    while journal.state.terminal is None:
        await journal.catch_up()
        claimed = max(journal.state.turns, default=0)
        at = _cpu_milliseconds(on)
        marks += [at] * (claimed - len(marks) + 1)
        await asyncio.sleep(0.002)
    return [after - before for before, after in pairwise(marks)]


def _cpu_milliseconds(on: Stage) -> float:
    threads = [each for process in on.by_service.values() for each in Path(f"/proc/{process.pid}/task").iterdir()]
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e6


async def _gets(on: Stage, task: str, rounds: int) -> list[list[float]]:
    """Milliseconds of reading a task, and of the least that the same service answers, over one connection."""
    async with httpx.AsyncClient(base_url=on.mesh.ingress_url) as client:

        async def get(path: str) -> float:
            began_at = time.perf_counter()
            (await client.get(path)).raise_for_status()
            return (time.perf_counter() - began_at) * 1000

        return await interleaved(rounds, lambda: get(f"/v1/tasks/{task}"), lambda: get("/health/live"))


async def _parallel(agents: Agents) -> float:
    task = await agents.submit("\n".join([ONE_CALL] * CALLS) + "\n!then\ndone", tools=["add"])
    state: TaskState = await agents.until_status(task, "completed")
    first, second = state.turn(1).completed, state.claims["2", 0]
    assert first is not None
    return (second.time - first.time).total_seconds()
