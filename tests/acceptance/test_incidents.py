"""Incidents, each one real: what doctor, readiness, metrics and `why` say, within 15 s of it.

The rows make the table of docs/incidents.md: WRITE_INCIDENTS=1 writes it anew, else it is compared.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import apply, declared
from mesh.clock import now
from mesh.errors import BrokerUnavailable
from mesh.fleet.findings import CHECKS
from tests.support import children
from tests.support.broker import Broker, free_port
from tests.support.certificates import make_certificate
from tests.support.cluster import running_cluster
from tests.support.http_client import PatientClient
from tests.support.incidents import WRITE_VARIABLE, Incident, table, table_of_page, write_page
from tests.support.leaf import leaf_and_hub
from tests.support.limits import limit, unlimit
from tests.support.model_server import Exchange, model_server
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.processes import Mesh, Process, running_mesh, serving
from tests.support.small_disk import fill, small_disk
from tests.support.up import ENVIRONMENT
from tests.support.waiting import until
from tests.support.watched import SECONDS_MAX, Watched, doctor, said, shown

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

STATISTICS_SECONDS_MAX = 35 + SECONDS_MAX
"""Statistics are old once they have not been written for 35 s."""
DISK_BYTES = 24 * 1024 * 1024
LANE_MAX = 4
CONFIGURATION = """
[providers.local]
kind = "openai"
base_url = "{url}"
[providers.local.breaker]
open_seconds = 60
samples_min = 2
[pools.default]
[pools.real]
provider = "local"
model = "tiny"
wait_seconds = 3600
[pools.busy]
[pools.still]
[mcp.absent]
command = ["/nowhere/there-is-no-such-program"]
"""


async def dead(exchange: Exchange) -> None:
    """A model server that answers nobody."""
    await exchange.refuse(503, {"error": {"message": "the engine is dead"}})


@asynccontextmanager
async def watched_mesh(folder: Path) -> AsyncIterator[Watched]:
    """A mesh of one process each, whose metrics are received, and one provider of which is down."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(model_server(dead))
        file = folder / "mesh.toml"
        file.write_text(CONFIGURATION.format(url=server.base_url))
        receiver = await OtlpReceiver(folder).start()
        stack.push_async_callback(receiver.stop)
        variables = {
            "MESH_CONFIG": str(file),
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
            "MESH_TEST_CLOCK": "0",
            "MESH_UPGRADE_STREAMS": "0",  # A steward would widen again what is made narrow here.
        }
        services = ("ingress", "inference_worker", "tool_runner", "steward", "stream_edge")
        mesh = await stack.enter_async_context(running_mesh(folder, *services, **variables))
        client = await stack.enter_async_context(PatientClient(timeout=30))
        yield Watched(mesh, client, receiver)


def processes(mesh: Mesh, *services: str) -> list[Process]:
    """The processes of these services."""
    return [process for process in mesh.processes if process.service in services]


async def test_each_incident_is_told_within_15_seconds_with_what_to_do(tmp_path: Path) -> None:
    async with watched_mesh(tmp_path) as watched, connect(watched.mesh.settings, "test") as connection:
        rows = await what_is_wrong_while_all_live(watched, connection)
        rows += await what_only_a_task_can_say(watched)
        rows += await who_is_frozen(watched)
        assert watched.mesh.tracebacks() == []
    rows += await what_is_wrong_with_the_broker(tmp_path)
    rows += await what_a_full_disk_leaves(tmp_path)
    rows += await what_is_wrong_with_a_cluster(tmp_path)
    rows += await what_another_mesh_does(tmp_path)
    if os.environ.get(WRITE_VARIABLE):
        write_page(rows)
    assert table_of_page() == table(rows), f"{WRITE_VARIABLE}=1 writes it anew"


