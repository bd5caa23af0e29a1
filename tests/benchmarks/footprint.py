"""What each process takes, idle and at work: the figures behind the requests of deploy/kubernetes."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import httpx

from tests.benchmarks.bench import Run, cpu_seconds, stage
from tests.benchmarks.figures import Figure
from tests.support.clients import post_task

SERVICES = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
TASKS_PER_SECOND = 20
PLAIN = "!rate 50\n!say 200"
AGENT = '!rate 50\n!say 100\n!call add {"a": 1, "b": 2}\n!then\n!rate 50\n!say 100'
"""Every fourth task. Either streams for 4 s, and somebody follows each: 80 streams at a time."""
MEBIBYTE = 1024 * 1024


async def measure(run: Run) -> list[Figure]:
    """Processor and memory of one process of each service and of the broker."""
    figures: list[Figure] = []
    async with stage(run.folder / "footprint", *SERVICES) as on:
        assert on.mesh.broker.process is not None
        pids = {name: on.process(name).pid for name in SERVICES} | {"nats-server": on.mesh.broker.process.pid}
        # What a start leaves to do is done by then.
        await asyncio.sleep(5)
        idle = await _spent(pids, run.scale(20, 5))
        idle_bytes = {name: _resident_bytes(pid) for name, pid in pids.items()}
        working = asyncio.create_task(_work(on.mesh.ingress_url, on.mesh.edge_url))
        try:
            await asyncio.sleep(8)
            busy = await _spent(pids, run.scale(40, 10))
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        for name, pid in pids.items():
            figures.append(Figure(f"{name}: processor", "mCPU", busy[name] * 1000, "idle", idle[name] * 1000))
            resident = _resident_bytes(pid) / MEBIBYTE
            figures.append(Figure(f"{name}: memory", "MiB", resident, "idle", idle_bytes[name] / MEBIBYTE))
    return figures


async def _spent(pids: dict[str, int], seconds: float) -> dict[str, float]:
    """Processors that each took, on average over so many seconds."""
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    began_at = time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - began_at
    return {name: (cpu_seconds(pid) - before[name]) / took for name, pid in pids.items()}


async def _work(ingress: str, edge: str) -> None:
    """Submit tasks at a steady pace, each of them followed, until cancelled."""
    async with (
        httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=2000)) as client,
        asyncio.TaskGroup() as group,
    ):
        began_at = time.perf_counter()
        for number in itertools.count(1):
            group.create_task(_one(client, ingress, edge, AGENT if number % 4 == 0 else PLAIN))
            await asyncio.sleep(max(0.0, began_at + number / TASKS_PER_SECOND - time.perf_counter()))


async def _one(client: httpx.AsyncClient, ingress: str, edge: str, script: str) -> None:
    answer = await post_task(client, ingress, script, tools=["add"])
    task = answer.raise_for_status().json()["id"]
    async with client.stream("GET", f"{edge}/v1/tasks/{task}/events") as stream:
        async for _ in stream.aiter_bytes():
            pass


def _resident_bytes(pid: int) -> int:
    """Memory of a process (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS")
