"""What model servers bear: an engine whose cache fills, and one that only lets others wait; against places alone."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from pathlib import Path

from contracts.records.status import PoolCapacity, WorkerRecord
from contracts.streams import WORKERS_BUCKET
from mesh.fleet.records import read_records
from tests.benchmarks.bench import Run, Stage, stage
from tests.benchmarks.figures import Figure
from tests.support.engine_server import OUTPUT_TOKENS, PROMPT_TOKENS, Engine, Slots, engine_server
from tests.support.http_client import PatientClient
from tests.support.model_server import model_server
from tests.support.waiting import until

WORKERS = 2
CACHE_TOKENS = 800
FIT = CACHE_TOKENS // (PROMPT_TOKENS + OUTPUT_TOKENS)
"""Requests of the engine that fit at their full size."""
QUEUES_BEYOND = 12
TURN_SECONDS = 1.0
FOUND_PART = 0.2


async def measure(run: Run) -> list[Figure]:
    """Both, one after the other."""
    return [*await _measure_cache(run), await _measure_queue(run)]


async def _measure_cache(run: Run) -> list[Figure]:
    """An engine as vLLM's, with the table, without it, and with places alone."""
    tasks = run.scale(240, 60)
    taken_back: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for way, table in (
        ("table", 'capacity = { signals = "vllm" }'),
        ("near", ""),
        ("places", 'capacity = { signals = "none", min = 128, max = 128 }'),
    ):
        folder = run.folder / way
        folder.mkdir()
        engine = Engine(CACHE_TOKENS)
        async with (
            engine_server(engine) as server,
            stage(folder, *_services(), **_configured(folder, server.base_url, table)) as opened,
        ):
            seconds[way] = await _completed(opened, tasks)
        taken_back[way] = engine.taken_back
    note = f"{tasks} tasks, {WORKERS} workers of 64 places, a cache for {FIT}"
    return [
        Figure(
            "capacity: requests taken back for want of cache",
            "",
            taken_back["table"],
            "places alone",
            taken_back["places"],
            target="0",
            met=not taken_back["table"],
            note=f"{note}; without the table, as an engine near by is followed, {taken_back['near']}",
        ),
        Figure(
            "capacity: time of all tasks",
            "s",
            seconds["table"],
            "places alone",
            seconds["places"],
            note=f"{note}; without the table {seconds['near']:.1f} s",
        ),
    ]


async def _measure_queue(run: Run) -> Figure:
    """A server that tells nothing: its limit is found by trying."""
    folder = run.folder / "queue"
    folder.mkdir()
    server = Slots(QUEUES_BEYOND, TURN_SECONDS)
    async with model_server(server) as listens:
        variables = _configured(folder, listens.base_url, 'capacity = { signals = "none" }')
        async with stage(folder, *_services(), **variables) as opened:
            began_at = time.monotonic()
            working = asyncio.create_task(_completed(opened, run.scale(900, 120)))
            limits = await _limits(opened, working)
            await working
    # It takes its time to be found, and more is tried now and then: what it is most of the time counts.
    limit = statistics.median(seen for _, seen in limits[len(limits) // 2 :])
    found_after = next((at for at, seen in limits if _is_found(seen)), math.inf) - began_at
    return Figure(
        "capacity: the limit of a server that tells nothing",
        "turns",
        limit,
        "what it works on at once",
        QUEUES_BEYOND,
        target=f"within {FOUND_PART:.0%}",
        met=_is_found(limit) or run.quick,
        note=f"{WORKERS} workers, turns of {TURN_SECONDS} s; first within it after {found_after:.0f} s; the median of "
        "the second half. Where processes wait for a core, turns take longer than at the server, and more fit",
    )


async def _limits(opened: Stage, working: asyncio.Task[float]) -> list[tuple[float, int]]:
    """How many turns at once of all workers, as these say, and when, as long as there is work."""
    seen: list[tuple[float, int]] = []
    while not working.done() or not seen:
        records = await read_records(opened.connection.requests, WORKERS_BUCKET, WorkerRecord)
        told: list[PoolCapacity] = [record.capacity["default"] for record in records if "default" in record.capacity]
        seen.append((time.monotonic(), sum(each.limit for each in told)))
        await asyncio.sleep(0.5)
    return seen


def _is_found(limit: float) -> bool:
    return abs(limit - QUEUES_BEYOND) <= FOUND_PART * QUEUES_BEYOND


async def _completed(opened: Stage, count: int) -> float:
    """Submit so many tasks, and wait for the end of all; how long that took."""
    async with PatientClient(base_url=opened.mesh.ingress_url, timeout=60) as client:

        async def submit() -> str:
            answer = await client.post("/v1/tasks", json={"input": "hello"})
            return str(answer.json()["id"])

        async def is_over() -> bool:
            return bool((await client.get(f"/v1/tasks/{tasks[-1]}")).json()["status"] == "completed")

        began_at = time.monotonic()
        tasks = [task for _ in range(0, count, 20) for task in await asyncio.gather(*(submit() for _ in range(20)))]
        while tasks:
            await until(is_over, seconds=240)
            tasks.pop()
        return time.monotonic() - began_at


def _services() -> list[str]:
    return ["ingress", "steward", *["inference_worker"] * WORKERS]


def _configured(folder: Path, base_url: str, table: str) -> dict[str, str]:
    file = folder / "mesh.toml"
    file.write_text(
        f'[providers.engine]\nkind = "openai"\nbase_url = "{base_url}"\nbreaker = {{ enabled = false }}\n{table}\n'
        '[pools.default]\nprovider = "engine"\nmodel = "m"\n'
    )
    return {"MESH_CONFIG": str(file)}