async def what_is_wrong_while_all_live(watched: Watched, connection: Connection) -> list[Incident]:
    """A breaker, an MCP server, a paused and a full lane, a clock, two builds, two configurations, a stream, a name."""
    requests = connection.requests
    status, lines = await watched.doctor(MESH_WORKER="4")
    assert status == 1
    rows = [
        Incident("the doctor has a variable `MESH_WORKER` in its environment, which is none", said(lines, "variables"))
    ]
    until_then = (now() + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    await requests.api("CONSUMER.PAUSE.TASKS.busy-low", {"pause_until": until_then})
    for stream in ("TASKS", "BACKLOG"):
        await limit(requests, stream, max_msgs_per_subject=LANE_MAX)
    await watched.mesh.start(
        "inference_worker", MESH_TEST_CLOCK="30", MESH_BUILD="another", MESH_MAX_TRIES="7", MESH_WORKER_CONCURENCY="9"
    )
    paused = await watched.submit("!say 1", pool="busy", priority="low")
    for _ in range(2 * LANE_MAX - 1):  # In TASKS, and in BACKLOG behind that.
        await watched.submit("!say 1", pool="busy", priority="low")
    broken = [await watched.submit("hello", pool="real") for _ in range(3)][-1]
    await watched.pause("pool/still", reason="its server moves")
    still = await watched.submit("hello", pool="still")
    told = ("valves", "providers", "mcp_servers", "lanes", "clocks", "builds", "configurations", "streams", "variables")
    ready = await watched.until_told(*told)
    status, lines = await watched.doctor()
    assert status == 1
    assert (await watched.readiness())[0] == 200, "it can still accept"
    whys = {
        "valves": await watched.until_waits(still, "pause"),
        "lanes": await watched.until_waits(paused, "pause"),
        "providers": await watched.until_waits(broken, "provider"),
    }
    assert (await watched.why(paused))["waiting"]["on"] == "pause"
    done = {
        "valves": "somebody has paused a pool (`meshctl pause pool still --reason …`)",
        "providers": "the model server of a pool answers 503 to all",
        "mcp_servers": "the program of an MCP server is not there",
        "lanes": "a lane's consumer is paused, and it has as many messages of a tenant as its stream takes",
        "clocks": "the clock of a worker's machine is 30 s ahead",
        "builds": "a worker of another build is started",
        "configurations": "its configuration is another, too",
        "streams": "a stream is not as declared",
        "variables": "a service has `MESH_WORKER_CONCURENCY` in its environment, which is none",
    }
    rows += [
        Incident(what, said(lines, check), shown(ready, check), f"`{check}`", whys.get(check, ""))
        for check, what in done.items()
    ]
    assert "MESH_WORKER_CONCURRENCY may be meant" in rows[-1].doctor
    for stream in ("TASKS", "BACKLOG"):
        await unlimit(requests, stream)
    await watched.mesh.processes[-1].stop()
    return rows


async def what_only_a_task_can_say(watched: Watched) -> list[Incident]:
    """A person, a timer, a child, a dead letter: nothing is wrong with the mesh."""
    add = '!call add {"a": 1, "b": 2}'
    tasks = {
        "approval": ("a call needs an approval", await watched.submit(add, tools=["add"], approval="always")),
        "question": ("the model asks its user", await watched.submit("!ask Which one?", tools=["ask_user"])),
        "retry": (
            "the provider asks for a pause of 10 minutes",
            await watched.submit("!fail rate_limit 1 600\n!say 1"),
        ),
        "step": ("nothing: its turn is generated", await watched.submit("!hang 600\n!say 1")),
    }
    child = '!call spawn_task {"input": "!hang 600"}'
    tasks["subtask"] = ("a sub-task still runs", await watched.submit(child, tools=["spawn_task"]))
    return [Incident(done, why=await watched.until_waits(task, on)) for on, (done, task) in tasks.items()]


async def who_is_frozen(watched: Watched) -> list[Incident]:
    """Workers, runners and stewards are stopped by SIGSTOP: they keep their connections, and their records."""
    add = '!call add {"a": 1, "b": 2}'
    called = await watched.submit(add, tools=["add"], approval="always")
    await watched.until_waits(called, "approval")
    runs = await watched.submit("!hang 600\n!say 1")
    await watched.until_waits(runs, "step")
    [runner] = processes(watched.mesh, "tool_runner")
    runner.signal(signal.SIGSTOP)
    answer = await watched._client.post(
        f"{watched.mesh.ingress_url}/v1/tasks/{called}/inputs",
        json={"kind": "approval", "call": "1-0", "decision": "approved"},
    )
    assert answer.status_code == 202, answer.text
    ready = await watched.until_told("queues")
    why = await watched.until_waits(called, "no-runner")
    status, lines = await watched.doctor()
    assert status == 1
    rows = [
        Incident("the tool runner is frozen (`kill -STOP`), and a tool is called", said(lines, "queues"),
                 shown(ready, "queues"), "`queues`", why)
    ]  # fmt: skip
    await runner.kill()

    frozen = processes(watched.mesh, "inference_worker", "steward")
    for process in frozen:
        if process.is_running:
            process.signal(signal.SIGSTOP)
    waits = await watched.submit("!say 1")

    async def is_told() -> bool:
        told = (await watched.until_told("services"))["services"]["detail"]
        return "none of inference_worker" in told and "none of steward" in told

    await until(is_told, SECONDS_MAX)
    _, ready = await watched.readiness()

    async def promises_nothing() -> bool:
        accepted = await watched._client.post(f"{watched.mesh.ingress_url}/v1/tasks", json={"input": "!say 1"})
        told = accepted.json()["queue"]
        return bool((told["depth"], told["eta_seconds"], told["basis"]) == (None, None, "unknown"))

    await until(promises_nothing, SECONDS_MAX)
    why = await watched.until_waits(waits, "no-worker")
    assert "does not answer" in await watched.until_waits(runs, "no-worker")
    status, lines = await watched.doctor()
    assert status == 1
    done = "all workers and stewards are frozen; a submission is promised no `eta_seconds`"
    rows.append(Incident(done, said(lines, "services"), shown(ready, "services"), "`services`", why))
    ready = await watched.until_told("statistics", seconds=STATISTICS_SECONDS_MAX)
    status, lines = await watched.doctor()
    rows.append(
        Incident("and they stay so: the statistics of lanes are old", said(lines, "statistics"),
                 shown(ready, "statistics"), "`statistics`")
    )  # fmt: skip
    for process in frozen:
        if process.is_running:
            await process.kill()
    return rows


async def what_is_wrong_with_the_broker(folder: Path) -> list[Incident]:
    """No server, a wrong password, a certificate of a stranger: the doctor, and the last line of a service."""
    certificate = make_certificate(folder, "localhost")
    brokers = {
        "login": Broker(folder / "login", extra='authorization { user: me, password: "right" }'),
        "certificate": Broker(folder / "tls", extra=f'tls {{ cert_file: "{certificate}", key_file: "{certificate}" }}'),
    }
    rows = []
    environment = {**ENVIRONMENT, "MESH_HOME": str(folder / "elsewhere")}
    _, lines = await doctor({**environment, "MESH_NATS_URL": f"nats://127.0.0.1:{free_port()}"})
    rows.append(Incident("no server listens where MESH_NATS_URL says", said(lines, "broker")))
    done = {
        "login": "the password of MESH_NATS_URL is wrong",
        "certificate": "another has signed the broker's certificate",
    }
    for check, broker in brokers.items():
        await broker.start()
        try:
            schemes = {
                "login": f"nats://me:wrong@127.0.0.1:{broker.port}",
                "certificate": f"tls://localhost:{broker.port}",
            }
            told = {**environment, "MESH_NATS_URL": schemes[check]}
            _, lines = await doctor(told)
            ended = await children.run([sys.executable, "-m", "steward"], told)
            assert ended.returncode == 2
            rows.append(Incident(done[check], said(lines, check), f"a service ends: `{ended.stderr.splitlines()[-1]}`"))
        finally:
            await broker.stop()
    return rows


async def what_a_full_disk_leaves(folder: Path) -> list[Incident]:
    """The disk was full, and has room again: a stream is dead all the same."""
    receiver = await OtlpReceiver(folder).start()
    home = folder / "small"
    with small_disk(home / "broker" / "jetstream", DISK_BYTES) as disk:
        broker = Broker(home / "broker")
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_METRIC_EXPORT_INTERVAL": "500"}
        mesh = Mesh(home, broker, variables)
        await broker.start()
        try:
            async with connect(mesh.settings, "test") as connection, PatientClient(timeout=30) as client:
                await apply(connection.requests, declared(mesh.settings), update=False)
                await mesh.start("ingress")
                filler = fill(disk)
                with pytest.raises(BrokerUnavailable):
                    await connection.requests.publish("tasks.default.low.default", b"x" * 60_000, timeout_seconds=1)
                filler.unlink()
                watched = Watched(mesh, client, receiver)

                async def told() -> bool:
                    status, checks = await watched.readiness()
                    return status == 503 and not checks["TASKS"]["ok"] and watched.measured("stored")

                await until(told, SECONDS_MAX)
                _, checks = await watched.readiness()
                status, lines = await watched.doctor()
                assert status == 1
                readiness = f"503, `TASKS`: {checks['TASKS']['detail']}"
                done = "the broker's disk was full for a moment, and has room again"
                return [Incident(done, said(lines, "stored"), readiness, "`stored`")]
        finally:
            await asyncio.gather(*(process.stop() for process in mesh.processes))
            await broker.stop()
            await receiver.stop()


async def what_is_wrong_with_a_cluster(folder: Path) -> list[Incident]:
    """Three servers, and one copy of everything: as on a broker that has become a cluster."""
    (folder / "cluster").mkdir()
    receiver = await OtlpReceiver(folder / "cluster").start()
    async with running_cluster(folder / "cluster") as cluster, PatientClient(timeout=30) as client:
        variables = {
            "MESH_NATS_URL": cluster.url,
            "MESH_UPGRADE_STREAMS": "0",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
        }
        mesh = Mesh(folder / "cluster", cluster.nodes[0], variables)
        try:
            async with connect(mesh.settings, "test") as connection:
                await apply(connection.requests, declared(mesh.settings), update=False)
            for service in ("ingress", "steward"):
                await mesh.start(service)
            watched = Watched(mesh, client, receiver)
            ready = await watched.until_told("streams")
            status, lines = await watched.doctor()
            assert status == 1
            done = "the broker is a cluster of three, and has one copy of each stream"
            return [Incident(done, said(lines, "replicas"), shown(ready, "streams"), "`streams`")]
        finally:
            await asyncio.gather(*(process.stop() for process in mesh.processes))
            await receiver.stop()


async def what_another_mesh_does(folder: Path) -> list[Incident]:
    """A hub and a leaf, each with a mesh, share an account since they are linked."""
    async with leaf_and_hub(folder / "linked") as pair:
        first, second = Mesh(folder / "first", pair.hub, {}), Mesh(folder / "second", pair.leaf, {})
        for mesh in (first, second):
            mesh.folder.mkdir()
        await pair.hub.stop()
        async with serving(second, "ingress"):
            await pair.hub.start()
            async with connect(first.settings, "test") as connection:
                await apply(connection.requests, declared(first.settings), update=False)
            await pair.until_linked()
            status, lines = await doctor(first.environment)
            assert status == 1
            ended = await children.run([sys.executable, "-m", "steward"], first.environment)
            assert ended.returncode == 2
            refused = f"a service ends: `{ended.stderr.splitlines()[-1]}`"
            return [Incident("a leaf's mesh shares its account with the hub's", said(lines, "other_mesh"), refused)]


def test_every_check_of_a_fleet_has_its_incident_or_a_reason() -> None:
    page = table_of_page()
    # One process of several that is gone is no incident. Another version is another build; and what else a process may
    # find wrong with itself has tests of its own.
    without = {"answers", "versions", "processes"}
    assert {check for check in CHECKS if f"`{check}`" not in page} == without
