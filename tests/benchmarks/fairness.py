"""What order among tenants gives, and what it costs: a flood, who comes after it, tokens by weight, a tenant alone."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from contracts import subjects
from contracts.codec import decode
from contracts.records.status import TaskRecord
from contracts.streams import TASKS_BUCKET
from mesh.broker import key_value
from tests.benchmarks.bench import Run, Stage, stage
from tests.benchmarks.figures import Figure
from tests.support.checker import read_stored
from tests.support.clients import PostingConnection
from tests.support.waiting import until, until_no_work_is_left

PLACES = 8
TURN_SECONDS = 0.5
FEW = 10
CONNECTIONS = 8
WARM_UP_SECONDS = 10.0
"""From the first end on: so long it takes until the stewards know how dear each tenant's tasks are."""


async def measure(run: Run) -> list[Figure]:
    """Each on a mesh of its own."""
    return [await _few_after_a_flood(run), await _tokens(run), await _alone(run)]


async def _few_after_a_flood(run: Run) -> Figure:
    flood, turn = run.scale(5_000, 500), f"!hang {TURN_SECONDS}\nwell"
    async with _mesh(run, "share", "steward", places=PLACES // 2) as on:
        share = await _seconds(on, await _post(on, "few", FEW, turn))
    async with _mesh(run, "flood", "steward") as on:
        await _post(on, "flood", flood, turn)
        took = await _seconds(on, await _post(on, "few", FEW, turn))
    name = f"{FEW} tasks after a flood of {flood:,}"
    return Figure(name, "s", took, "on half of the places, alone", share, "≤ 2", took <= 2 * share)


async def _seconds(on: Stage, tasks: list[str]) -> float:
    """From the first acceptance to the last end, by the records."""
    keys = [subjects.task_key("few", task) for task in tasks]
    records: list[TaskRecord] = []

    async def have_ended() -> bool:
        entries = await key_value.get_many(on.connection.requests, TASKS_BUCKET.name, keys)
        records[:] = [decode(entry.value, TaskRecord) for entry in entries.values() if entry.value]
        return sum(record.status == "completed" for record in records) == len(tasks)

    await until(have_ended, 120)
    return (max(each.updated_at for each in records) - min(each.created_at for each in records)).total_seconds()


async def _tokens(run: Run) -> Figure:
    """One tenant's tasks have ten times the tokens of the other's, and take ten times as long: nobody says so."""
    seconds = run.scale(60, 15)
    async with _mesh(run, "tokens", "steward") as on:
        small, large = "!rate 300\n!say 30", "!rate 300\n!say 300"
        places_seconds = PLACES * (seconds + 2 * WARM_UP_SECONDS) * 0.75
        await asyncio.gather(
            _post(on, "small", int(places_seconds / 0.1), small), _post(on, "large", int(places_seconds / 1.0), large)
        )
        used = await _tokens_in(on, seconds)
    part = used["large"] / max(1, used.total())
    return Figure(
        "tokens of the tenant with the larger tasks",
        "of all",
        round(part, 3),
        "by weight",
        0.5,
        "within 15 %",
        abs(part - 0.5) <= 0.075,
        note=f"over {seconds} s; tasks of 30 and 300 tokens: {used['small']:,} and {used['large']:,}",
    )


async def _alone(run: Run) -> Figure:
    count = run.scale(1_600, 320)
    rates: dict[str, float] = {}
    for name, services in (("with", ("steward",)), ("without", ())):
        async with _mesh(run, f"alone-{name}", *services) as on:
            await _post(on, "alone", count, f"!hang {TURN_SECONDS}\nwell")
            await until_no_work_is_left(on.connection, 240)
            ended = sorted(await _ends(on))
            rates[name] = (len(ended) - PLACES) / (ended[-1] - ended[PLACES - 1])
    return Figure(
        "a tenant that is alone",
        "tasks/s",
        rates["with"],
        "as they arrive",
        rates["without"],
        "≥ 0.95",
        rates["with"] >= 0.95 * rates["without"],
    )


@asynccontextmanager
async def _mesh(run: Run, name: str, *services: str, places: int = PLACES) -> AsyncIterator[Stage]:
    """An ingress that knows how its lane stands, if there is a steward, and a worker."""
    variables = {"MESH_WORKER_CONCURRENCY": str(places)}
    async with stage(run.folder / name, "ingress", "inference_worker", *services, **variables) as on:

        async def knows() -> bool:
            connection = PostingConnection(on.process("ingress").address)
            _, _, payload = await connection.post(b'{"input": "hello"}')
            connection.close()
            return json.loads(payload)["queue"]["depth"] is not None

        if services:
            await until(knows)
        yield on


async def _post(on: Stage, tenant: str, count: int, text: str) -> list[str]:
    numbers = iter(range(count))
    accepted: list[str] = []

    async def some() -> None:
        connection = PostingConnection(on.process("ingress").address)
        body = json.dumps({"input": text}).encode()
        for _ in numbers:
            status, _, payload = await connection.post(body, f"Mesh-Tenant: {tenant}\r\n")
            if status != 202:
                raise RuntimeError(f"{status}: {payload!r}")
            accepted.append(json.loads(payload)["id"])
        connection.close()

    await asyncio.gather(*(some() for _ in range(CONNECTIONS)))
    return accepted


async def _events(on: Stage, kind: str) -> list[dict[str, Any]]:
    journals = (await read_stored(on.connection.requests)).journals
    return [event.event for journal in journals.values() for event in journal if event.event["type"] == kind]


async def _ends(on: Stage) -> list[float]:
    return [datetime.fromisoformat(event["time"]).timestamp() for event in await _events(on, "task.completed")]


async def _tokens_in(on: Stage, seconds: float) -> Counter[str]:
    """Tokens put out by tenant in so many seconds, beginning a while after the first end."""
    began: list[float] = []

    async def is_over() -> bool:
        ends = await _ends(on)
        began[:] = [min(ends)] if ends else []
        return bool(ends) and max(ends) - min(ends) > seconds + WARM_UP_SECONDS

    await until(is_over, seconds + 60)
    used: Counter[str] = Counter()
    for event in await _events(on, "turn.completed"):
        at = datetime.fromisoformat(event["time"]).timestamp() - began[0] - WARM_UP_SECONDS
        if 0 <= at < seconds:
            used[event["tenant"]] += event["usage"]["output_tokens"]
    return used
