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
    eta_seconds: float | None
    basis: str


class _Answer(msgspec.Struct):
    id: str
    queue: dict[str, object]


async def measure(run: Run) -> list[Figure]:
    """The error of ETAs on a steady load, and how many of those who obey Retry-After are accepted."""
    chance = random.Random(run.seed)
    configuration = run.folder / "mesh.toml"
    configuration.write_text(f"[pools.default]\n[tenants.crowd]\nbacklog = {BACKLOG_MAX}\n")
    async with stage(run.folder / "eta", "ingress", "steward", MESH_CONFIG=str(configuration)) as on:
        await on.start("inference_worker", MESH_WORKER_CONCURRENCY=str(PLACES))
        promises = await _steady(on, chance, run.scale(90, 25))
        errors = await _errors(on, promises)
        accepted, again = await _obeying(on, chance, run.scale(CLIENTS_MOST, CLIENTS_QUICK))
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
        Figure("  of those that were accepted, told a time", "of 1", len(told) / len(promises)),
        Figure(
            "Retry-After: accepted when they came again",
            "of 1",
            accepted / again,
            target=f"≥ {ACCEPTED_MIN}",
            met=accepted / again >= ACCEPTED_MIN,
            note=f"{again} times that a client came at the time that it was told",
        ),
    ]


def _body(chance: random.Random) -> bytes:
    script = f"!rate {TOKENS_PER_SECOND}\n!say {chance.choice(TOKENS)}"
    return msgspec.json.encode({"input": script})


async def _steady(on: Stage, chance: random.Random, seconds: int) -> list[_Promise]:
    """A queue, and as many more as end, at random times. What came while nothing was measured yet is left out."""
    poster = PostingConnection(on.process("ingress").address)
    promises: list[_Promise] = []

    async def post() -> None:
        status, _, payload = await poster.post(_body(chance))
        assert status == 202, payload
        answer = msgspec.json.decode(payload, type=_Answer)
        eta = answer.queue["eta_seconds"]
        promises.append(_Promise(answer.id, eta if isinstance(eta, float | int) else None, str(answer.queue["basis"])))

    for _ in range(QUEUE):
        await post()
    # The first of them tell how long a task takes.
    loop = asyncio.get_running_loop()
    began_at = due_at = loop.time()
    promises_before = 0
    while due_at < began_at + seconds:
        due_at += chance.expovariate(PER_SECOND * LOAD)
        await asyncio.sleep(max(0.0, due_at - loop.time()))
        if due_at < began_at + seconds / 4:
            promises_before = len(promises) + 1
        await post()
    poster.close()
    return promises[promises_before:]


async def _errors(on: Stage, promises: list[_Promise]) -> list[float]:
    """How far off each time was, as a part of what the task waited."""
    errors = []
    async with PatientClient(base_url=on.mesh.ingress_url) as client:
        waits = [await _waited(client, promise.task) for promise in promises]
    for promise, waited in zip(promises, waits, strict=True):
        if promise.eta_seconds is not None and waited >= WAITED_SECONDS_MIN:
            errors.append(abs(promise.eta_seconds - waited) / waited)
    return errors


async def _waited(client: PatientClient, task: str) -> float:
    """How long a task waited for a place, once it has ended."""
    while True:
        record = (await client.get(f"/v1/tasks/{task}")).json()
        if record["status"] == "completed":
            return float(record["timings"]["queued_seconds"])
        await asyncio.sleep(0.2)


async def _obeying(on: Stage, chance: random.Random, clients: int) -> tuple[int, int]:
    """Many at once at a small lane, who come again when they are told to: how many were accepted, of how many times."""
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

    await asyncio.gather(*(one() for _ in range(clients)))
    if not again:
        raise RuntimeError("nobody was refused: the lane has never been full")
    return accepted, again
