"""A client of a cluster of three servers: which of them is there does not matter."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from urllib.parse import ParseResult

import pytest

from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import apply, compare, declared, find_declared
from mesh.broker.replication import read_copies, until_current
from mesh.configuration.mesh_toml import NO_FILE
from mesh.configuration.settings import load_settings
from mesh.errors import BrokerError, SettingsError
from tests.support import children
from tests.support.broker import Broker
from tests.support.certificates import make_certificate
from tests.support.cluster import running_cluster
from tests.support.patience import within
from tests.support.waiting import until

pytestmark = pytest.mark.integration


async def test_a_connection_that_knows_one_node_hears_of_the_others_and_moves_on(tmp_path: Path) -> None:
    async with running_cluster(tmp_path) as cluster:
        settings = load_settings({"MESH_NATS_URL": cluster.nodes[0].url, "MESH_HOME": str(tmp_path)})
        async with connect(settings, "test") as connection:
            for _ in range(2):
                port = port_of(connection.client.connected_url)
                await next(node for node in cluster.nodes if node.port == port).kill()
                await until(partial(has_moved, connection, port))


async def test_names_of_certificates_hold_for_servers_that_are_only_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path, "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = f'tls {{ cert_file: "{certificate}", key_file: "{certificate}" }}'
    async with running_cluster(tmp_path / "cluster", extra=tls) as cluster:
        settings = load_settings({"MESH_NATS_URL": f"tls://localhost:{cluster.nodes[0].port}"})
        async with connect(settings, "test") as connection:
            # The others tell their addresses, and show the same name.
            for _ in range(2):
                port = port_of(connection.client.connected_url)
                await next(node for node in cluster.nodes if node.port == port).kill()
                await until(partial(has_moved, connection, port))


async def test_a_server_that_ends_while_it_greets_costs_a_start_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever pings the server that has gone waits for longer than the test.
    monkeypatch.setattr("mesh.broker.connection.PING_ANSWER_SECONDS", 600.0)
    greeted = 0

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal greeted
        greeted += 1
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","headers":true,"max_payload":1048576}\r\n')
        await writer.drain()
        await reader.readline()
        writer.close()

    broker = Broker(tmp_path)
    await broker.start()
    try:
        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            ending = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            settings = load_settings({"MESH_NATS_URL": f"{ending},{broker.url}"})
            async with within(10):
                # Each try has an order of its own: at last one begins with the server that ends.
                while not greeted:
                    async with connect(settings, "test") as connection:
                        await connection.requests.api("INFO")
    finally:
        await broker.stop()


def has_moved(connection: Connection, was: int | None) -> bool:
    return connection.is_connected and port_of(connection.client.connected_url) != was


def port_of(url: ParseResult | None) -> int | None:
    return url.port if url is not None else None


async def test_a_stream_of_one_copy_on_a_cluster_is_named_and_one_command_gives_it_three(tmp_path: Path) -> None:
    async with running_cluster(tmp_path) as cluster:
        environment = {"MESH_NATS_URL": cluster.url, "MESH_HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
        settings = load_settings({**environment, "MESH_CONFIG": NO_FILE})
        async with connect(settings, "test") as connection:
            requests = connection.requests
            # As an earlier version made them on any broker.
            await apply(requests, declared(settings), update=False)
            planned = await meshctl("streams", "plan", **environment)
            assert planned.returncode == 3
            lines = [json.loads(line) for line in planned.stdout.splitlines()]
            [said] = [line for line in lines if line["event"] == "streams.one_copy_on_a_cluster"]
            assert len(said["streams"]) == len(declared(settings).streams)
            doctor = await meshctl("doctor", **environment)
            assert doctor.returncode == 1
            assert check_of(doctor.stdout, "replicas")["detail"].startswith(
                f"R1 on a cluster: all {len(declared(settings).streams)} streams and buckets"
            )

            applied = await meshctl("streams", "apply", **environment)
            assert applied.returncode == 0, applied.stdout + applied.stderr
            lines = [json.loads(line) for line in applied.stdout.splitlines()]
            assert {"event": "streams.copied", "replicas": 3, "behind": []} in lines
            for stream in ("TASKS", "EVENTS", "KV_tasks", "OBJ_results"):
                info = await requests.api(f"STREAM.INFO.{stream}")
                assert [each["current"] for each in info["cluster"]["replicas"]] == [True, True]
            consumer = await requests.api("CONSUMER.INFO.TASKS.default-normal")
            assert len(consumer["cluster"]["replicas"]) == 2
            doctor = await meshctl("doctor", **environment)
            assert check_of(doctor.stdout, "replicas")["status"] == "ok"

            (tmp_path / "mesh.toml").write_text("[storage]\nreplicas = 1\n")
            one = {**environment, "MESH_CONFIG": str(tmp_path / "mesh.toml")}
            assert (await meshctl("streams", "apply", **one)).returncode == 0
            assert (await requests.api("STREAM.INFO.TASKS"))["config"]["num_replicas"] == 1
            assert check_of((await meshctl("doctor", **one)).stdout, "replicas")["status"] == "warn"


async def test_a_cluster_gets_three_copies_from_the_start_and_no_server_alone_does(tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text("[storage]\nreplicas = 5\n")
    async with running_cluster(tmp_path) as cluster:
        settings = load_settings({"MESH_NATS_URL": cluster.url, "MESH_CONFIG": NO_FILE})
        async with connect(settings, "test") as connection:
            requests = connection.requests
            wanted = await find_declared(requests, settings)
            assert await apply(requests, wanted, update=False) != []
            assert await until_current(requests, [stream.name for stream in wanted.streams]) == []
            assert {copies.replicas for copies in await read_copies(requests, ["TASKS", "KV_tasks"])} == {3}
            assert await compare(requests, wanted) == []
            # Nobody asked for one: what is there has enough.
            assert await compare(requests, declared(settings)) == []
            await requests.api("STREAM.DELETE.KV_walks")
            five = load_settings({"MESH_NATS_URL": cluster.url, "MESH_CONFIG": str(tmp_path / "mesh.toml")})
            with pytest.raises(BrokerError, match=r"no 5 servers with room: start them, or set storage\.replicas"):
                await apply(requests, await find_declared(requests, five), update=False)
    broker = Broker(tmp_path / "alone")
    await broker.start()
    try:
        alone = load_settings({"MESH_NATS_URL": broker.url, "MESH_CONFIG": str(tmp_path / "mesh.toml")})
        async with connect(alone, "test") as connection:
            with pytest.raises(SettingsError, match=r"storage\.replicas: 5 copies need a cluster of 5 servers"):
                await find_declared(connection.requests, alone)
    finally:
        await broker.stop()


async def meshctl(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return await children.run([sys.executable, "-m", "meshctl", *arguments], environment)


def check_of(printed: str, name: str) -> dict[str, str]:
    """The doctor's line of that name."""
    return next(line for line in map(json.loads, printed.splitlines()) if line["check"] == name)
