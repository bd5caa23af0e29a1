"""How true it is what callers are told: when a task begins, and when one that was refused may come again."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from dataclasses import dataclass

import msgspec

from tests.benchmarks.bench import Run, Stage, stage
from tests.benchmarks.figures import Figure
from tests.support.clients import PostingConnection
from tests.support.http_client import PatientClient

PLACES = 4
TOKENS = (3, 4, 5, 6, 7, 8, 9)
TOKENS_PER_SECOND = 10
PER_SECOND = PLACES * TOKENS_PER_SECOND / statistics.mean(TOKENS)
"""Tasks that end a second while all places are taken, but for what lies between two of them."""
QUEUE = 40
"""How many stand in line when the steady load begins."""
LOAD = 0.97
"""The steady load, as a part of what the places can do."""
BACKLOG_MAX = 40
"""What may wait in BACKLOG of the tenant whose clients are refused; some more wait in TASKS."""
HEADERS = "Mesh-Tenant: crowd\r\n"
CLIENTS_MOST, CLIENTS_QUICK = 250, 160
ERROR_MAX = 0.3
ACCEPTED_MIN = 0.95
WAITED_SECONDS_MIN = 1.0
"""Of a wait that is shorter nobody asks how wrong its time was."""


@dataclass
class _Promise:
    task: str
    tenant: str
    eta_seconds: float | None
    basis: str


class _Answer(msgspec.Struct):
    id: str
    queue: dict[str, object]


async def measure(run: Run) -> list[Figure]:
    """The error of ETAs on a steady load and on others, and how many of those who obey Retry-After are accepted."""
    chance = random.Random(run.seed)
    configuration = run.folder / "mesh.toml"
    configuration.write_text(f"[pools.default]\n[tenants.crowd]\nbacklog = {BACKLOG_MAX}\n")
    async with stage(run.folder / "eta", "ingress", "steward", MESH_CONFIG=str(configuration)) as on:
        await on.start("inference_worker", MESH_WORKER_CONCURRENCY=str(PLACES))
        clients = _Clients(on, chance)
        promises = await _steady(clients, run.scale(90, 25))
        errors = await clients.errors(promises)
        accepted, again = await _obeying(clients, run.scale(CLIENTS_MOST, CLIENTS_QUICK))
        figures = [
            await _told(clients, f"  {name}", await scenario(clients, run.scale(45, 15)))
            for name, scenario in _SCENARIOS.items()
        ]
    told = [promise for promise in promises if promise.eta_seconds is not None]
    error = statistics.median(errors)
    bases = sorted({promise.basis for promise in told})
    return [
        Figure(
            "ETA: median error on a steady load",
            "of the wait",
            error,
            target=f"≤ {ERROR_MAX}",
            met=error <= ERROR_MAX,
            note=f"{len(errors)} tasks that waited {WAITED_SECONDS_MIN:g} s or more; by {', '.join(bases)}",
        ),
        *figures,
        Figure("  of those on a steady load, told a time", "of 1", len(told) / len(promises)),
        Figure(
            "Retry-After: accepted when they came again",
            "of 1",
            accepted / again,
            target=f"≥ {ACCEPTED_MIN}",
            met=accepted / again >= ACCEPTED_MIN,
            note=f"{again} times that a client came at the time that it was told",
        ),
    ]


async def _told(clients: _Clients, name: str, promises: list[_Promise]) -> Figure:
    errors = await clients.errors(promises)
    note = f"{len(errors)} tasks; by {', '.join(sorted({promise.basis for promise in promises}))}"
    if not errors:
        raise RuntimeError(f"{name}: of {len(promises)} tasks none waited, or none was told a time ({note})")
    return Figure(name, "of the wait", statistics.median(errors), note=note)


class _Clients:
    """Who submits tasks, and notes what was told."""

    def __init__(self, on: Stage, chance: random.Random) -> None:
        self.on = on
        self.chance = chance
        self._poster = PostingConnection(on.process("ingress").address)
        self._one_at_a_time = asyncio.Lock()

    async def post(self, tenant: str = "default", priority: str = "normal") -> _Promise:
        """One task."""
        async with self._one_at_a_time:
            status, _, payload = await self._poster.post(_body(self.chance, priority), f"Mesh-Tenant: {tenant}\r\n")
        assert status == 202, payload
        answer = msgspec.json.decode(payload, type=_Answer)
        eta = answer.queue["eta_seconds"]
        told = eta if isinstance(eta, float | int) else None
        return _Promise(answer.id, tenant, told, str(answer.queue["basis"]))

    async def come(self, seconds: float, per_second: float, tenant: str = "default", priority: str = "normal",
                   ) -> list[_Promise]:  # fmt: skip
        """So many a second, at random times."""
        loop, promises = asyncio.get_running_loop(), []
        began_at = due_at = loop.time()
        while due_at < began_at + seconds:
            due_at += self.chance.expovariate(per_second)
            await asyncio.sleep(max(0.0, due_at - loop.time()))
            promises.append(await self.post(tenant, priority))
        return promises

    async def errors(self, promises: list[_Promise]) -> list[float]:
        """How far off each time was, as a part of what the task waited; once all of them have ended."""
        errors = []
        async with PatientClient(base_url=self.on.mesh.ingress_url) as client:
            waits = [await _waited(client, promise) for promise in promises]
        for promise, waited in zip(promises, waits, strict=True):
            if promise.eta_seconds is not None and waited >= WAITED_SECONDS_MIN:
                errors.append(abs(promise.eta_seconds - waited) / waited)
        return errors


async def _steady(clients: _Clients, seconds: int) -> list[_Promise]:
    """A queue, and as many more as end, at random times. What came while nothing was measured yet is left out."""
    for _ in range(QUEUE):
        await clients.post()
    # The first of them tell how long a task takes.
    await clients.come(seconds / 4, PER_SECOND * LOAD)
    return await clients.come(seconds * 3 / 4, PER_SECOND * LOAD)


async def _overload(clients: _Clients, seconds: int) -> list[_Promise]:
    """Half as many again as can be done: the queue grows all the time."""
    await clients.come(5, PER_SECOND * 1.5)
    return await clients.come(seconds, PER_SECOND * 1.5)


async def _batch(clients: _Clients, seconds: int) -> list[_Promise]:
    """What is not urgent, while more urgent tasks take most of the places."""
    for _ in range(QUEUE):
        await clients.post(priority="low")
    urgent = asyncio.create_task(clients.come(seconds + 5, PER_SECOND * 0.7))
    await asyncio.sleep(5)
    batch = await clients.come(seconds, PER_SECOND * 0.6, priority="low")
    await clients.errors(await urgent)
    return batch


async def _few(clients: _Clients, seconds: int) -> list[_Promise]:
    """A tenant with a few tasks, while another one has hundreds in BACKLOG."""
    for _ in range(int(PER_SECOND * seconds)):
        await clients.post("flood")
    promises = []
    for _ in range(seconds // 5):
        promises += [await clients.post("few") for _ in range(8)]
        await asyncio.sleep(5)
    return promises


async def _flood(clients: _Clients, seconds: int) -> list[_Promise]:
    """The tenant with hundreds in BACKLOG itself, beside one that always has some."""
    for _ in range(int(PER_SECOND * seconds / 2)):
        await clients.post("flood")
    await asyncio.sleep(3)
    beside = asyncio.create_task(clients.come(seconds, PER_SECOND * 0.4, "few"))
    promises = await clients.come(seconds / 2, PER_SECOND * 0.5, "flood")
    await beside
    return promises


async def _leaving(clients: _Clients, seconds: int) -> list[_Promise]:
    """A second worker has done half of it, and is killed."""
    worker = await clients.on.mesh.start("inference_worker", MESH_WORKER_CONCURRENCY=str(PLACES))
    for _ in range(int(PER_SECOND * 2 * (10 + seconds / 2))):
        await clients.post()
    await asyncio.sleep(10)
    await worker.kill()
    # Who does not answer is seen with the next look.
    await asyncio.sleep(8)
    return await clients.come(seconds / 2, PER_SECOND * 0.5)


_SCENARIOS = {
    "where more comes than can be done": _overload,
    "of batch tasks behind more urgent ones": _batch,
    "of a tenant with few tasks, in fair order": _few,
    "of the tenant that has flooded": _flood,
    "after one of two workers was killed": _leaving,
}


def _body(chance: random.Random, priority: str = "normal") -> bytes:
    script = f"!rate {TOKENS_PER_SECOND}\n!say {chance.choice(TOKENS)}"
    return msgspec.json.encode({"input": script, "priority": priority})


async def _waited(client: PatientClient, promise: _Promise) -> float:
    """How long a task waited for a place, once it has ended."""
    while True:
        answer = await client.get(f"/v1/tasks/{promise.task}", headers={"Mesh-Tenant": promise.tenant})
        record = answer.json()
        if record["status"] == "completed":
            return float(record["timings"]["queued_seconds"])
        await asyncio.sleep(0.2)


async def _obeying(clients: _Clients, count: int) -> tuple[int, int]:
    """Many at once at a small lane, who come again when they are told to: how many were accepted, of how many times."""
    on, chance = clients.on, clients.chance
    accepted = again = 0

    async def one() -> None:
        nonlocal accepted, again
        poster = PostingConnection(on.process("ingress").address)
        await asyncio.sleep(chance.uniform(0, 3))
        is_back = False
        while True:
            status, headers, payload = await poster.post(_body(chance), HEADERS)
            again += is_back
            if status == 202:
                accepted += is_back
                break
            assert status == 503, payload
            poster.close()
            await asyncio.sleep(math.ceil(float(headers["retry-after"])))
            poster = PostingConnection(on.process("ingress").address)
            is_back = True
        poster.close()

    await asyncio.gather(*(one() for _ in range(count)))
    if not again:
        raise RuntimeError("nobody was refused: the lane has never been full")
    return accepted, again
