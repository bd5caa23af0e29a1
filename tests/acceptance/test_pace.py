"""A fleet that keeps to what a provider allows: real processes, and a server on loopback that enforces it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from contracts import subjects
from contracts.codec import decode
from contracts.records.pace import PaceRecord, pace_key
from contracts.streams import lane_consumer
from mesh.broker import key_value
from mesh.broker.connection import Connection, connect
from mesh.clock import now
from tests.support.checker import Recorded, Stored, check, read_stored
from tests.support.clients import PostingConnection
from tests.support.limited_provider import LimitedProvider, asking, limited_server, mesh_toml
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.waiting import until, until_no_work_is_left

pytestmark = pytest.mark.acceptance

TENANTS = 20
FAR_SECONDS = 0.12


async def post(
    mesh: Mesh, recorded: Recorded, count: int, put_out: int = 60, read: int = 40, pool: str | None = None
) -> None:
    """So many tasks in one burst, of all tenants."""
    numbers = iter(range(count))
    body = asking(put_out, read)
    if pool is not None:
        body = json.dumps(json.loads(body) | {"pool": pool}).encode()

    async def post_some() -> None:
        connection = PostingConnection(str(mesh.settings.ingress_address))
        for number in numbers:
            tenant = f"Mesh-Tenant: tenant-{number % TENANTS}\r\n"
            status, _, payload = await connection.post(body, tenant)
            assert status == 202, payload
            recorded.accepted.add(json.loads(payload)["id"])
        connection.close()

    await asyncio.gather(*(post_some() for _ in range(8)))


async def record_of(connection: Connection) -> PaceRecord | None:
    entry = await key_value.get(connection.requests, "providers", pace_key("local"))
    return decode(entry.value, PaceRecord) if entry is not None and entry.value is not None else None


async def lane_info(connection: Connection, priority: str) -> dict[str, Any]:
    return await connection.requests.api(f"CONSUMER.INFO.TASKS.{lane_consumer('TASKS', 'default', priority)}")


async def delivered(connection: Connection) -> int:
    """Messages of the pool's lanes that were delivered, and are neither answered for good nor pulled again."""
    infos = [await lane_info(connection, priority) for priority in subjects.PRIORITIES]
    return sum(int(info["num_ack_pending"]) for info in infos)


def no_turn_is_held(connection: Connection) -> Callable[[], Awaitable[bool]]:
    async def is_so() -> bool:
        return await delivered(connection) == 0

    return is_so


def claims_of(stored: Stored, task: str) -> list[dict[str, Any]]:
    return [each.event for each in stored.journals[task] if each.event["type"] == "step.claimed"]


def knows_that_it_is_shut(worker: Process) -> bool:
    """Whether a worker has shut the provider, or heard of it."""
    said = worker.log.read_text()
    return '"pace.shut"' in said or '"pace.seen_shut"' in said


async def all_completed(mesh: Mesh, connection: Connection, recorded: Recorded) -> Stored:
    """Wait until all tasks have, with nothing lost and nothing broken; what is stored then."""
    await until_no_work_is_left(connection, seconds=90)
    stored = await read_stored(connection.requests)
    assert mesh.tracebacks() == []
    assert check(recorded, stored) == []
    assert {each["status"] for each in stored.records.values()} == {"completed"}
    return stored


def tries_of(stored: Stored) -> list[int]:
    """Of each task that was tried again: how many of its tries counted."""
    events = [event.event for journal in stored.journals.values() for event in journal]
    return [event["tries"] for event in events if event["type"] == "task.retrying"]


