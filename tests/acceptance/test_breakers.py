"""A provider that is down, under load: real processes, a server on loopback that fails at everything for a while.

OUTAGE_SECONDS says how long (8 by default): `OUTAGE_SECONDS=30 python -m pytest -s tests/acceptance/test_breakers.py`
prints the figures of a longer one.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import httpx
import pytest

from contracts.codec import decode
from contracts.records.providers import ProviderRecord
from mesh.broker import key_value
from mesh.broker.connection import connect
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import Viewer, post_task, submit
from tests.support.http_client import PatientClient
from tests.support.model_server import Exchange, ModelServer, model_server, openai
from tests.support.processes import Mesh, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

OUTAGE_SECONDS = float(os.environ.get("OUTAGE_SECONDS", "8"))
TASKS = 200
FIRST_TASKS = 40
DELIVERIES_MAX = 10
TRIES_MAX = 5


class Switched:
    """A server that can be switched off: then it says that it is overloaded."""

    def __init__(self) -> None:
        self.down = False
        self.refused = 0

    async def __call__(self, exchange: Exchange) -> None:
        if self.down:
            self.refused += 1
            await exchange.refuse(503, {"error": {"message": "the engine is dead"}})
        else:
            await openai(exchange)


def configured(folder: Path, server: ModelServer, breaker: str, pool: str) -> dict[str, str]:
    """A mesh.toml whose pool is on that server."""
    file = folder / "mesh.toml"
    file.write_text(
        f"""
        [providers.local]
        kind = "openai"
        base_url = "{server.base_url}"
        [providers.local.breaker]
        {breaker}
        [pools.default]
        provider = "local"
        model = "tiny"
        {pool}
        """
    )
    return {"MESH_CONFIG": str(file)}


def logged(mesh: Mesh, event: str, **fields: object) -> int:
    """How many such lines the processes have logged."""
    return sum(line.get("event") == event and fields.items() <= line.items() for line in mesh.logs())


async def breaker_of(mesh: Mesh) -> ProviderRecord | None:
    """The record of the provider."""
    async with connect(mesh.settings, "test") as connection:
        entry = await key_value.get(connection.requests, "providers", "local")
    return decode(entry.value, ProviderRecord) if entry is not None and entry.value is not None else None


def is_quiet(mesh: Mesh, server: ModelServer) -> bool:
    """Whether both workers know that it is open, and each call that the server saw has come to its end."""
    calls = len(server.exchanges)
    ended = logged(mesh, "step.completed") + logged(mesh, "step.retrying", code="provider-overloaded")
    return logged(mesh, "breaker.seen", closed=False) >= 2 and calls == ended


async def test_an_outage_under_load_costs_probes_alone_and_no_task(tmp_path: Path) -> None:
    recorded, switched = Recorded(), Switched()
    services = ("ingress", "stream_edge", "steward", "inference_worker", "inference_worker")
    async with model_server(switched) as server:
        variables = configured(tmp_path, server, "open_seconds = 1\nopen_seconds_max = 4", "wait_seconds = 3600")
        variables["MESH_LOG_LEVEL"] = "debug"  # Which tells of each step that ended.
        async with running_mesh(tmp_path, *services, **variables) as mesh, PatientClient(timeout=30) as client:
            viewers: list[asyncio.Task[object]] = []

            async def post(count: int) -> None:
                for _ in range(count):
                    task = await submit(client, mesh.ingress_url, recorded, "hello")
                    viewer = Viewer(str(mesh.settings.edge_address), task)
                    recorded.histories.append(viewer.history)
                    viewers.append(asyncio.create_task(viewer.follow(seconds=OUTAGE_SECONDS + 120)))

            await post(FIRST_TASKS)
            switched.down = True
            outage = asyncio.create_task(asyncio.sleep(OUTAGE_SECONDS))
            await post(TASKS - FIRST_TASKS)
            await until(lambda: is_quiet(mesh, server))
            calls_before = len(server.exchanges)
            refused_before = switched.refused
            await outage
            await until(lambda: logged(mesh, "breaker.half_open") >= 2 and len(server.exchanges) > calls_before)
            probes = logged(mesh, "breaker.half_open")
            calls_while_open = len(server.exchanges) - calls_before
            switched.down = False
            async with connect(mesh.settings, "test") as connection:
                await until_no_work_is_left(connection)
                await asyncio.gather(*viewers)
                stored = await read_stored(connection.requests)
            assert check(recorded, stored) == []
            assert mesh.tracebacks() == []
            await until(lambda: logged(mesh, "breaker.closed") >= 1)
            closed = await breaker_of(mesh)
    assert closed is not None
    assert closed.state == "closed"
    assert 1 <= calls_while_open <= probes
    assert stored.dead_letters == []
    assert {record["status"] for record in stored.records.values()} == {"completed"}
    assert {record["output"] for record in stored.records.values()} == {"Hello"}
    assert len(stored.journals) == TASKS
    events = [event.event for journal in stored.journals.values() for event in journal]
    deliveries = Counter(event["delivery"] for event in events if event["type"] == "step.claimed")
    tries = Counter(event["tries"] for event in events if event["type"] == "task.retrying")
    assert max(deliveries) <= DELIVERIES_MAX // 2
    assert max(tries) < TRIES_MAX
    print(  # noqa: T201 - the figures of a run that was asked for
        f"\noutage {OUTAGE_SECONDS:g} s, {TASKS} tasks: {refused_before} calls failed until it was open everywhere, "
        f"{calls_while_open} calls from then on ({probes} probes claimed); claims by delivery "
        f"{dict(sorted(deliveries.items()))}, retries by tries {dict(sorted(tries.items()))}"
    )


async def test_a_lone_task_outlives_an_outage_in_which_it_is_every_probe(tmp_path: Path) -> None:
    """More probes than it has tries or deliveries: neither is used up by them."""
    recorded, switched = Recorded(), Switched()
    services = ("ingress", "stream_edge", "steward", "inference_worker", "inference_worker")
    async with model_server(switched) as server:
        variables = configured(
            tmp_path, server, "samples_min = 2\nopen_seconds = 0.1\nopen_seconds_max = 0.1", "wait_seconds = 3600"
        )
        async with running_mesh(tmp_path, *services, **variables) as mesh, PatientClient(timeout=30) as client:
            switched.down = True
            task = await submit(client, mesh.ingress_url, recorded, "hello")
            await until(lambda: switched.refused > DELIVERIES_MAX + TRIES_MAX)
            assert (await client.get(f"{mesh.ingress_url}/v1/tasks/{task}")).json()["status"] == "running"
            switched.down = False
            recorded.histories.append(await Viewer(str(mesh.settings.edge_address), task).follow())
            async with connect(mesh.settings, "test") as connection:
                await until_no_work_is_left(connection)
                stored = await read_stored(connection.requests)
            assert check(recorded, stored) == []
            assert mesh.tracebacks() == []
    assert stored.records[task]["output"] == "Hello"


async def test_tasks_that_would_wait_too_long_are_refused_until_a_probe_gets_through(tmp_path: Path) -> None:
    recorded, switched = Recorded(), Switched()
    services = ("ingress", "stream_edge", "steward", "inference_worker")
    async with model_server(switched) as server:
        variables = configured(tmp_path, server, "open_seconds = 1\nopen_seconds_max = 1", "wait_seconds = 2")
        async with running_mesh(tmp_path, *services, **variables) as mesh, PatientClient(timeout=30) as client:
            switched.down = True
            key = {"Idempotency-Key": "the first one"}
            body = {"input": "hello"}
            first = await client.post(f"{mesh.ingress_url}/v1/tasks", json=body, headers=key)
            recorded.accepted.add(first.json()["id"])
            for _ in range(20):
                await submit(client, mesh.ingress_url, recorded, "hello")
            answers: list[httpx.Response] = []

            async def answered(status: int) -> bool:
                answer = await post_task(client, mesh.ingress_url, "hello")
                if answer.status_code == 202:
                    recorded.accepted.add(answer.json()["id"])
                answers.append(answer)
                await asyncio.sleep(0.05)
                return answer.status_code == status

            await until(lambda: answered(503))
            refusal = answers[-1]
            assert (refusal.json()["code"], refusal.json()["cause"]) == ("pool-unavailable", "no-provider")
            assert refusal.headers["content-type"] == "application/problem+json"
            assert int(refusal.headers["retry-after"]) >= 1
            again = await client.post(f"{mesh.ingress_url}/v1/tasks", json=body, headers=key)
            assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
            switched.down = False
            await until(lambda: answered(202))
            async with connect(mesh.settings, "test") as connection:
                await until_no_work_is_left(connection)
                stored = await read_stored(connection.requests)
            assert check(recorded, stored) == []
            assert stored.journals.keys() == recorded.accepted
            assert stored.dead_letters == []
