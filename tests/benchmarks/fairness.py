"""What order among tenants and lanes gives, and what it costs.

A flood and who comes after it, a thousand tenants beside one, tokens by weight, a tenant alone; what is urgent behind a
batch, and a batch behind what is urgent.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from contracts import subjects
from contracts.codec import decode
from contracts.records.status import TaskRecord
from contracts.streams import TASKS_BUCKET
from contracts.tasks import Priority
from mesh.broker import key_value
from tests.benchmarks.bench import Run, Stage, stage
from tests.benchmarks.figures import Figure, percentile
from tests.support.checker import read_stored
from tests.support.clients import PostingConnection
from tests.support.waiting import until, until_no_work_is_left

PLACES = 8
TURN_SECONDS = 0.5
FEW = 10
CONNECTIONS = 8
TENANTS_PLACES = 32
TENANTS_TURN_SECONDS = 1.0
"""On an average: those of equal length would all end at once, each time, and begin so again."""
CALM_PART = 0.5
"""Of what the places bear: so much the thousand ask for."""
URGENT = 20
LANE_SHARE = 2 / 18
"""Of `low` beside `high`, while both wait: their weights are 2 and 16."""
WARM_UP_SECONDS = 10.0
"""From the first end on: so long it takes until the stewards know how dear each tenant's tasks are."""


async def measure(run: Run) -> list[Figure]:
    """Each on a mesh of its own."""
    return [
        await _few_after_a_flood(run),
        await _thousand(run),
        await _tokens(run),
        await _alone(run),
        *await _lanes(run),
    ]


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
    records = await _until_ended(on, "few", tasks)
    return (max(each.updated_at for each in records) - min(each.created_at for each in records)).total_seconds()


async def _until_ended(on: Stage, tenant: str, tasks: list[str]) -> list[TaskRecord]:
    keys = [subjects.task_key(tenant, task) for task in tasks]
    records: list[TaskRecord] = []

    async def have_ended() -> bool:
        entries = await key_value.get_many(on.connection.requests, TASKS_BUCKET.name, keys)
        records[:] = [decode(entry.value, TaskRecord) for entry in entries.values() if entry.value]
        return sum(record.status == "completed" for record in records) == len(tasks)

    await until(have_ended, 120)
    return records


async def _thousand(run: Run) -> Figure:
    """Each tenant posts now and then, for a minute; and once more while another one floods."""
    tenants, seconds = run.scale(1_000, 100), run.scale(60, 15)
    rate, medians = CALM_PART * TENANTS_PLACES / TENANTS_TURN_SECONDS, dict[str, float]()
    turns = _turns(TENANTS_TURN_SECONDS)
    flood = run.scale(2_500, 400)
    for name, many in (("calm", 0), ("flood", flood)):
        async with _mesh(run, f"tenants-{name}", "steward", places=TENANTS_PLACES) as on:
            flooding = asyncio.create_task(_post(on, "flood", many, *turns))
            await _post_steadily(on, tenants, seconds, rate, turns)
            await flooding
            medians[name] = percentile(await _times(on, "tenant-"), 50)
    ratio = medians["flood"] / medians["calm"]
    return Figure(
        f"tasks of {tenants:,} tenants beside a flood of {flood:,}",
        "s, median",
        medians["flood"],
        "without it",
        medians["calm"],
        "≤ 1.3",
        ratio <= 1.3,
    )


def _turns(seconds: float) -> list[str]:
    """Turns that take from half of it to half as much again, in no order."""
    chance = random.Random(1)
    return [f"!hang {seconds * chance.uniform(0.5, 1.5):.3f}\nwell" for _ in range(97)]


