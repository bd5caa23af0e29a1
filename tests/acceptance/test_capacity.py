"""A worker takes as many turns as the servers bear: real processes, and servers on loopback that bear so much."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from contracts.records.status import PoolCapacity, WorkerRecord
from contracts.streams import WORKERS_BUCKET
from mesh.broker.connection import Connection, connect
from mesh.fleet.records import read_records
from tests.support.broker import free_port
from tests.support.engine_server import OUTPUT_TOKENS, PROMPT_TOKENS, Engine, Slots, engine_server
from tests.support.http_client import PatientClient
from tests.support.model_server import model_server
from tests.support.processes import Mesh, running_mesh
from tests.support.up import meshctl
from tests.support.waiting import until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.asyncio(loop_scope="module"),
]

TABLES = {
    "engine": 'capacity = { signals = "auto" }',
    "slots": "",
    "refusing": 'capacity = { signals = "none" }',
    "queueing": 'capacity = { signals = "none" }',
}
"""The one of slots has none: it is near by, and tells."""
CACHE_TOKENS = 400
FIT = CACHE_TOKENS // (PROMPT_TOKENS + OUTPUT_TOKENS)
"""Requests of the engine that fit at their full size."""
SLOTS = 3
REFUSES_BEYOND = 4
QUEUES_BEYOND = 6
QUEUED = 400
"""Tasks for the server that queues: they run beside all other tests, until its limit is found."""


@dataclass
class Bench:
    """A worker of four pools, each on a server of its own kind."""

    mesh: Mesh
    connection: Connection
    client: PatientClient
    engine: Engine
    slots: Slots
    refusing: Slots
    queueing: Slots

    async def submit(self, pool: str, count: int) -> list[str]:
        """So many tasks."""

        async def one() -> str:
            answer = await self.client.post(
                f"{self.mesh.ingress_url}/v1/tasks", json={"input": "hello", "pool": pool, "priority": "normal"}
            )
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

        return [task for _ in range(0, count, 20) for task in await asyncio.gather(*(one() for _ in range(20)))][:count]

    async def capacity(self, pool: str) -> PoolCapacity | None:
        """What the worker says of a pool's servers."""
        records = await read_records(self.connection.requests, WORKERS_BUCKET, WorkerRecord)
        return next((record.capacity.get(pool) for record in records if record.pools), None)

    async def limits(self, pool: str) -> list[int]:
        """The limits of all workers, in order."""
        records = await read_records(self.connection.requests, WORKERS_BUCKET, WorkerRecord)
        return sorted(record.capacity[pool].limit for record in records if pool in record.capacity)

    async def limit(self, pool: str) -> int | None:
        """How many turns of the pool it takes by that."""
        told = await self.capacity(pool)
        return told.limit if told is not None else None

    async def until_completed(self, tasks: list[str]) -> None:
        """Wait for the end of all."""

        async def done() -> bool:
            answer = await self.client.get(f"{self.mesh.ingress_url}/v1/tasks/{tasks[-1]}")
            if answer.json()["status"] != "completed":
                return False
            return all(
                [
                    (await self.client.get(f"{self.mesh.ingress_url}/v1/tasks/{task}")).json()["status"] == "completed"
                    for task in tasks
                ]
            )

        await until(done, seconds=120)


def toml(servers: dict[str, str]) -> str:
    """Each server as the provider of a pool of its name; the breaker is not what is tried."""
    tables = [
        f"""
        [providers.{name}]
        kind = "openai"
        base_url = "{base_url}"
        breaker = {{ enabled = false }}
        {TABLES[name]}
        [pools.{"default" if name == "engine" else name}]
        provider = "{name}"
        model = "m"
        """
        for name, base_url in servers.items()
    ]
    return "".join(tables)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("capacity")
    engine = Engine(CACHE_TOKENS)
    slots, refusing = Slots(SLOTS, 0.2, tells=True), Slots(REFUSES_BEYOND, 0.2, refuses=True)
    queueing = Slots(QUEUES_BEYOND, 0.4)
    async with AsyncExitStack() as stack:
        servers = {"engine": (await stack.enter_async_context(engine_server(engine))).base_url}
        for name, behave in (("slots", slots), ("refusing", refusing), ("queueing", queueing)):
            servers[name] = (await stack.enter_async_context(model_server(behave))).base_url
        file = folder / "mesh.toml"
        file.write_text(toml(servers))
        services = ("ingress", "steward", "inference_worker")
        mesh = await stack.enter_async_context(running_mesh(folder, *services, MESH_CONFIG=str(file)))
        connection = await stack.enter_async_context(connect(mesh.settings, "test"))
        client = await stack.enter_async_context(PatientClient(timeout=30))
        bench = Bench(mesh, connection, client, engine, slots, refusing, queueing)
        await bench.submit("queueing", QUEUED)
        yield bench
        assert mesh.tracebacks() == []