async def test_a_burst_goes_at_the_pace_that_is_allowed_also_while_a_worker_dies(tmp_path: Path) -> None:
    tasks, recorded = 240, Recorded()
    provider = LimitedProvider(requests_per_second=40, tokens_per_second=4_000, seconds=6)
    async with limited_server(provider) as server:
        (tmp_path / "mesh.toml").write_text(mesh_toml(server.base_url, provider))
        services = ("ingress", "steward", "inference_worker", "inference_worker")
        config = {"MESH_CONFIG": str(tmp_path / "mesh.toml"), "MESH_ACK_WAIT_SECONDS": "3"}
        async with (
            running_mesh(tmp_path, *services, **config) as mesh,
            connect(mesh.settings, "test") as connection,
            mesh.at_a_distance(FAR_SECONDS),
        ):
            killed = mesh.processes[-1]
            await mesh.start("inference_worker")
            await post(mesh, recorded, tasks)
            await until(lambda: provider.taken >= tasks // 4)
            await killed.kill()
            stored = await all_completed(mesh, connection, recorded)
            record = await record_of(connection)
    assert len(stored.records) == tasks
    # One that is far away gets its turns, too.
    workers = {claim["worker"] for task in stored.journals for claim in claims_of(stored, task)}
    assert len(workers) == 3
    # The provider's bucket holds 6 s: a fleet that did not keep to the pace would soon be beyond it.
    assert provider.refused <= 0.01 * provider.taken
    assert provider.part_used("requests") <= 1 + 2 / (provider.last_at - provider.first_at)
    assert record is not None
    assert record.input_tokens == pytest.approx(40, rel=0.1)
    assert record.output_tokens == pytest.approx(60, rel=0.1)


async def test_what_waits_for_its_pace_holds_no_delivery_and_no_place(tmp_path: Path) -> None:
    waiting, others = Recorded(), Recorded()
    provider = LimitedProvider(requests_per_second=0.002, tokens_per_second=1e6, seconds=1000)
    async with limited_server(provider) as server:
        text = mesh_toml(server.base_url, provider) + "\n[pools.other]\n"
        (tmp_path / "mesh.toml").write_text(text)
        # More wait than the worker has places.
        config = {"MESH_CONFIG": str(tmp_path / "mesh.toml"), "MESH_WORKER_CONCURRENCY": "2"}
        services = ("ingress", "steward", "inference_worker")
        async with running_mesh(tmp_path, *services, **config) as mesh, connect(mesh.settings, "test") as connection:
            await post(mesh, waiting, 30)
            await until(lambda: provider.taken > 0)
            await until(no_turn_is_held(connection))
            await post(mesh, others, 20, pool="other")

            async def others_are_done() -> bool:
                held.append(await delivered(connection))
                records = (await read_stored(connection.requests)).records
                return all(records.get(task, {}).get("status") == "completed" for task in others.accepted)

            held: list[int] = []
            await until(others_are_done)
            stored = await read_stored(connection.requests)
            infos = [await lane_info(connection, priority) for priority in subjects.PRIORITIES]
            assert mesh.tracebacks() == []
    assert max(held) == 0
    # A message that comes while the gate shuts goes back.
    assert sum(int(info["num_redelivered"]) for info in infos) <= 1
    begun = [task for task in waiting.accepted if task in stored.journals and claims_of(stored, task)]
    assert len(begun) == provider.taken == 1


async def test_a_refusal_shuts_the_provider_for_all_workers_until_its_time(tmp_path: Path) -> None:
    recorded = Recorded()
    provider = LimitedProvider(requests_per_second=100, tokens_per_second=100_000, seconds=6, turn_seconds=0.0)
    async with limited_server(provider) as server:
        (tmp_path / "mesh.toml").write_text(mesh_toml(server.base_url, provider))
        services = ("ingress", "steward", *["inference_worker"] * 3)
        config = {"MESH_CONFIG": str(tmp_path / "mesh.toml")}
        async with running_mesh(tmp_path, *services, **config) as mesh, connect(mesh.settings, "test") as connection:
            provider.shut_until = time.monotonic() + 3600
            await post(mesh, recorded, 3)
            await until(lambda: provider.refused > 0)

            async def shut() -> bool:
                record = await record_of(connection)
                return record is not None and record.shut_until is not None and record.shut_until > now()

            await until(shut)
            await until(lambda: all(knows_that_it_is_shut(worker) for worker in mesh.processes[-3:]))
            await post(mesh, recorded, 40)
            # What was pulled goes back: it holds no worker's place.
            await until(lambda: len(mesh.logs_of("delivery.not_begun")) >= provider.refused)
            # Three may have been under way; nobody tried any of the other forty.
            assert provider.refused <= 3
            assert provider.taken == 0
            assert len(mesh.logs_of("pace.shut")) >= 1
            assert await delivered(connection) <= 3

            # As an operator would open it by hand.
            provider.shut_until = 0.0
            await key_value.delete(connection.requests, "providers", pace_key("local"))
            await connection.requests.announce(subjects.provider_changed("local", "paced"))
            stored = await all_completed(mesh, connection, recorded)
            assert provider.refused <= 3
    assert stored.dead_letters == []
    assert max(tries_of(stored), default=0) <= 1, "a refusal counts as no try"


async def test_a_fleet_keeps_to_a_concurrency_and_a_dead_worker_does_not_keep_its_places(tmp_path: Path) -> None:
    recorded = Recorded()
    provider = LimitedProvider(requests_per_second=1_000, tokens_per_second=1e9, seconds=6, turn_seconds=0.2)
    async with limited_server(provider) as server:
        text = mesh_toml(server.base_url, provider, more="concurrency = 4", times=2)
        (tmp_path / "mesh.toml").write_text(text)
        services = ("ingress", "steward", *["inference_worker"] * 2)
        config = {"MESH_CONFIG": str(tmp_path / "mesh.toml"), "MESH_ACK_WAIT_SECONDS": "3"}
        async with running_mesh(tmp_path, *services, **config) as mesh, connect(mesh.settings, "test") as connection:
            await post(mesh, recorded, 60)
            await until(lambda: provider.taken >= 20)
            await mesh.processes[-1].kill()
            await all_completed(mesh, connection, recorded)
            record = await record_of(connection)
    # Its headers tell of less than what is set.
    assert record is not None
    assert record.told == {limit: allowed * 60 for limit, allowed in provider.allowed.items()}
    # A turn of each worker may begin on credit.
    assert provider.running_most <= 4 + 2
