"""The load of a pool over HTTP, against real workers: what an autoscaler starts and stops them by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from contracts import subjects
from contracts.codec import encode
from contracts.records.status import WorkerRecord
from mesh.broker.connection import Connection, connect
from mesh.clock import now
from tests.support.agents import Agents
from tests.support.http_client import PatientClient
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

CONCURRENCY = 2
POOLS = "[pools.default]\n[pools.idle]\n"


@dataclass
class Bench:
    """An ingress whose pool `default` has five turns, and no worker yet."""

    mesh: Mesh
    connection: Connection
    client: PatientClient
    tasks: list[str]

    async def load(self, pool: str = "default") -> dict[str, Any]:
        """The answer."""
        answer = await self.client.get(f"/v1/pools/{pool}/load")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store"), answer.text
        load: dict[str, Any] = answer.json()
        return load

    async def until_load(self, **expected: Any) -> dict[str, Any]:
        """Wait until the answer says this."""
        seen: dict[str, Any] = {}

        async def says() -> bool:
            seen.update(await self.load())
            return expected.items() <= seen.items()

        try:
            await until(says)
        except TimeoutError:
            pytest.fail(f"{seen} is not {expected}")
        return seen


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One for all cases, which go on from one another in their order."""
    folder = tmp_path_factory.mktemp("load")
    file = folder / "mesh.toml"
    file.write_text(POOLS)
    variables = {"MESH_CONFIG": str(file), "MESH_WORKER_CONCURRENCY": str(CONCURRENCY)}
    async with (
        running_mesh(folder, "ingress", **variables) as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        agents = Agents(connection)
        tasks = [await agents.submit("!hang 600") for _ in range(4)]
        tasks.append(await agents.submit("!hang 600", priority="high"))
        yield Bench(mesh, connection, client, tasks)
        await agents.close()
        assert mesh.tracebacks() == []


async def test_turns_that_wait_are_counted_by_lane_and_ask_for_workers_though_none_lives(bench: Bench) -> None:
    load = await bench.load()
    assert [(lane["priority"], lane["waiting"], lane["running"]) for lane in load["lanes"]] == [
        ("high", 1, 0),
        ("normal", 4, 0),
        ("low", 0, 0),
    ]
    sums = {name: load[name] for name in ("pool", "waiting", "running", "workers", "places", "wanted_workers")}
    assert sums == {"pool": "default", "waiting": 5, "running": 0, "workers": 0, "places": 0, "wanted_workers": 3}


async def test_a_lane_without_a_consumer_says_what_is_stored_for_it(bench: Bench) -> None:
    # As after a deletion by hand, or before anybody has created it.
    await bench.connection.requests.api("CONSUMER.DELETE.TASKS.default-normal")
    await bench.until_load(waiting=5, running=0, wanted_workers=3)
    config = {"durable_name": "default-normal", "ack_policy": "explicit", "filter_subject": "tasks.default.normal.*"}
    body = {"stream_name": "TASKS", "config": {**config, "ack_wait": 5_000_000_000, "max_waiting": 512}}
    await bench.connection.requests.api("CONSUMER.DURABLE.CREATE.TASKS.default-normal", body)
    await bench.until_load(waiting=5, running=0, wanted_workers=3)


async def test_an_idle_pool_wants_nobody_and_one_that_is_not_there_is_not_found(bench: Bench) -> None:
    idle = await bench.load("idle")
    assert (idle["waiting"], idle["running"], idle["wanted_workers"]) == (0, 0, 0)
    for pool in ("missing", "defaul%74x", "No.Pool", "a" * 500):
        refused = await bench.client.get(f"/v1/pools/{pool}/load")
        assert (refused.status_code, refused.json()["code"]) == (404, "not-found")
        assert len(refused.content) < 1000
    assert "there is default, idle" in refused.json()["detail"]


async def test_many_who_ask_cost_the_broker_one_look_a_second(bench: Bench) -> None:
    asked: list[str] = []

    async def heard(message: Msg) -> None:
        asked.append(message.subject)

    subscription = await bench.connection.client.subscribe("$JS.API.CONSUMER.INFO.>", cb=heard)
    await bench.connection.client.flush()
    began = time.monotonic()
    await asyncio.gather(*(bench.load() for _ in range(100)))
    seconds = time.monotonic() - began
    await bench.connection.client.flush()
    await subscription.unsubscribe()
    # Six consumers, at each of the looks that fit into the time that it took.
    assert len(asked) <= 6 * (1 + int(seconds + 1))


async def test_workers_that_live_count_with_their_places_and_others_do_not(bench: Bench) -> None:
    def told(worker: str, seconds_ago: float, **fields: Any) -> WorkerRecord:
        at = now() - timedelta(seconds=seconds_ago)
        more = {"service": "inference_worker", "pools": ("default",), "concurrency": 64, **fields}
        return WorkerRecord(
            worker=worker, version="0.2.0", pid=1, host="elsewhere", running=0, started_at=at, time=at, **more
        )

    others = (
        told("killed@elsewhere", 60),
        told("leaving@elsewhere", 0, draining=True),
        told("of_another_pool@elsewhere", 0, pools=("idle",)),
        told("runner@elsewhere", 0, service="tool_runner", pools=(), tools=("add",)),
    )
    for record in others:
        await bench.connection.requests.publish(f"$KV.workers.{subjects.worker_key(record.worker)}", encode(record))
    await bench.connection.requests.publish("$KV.workers.rubbish", b"{}")
    worker = await bench.mesh.start("inference_worker")
    await bench.until_load(waiting=3, running=2, workers=1, places=CONCURRENCY, wanted_workers=3)
    await bench.mesh.start("inference_worker")
    await bench.until_load(waiting=1, running=4, workers=2, places=2 * CONCURRENCY, wanted_workers=3)
    await worker.stop()
    # What it has handed over was delivered before, and so counts as running until somebody takes it.
    load = await bench.until_load(workers=1, places=CONCURRENCY, wanted_workers=3)
    assert load["waiting"] + load["running"] == 5


async def test_without_a_broker_nothing_is_promised(bench: Bench) -> None:
    await bench.load()
    await bench.mesh.broker.kill()

    async def refused() -> bool:
        answer = await bench.client.get("/v1/pools/default/load", timeout=30)
        return answer.status_code == 503 and answer.json()["code"] == "broker-unavailable"

    await until(refused)