async def test_the_cache_of_an_engine_fills_and_nothing_is_taken_back(bench: Bench) -> None:
    """64 places against a cache for eight: a constant number of places has most of its requests taken back."""
    engine = bench.engine
    await until(lambda: engine.asked > 0)
    tasks = await bench.submit("default", 40)
    await bench.until_completed(tasks)
    assert engine.taken_back == 0
    assert engine.running_most <= FIT
    assert engine.cache_most >= 0.5
    told = await bench.capacity("default")
    assert told is not None
    assert 2 <= told.limit <= FIT
    assert told.why.startswith("engine: vllm: cache at ")


async def test_what_others_do_at_the_server_leaves_less_for_this_mesh_and_comes_back(bench: Bench) -> None:
    engine = bench.engine
    before = await bench.limit("default")
    engine.others = (7, 370)
    tasks = await bench.submit("default", 20)

    async def is_fewer() -> bool:
        limit = await bench.limit("default")
        return limit is not None and before is not None and limit < before

    await until(is_fewer)
    engine.others = (0, 0)
    await bench.until_completed(tasks)


async def test_as_many_turns_begin_as_there_are_slots(bench: Bench) -> None:
    async def is_told() -> bool:
        return await bench.limit("slots") == SLOTS

    await until(is_told)
    await bench.until_completed(await bench.submit("slots", 20))
    assert bench.slots.at_once_most == SLOTS


async def test_a_server_that_refuses_shows_its_limit_by_that(bench: Bench) -> None:
    refusing = bench.refusing
    for _ in range(10):
        await bench.until_completed(await bench.submit("refusing", 40))
        if refusing.refused:
            break

    async def is_found() -> bool:
        limit = await bench.limit("refusing")
        return limit is not None and 0.8 * REFUSES_BEYOND <= limit <= 1.25 * REFUSES_BEYOND

    await until(is_found)
    assert 1 <= refusing.refused <= 20
    before = refusing.refused
    await bench.until_completed(await bench.submit("refusing", 40))
    assert refusing.refused - before <= 5


async def test_a_server_that_only_has_others_wait_shows_its_limit_by_its_speed(bench: Bench) -> None:
    async def is_found() -> bool:
        limit = await bench.limit("queueing")
        return limit is not None and 0.8 * QUEUES_BEYOND <= limit <= 1.2 * QUEUES_BEYOND

    await until(is_found, seconds=60)
    assert bench.queueing.at_once_most > QUEUES_BEYOND


async def test_what_a_worker_says_of_a_server_is_what_everybody_is_told(bench: Bench) -> None:
    environment = dict(bench.mesh.environment)
    told = await bench.capacity("slots")
    assert told is not None
    assert (told.limit, told.of_all, told.workers) == (SLOTS, SLOTS, 1)

    async def is_told() -> bool:
        pools = {
            each["pool"]: each
            for each in (await bench.client.get(f"{bench.mesh.ingress_url}/v1/pools")).json()["pools"]
        }
        load = (await bench.client.get(f"{bench.mesh.ingress_url}/v1/pools/slots/load")).json()
        workers = [json.loads(line) for line in (await meshctl("workers", environment=environment)).stdout.splitlines()]
        said = [worker["capacity"]["slots"]["limit"] for worker in workers if "capacity" in worker]
        figures = (pools["slots"]["capacity"], pools["slots"]["places"], load["places"], load["wanted_workers"], said)
        return figures == (SLOTS, SLOTS, SLOTS, 0, [SLOTS])

    await until(is_told)


async def test_workers_share_a_server_and_what_one_leaves_is_the_others(bench: Bench) -> None:
    async def are(limits: list[int]) -> bool:
        return await bench.limits("slots") == limits

    ops = f"127.0.0.1:{free_port()}"
    second = await bench.mesh.start("inference_worker", MESH_OPS_ADDRESS=ops)
    await until(lambda: are([1, 2]))
    records = await read_records(bench.connection.requests, WORKERS_BUCKET, WorkerRecord)
    (mine,) = [record.capacity["slots"].limit for record in records if record.http == ops]
    lines = (await bench.client.get(f"http://{ops}/metrics")).text.splitlines()
    told = [line.split()[-1] for line in lines if line.startswith("taskmesh_capacity_limit") and '"slots"' in line]
    assert [float(each) for each in told] == [mine]
    await second.stop()
    await until(lambda: are([SLOTS]))


async def test_another_limit_in_the_file_holds_without_a_restart_and_a_wrong_one_changes_nothing(bench: Bench) -> None:
    file = Path(bench.mesh.environment["MESH_CONFIG"])
    before = file.read_text()
    (worker,) = [
        process for process in bench.mesh.processes if process.service == "inference_worker" and process.is_running
    ]

    async def is_limit(limit: int) -> bool:
        return await bench.limit("slots") == limit

    file.write_text(f"{before}\n[providers.slots.capacity]\nmax = 2\n")
    worker.signal(signal.SIGHUP)
    await until(lambda: is_limit(2))
    file.write_text(f"{before}\n[providers.slots.capacity]\nmin = 3\nmax = 2\n")
    worker.signal(signal.SIGHUP)
    await until(lambda: "must not be more than max" in str(bench.mesh.logs()))
    assert await bench.limit("slots") == 2
    file.write_text(before)
    worker.signal(signal.SIGHUP)
    await until(lambda: is_limit(SLOTS))
    await bench.until_completed(await bench.submit("slots", 5))