async def _post_steadily(on: Stage, tenants: int, seconds: float, rate: float, turns: list[str]) -> None:
    """One task after the other, of one tenant after the other, at this rate."""
    loop = asyncio.get_running_loop()
    numbers, began_at = iter(range(int(rate * seconds))), loop.time()

    async def some() -> None:
        connection = PostingConnection(on.process("ingress").address)
        for number in numbers:
            await asyncio.sleep(max(0.0, began_at + number / rate - loop.time()))
            body = json.dumps({"input": turns[number % len(turns)]}).encode()
            status, _, payload = await connection.post(body, f"Mesh-Tenant: tenant-{number % tenants}\r\n")
            if status != 202:
                raise RuntimeError(f"{status}: {payload!r}")
        connection.close()

    await asyncio.gather(*(some() for _ in range(CONNECTIONS)))


async def _times(on: Stage, prefix: str) -> list[float]:
    """Seconds from acceptance to the end of the tasks of those tenants, once nothing is left to do."""
    await until_no_work_is_left(on.connection, 240)
    ends = {event["task"]: event for event in await _events(on, "task.completed")}
    queued = [each for each in await _events(on, "task.queued") if each["tenant"].startswith(prefix)]
    return [_seconds_between(each, ends[each["task"]]) for each in queued]


def _seconds_between(one: dict[str, Any], other: dict[str, Any]) -> float:
    return (datetime.fromisoformat(other["time"]) - datetime.fromisoformat(one["time"])).total_seconds()


async def _lanes(run: Run) -> list[Figure]:
    """A batch is queued; then something urgent comes now and then, and in the end without a pause."""
    batch = run.scale(5_000, 300)
    async with _mesh(run, "lanes", "steward") as on:
        turns = _turns(TURN_SECONDS)
        await _post(on, "batch", batch, *turns, priority="low")
        urgent: list[str] = []
        for number in range(URGENT):
            urgent += await _post(on, "urgent", 1, turns[number], priority="high")
            await _until_ended(on, "urgent", urgent)
        endless = await _post(on, "endless", run.scale(400, 120), *turns, priority="high")
        await _until_ended(on, "endless", endless)
        queued = {event["task"]: event for event in await _events(on, "task.queued")}
        claims = sorted(await _events(on, "step.claimed"), key=lambda event: datetime.fromisoformat(event["time"]))
    waits = [_seconds_between(queued[each["task"]], each) for each in claims if each["task"] in urgent]
    of_endless = [index for index, each in enumerate(claims) if each["task"] in endless]
    # Not its beginning, when it is not backed up yet, nor its end.
    both = claims[of_endless[PLACES] : of_endless[-PLACES] + 1]
    part = sum(each["tenant"] == "batch" for each in both) / len(both)
    waited = percentile(waits, 95)
    return [
        Figure(
            f"an urgent task behind {batch:,} of a batch",
            "s, p95",
            waited,
            "a turn",
            TURN_SECONDS,
            "≤ 1",
            waited <= TURN_SECONDS,
        ),
        Figure(
            "a batch beside what is urgent",
            "of all",
            round(part, 3),
            "by weight",
            round(LANE_SHARE, 3),
            "≥ 0.85",
            part >= 0.85 * LANE_SHARE,
        ),
    ]


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
    """An ingress that knows how its lanes stand, if there is a steward, and a worker."""
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


async def _post(on: Stage, tenant: str, count: int, *texts: str, priority: Priority = "normal") -> list[str]:
    """So many tasks, with one of the texts after the other."""
    numbers = iter(range(count))
    accepted: list[str] = []

    async def some() -> None:
        connection = PostingConnection(on.process("ingress").address)
        for number in numbers:
            body = json.dumps({"input": texts[number % len(texts)], "priority": priority}).encode()
            status, _, payload = await connection.post(body, f"Mesh-Tenant: {tenant}\r\n")
            if status != 202:
                raise RuntimeError(f"{status}: {payload!r}")
            accepted.append(json.loads(payload)["id"])
        connection.close()

    await asyncio.gather(*(some() for _ in range(min(count, CONNECTIONS))))
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
