"""What each process says of itself: its record, its metadata, and its health over HTTP, with and without a broker."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import httpx
import pytest

from contracts import VERSION
from contracts.build import BUILD
from contracts.codec import decode
from contracts.records.status import Health, WorkerRecord
from contracts.streams import WORKERS_BUCKET
from mesh.broker.connection import Connection, connect
from mesh.configuration.digest import configuration_digest
from meshctl.commands.workers import read_bucket
from tests.support.broker import Broker, free_port
from tests.support.http_client import PatientClient
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

SERVICES = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
CLOCK_AHEAD_SECONDS = 4.0


async def records(connection: Connection) -> dict[str, WorkerRecord]:
    """The records of all processes, by service."""
    found = await read_bucket(connection.requests, WORKERS_BUCKET, WorkerRecord)
    return {record.service: record for record in found}


async def metadata(connection: Connection, service: str) -> dict[str, str]:
    """What one process of a service says on `$SRV.PING`."""
    answer = json.loads((await connection.requests.one(f"$SRV.PING.{service}")).data)
    told: dict[str, str] = answer["metadata"]
    return told


async def health(address: str, path: str) -> tuple[int, Health]:
    """What is answered on a path of health."""
    async with PatientClient(base_url=f"http://{address}") as client:
        answer = await client.get(path)
        return answer.status_code, decode(answer.content, Health)


async def test_each_process_tells_what_it_is_and_how_it_is(tmp_path: Path) -> None:
    variables = {"MESH_OPS_ADDRESS": "127.0.0.1:0", "MESH_TEST_CLOCK": str(CLOCK_AHEAD_SECONDS)}
    async with running_mesh(tmp_path, *SERVICES, **variables) as mesh, connect(mesh.settings, "test") as connection:

        async def all_told() -> bool:
            return set(await records(connection)) == set(SERVICES)

        await until(all_told)
        told = await records(connection)
        pids = {process.service: process.pid for process in mesh.processes}
        for service in SERVICES:
            record, said = told[service], await metadata(connection, service)
            assert (record.version, record.build, record.pid) == (VERSION, BUILD, pids[service])
            assert record.configuration == configuration_digest(mesh.settings)
            assert record.clock_ahead_seconds == pytest.approx(CLOCK_AHEAD_SECONDS, abs=1.0)
            assert (record.checks, record.draining) == ([], False)
            assert (said["worker"], said["build"], said["configuration"]) == (
                record.worker,
                record.build,
                record.configuration,
            )
            # The two that serve HTTP anyway say where; of the others it is the operators' address.
            assert record.http == said.get("http", said["ops"])
            assert (await health(said["ops"], "/health/live"))[0] == 200
            status, ready = await health(said["ops"], "/health/ready")
            assert (status, ready.ok, ready.service) == (200, True, service), ready
            async with PatientClient(base_url=f"http://{said['ops']}") as client:
                exposed = await client.get("/metrics")
                assert exposed.status_code == 200
                assert b"process_resident_memory_bytes" in exposed.content


async def test_a_process_that_waits_for_its_broker_lives_and_is_not_ready(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, Broker(tmp_path / "broker"), {})
    addresses = {service: f"127.0.0.1:{free_port()}" for service in SERVICES}
    processes = [
        Process(service, {**mesh.environment_of(service), "MESH_OPS_ADDRESS": address}, tmp_path / f"{service}.log")
        for service, address in addresses.items()
    ]
    starting = [asyncio.create_task(process.start()) for process in processes]

    async def lives(address: str) -> bool:
        try:
            return (await health(address, "/health/live"))[0] == 200
        except httpx.TransportError:
            return False

    try:
        for address in addresses.values():
            await until(lambda address=address: lives(address))  # type: ignore[misc]  # mypy takes no lambda for one
            status, ready = await health(address, "/health/ready")
            assert (status, [(check.name, check.ok) for check in ready.checks if not check.ok]) == (
                503,
                [("broker", False)],
            )
    finally:
        assert [await process.stop() for process in processes] == [0] * len(SERVICES)
        await asyncio.gather(*starting, return_exceptions=True)
    assert not [process.service for process in processes if "Traceback" in process.log.read_text()]


async def test_a_worker_that_drains_says_so_while_it_does(tmp_path: Path) -> None:
    variables = {"MESH_OPS_ADDRESS": "127.0.0.1:0", "MESH_DRAIN_SECONDS": "60"}
    async with running_mesh(tmp_path, "ingress", **variables) as mesh, connect(mesh.settings, "test") as connection:
        worker = await mesh.start("inference_worker")
        address = (await metadata(connection, "inference_worker"))["ops"]
        async with PatientClient(base_url=mesh.ingress_url) as client:
            await client.post("/v1/tasks", json={"input": "!hang 600"})

        async def runs() -> bool:
            info = await connection.requests.api("CONSUMER.INFO.TASKS.default-normal")
            return bool(info["num_ack_pending"] == 1)

        await until(runs)
        worker.signal(signal.SIGTERM)

        async def says_so() -> bool:
            return (await records(connection))["inference_worker"].draining

        await until(says_so)
        status, ready = await health(address, "/health/ready")
        assert (status, [check.name for check in ready.checks if not check.ok]) == (503, ["draining"])
        worker.signal(signal.SIGTERM)  # It need not wait for a model that says nothing.
        await until(lambda: not worker.is_running)


async def test_metrics_are_at_no_address_of_a_service_that_users_reach(tmp_path: Path) -> None:
    async with (
        running_mesh(tmp_path, "ingress") as mesh,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        assert (await client.get("/metrics")).status_code == 404
