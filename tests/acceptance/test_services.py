"""Each service as a process: how it starts, waits, refuses to start and stops; and what it alone is there for."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts import VERSION, subjects
from contracts.api.sse import Decoder
from contracts.codec import decode
from contracts.records.status import LaneStatistics
from contracts.streams import SIGNALS
from mesh.broker import key_value
from mesh.broker.connection import connect
from mesh.broker.provisioning import compare, declared
from mesh.configuration.mesh_toml import NO_FILE
from mesh.serving.http import SHUTDOWN_SECONDS
from tests.support import children
from tests.support.broker import Broker
from tests.support.http_client import PatientClient
from tests.support.patience import within
from tests.support.processes import ROOT, Mesh, Process, running_mesh
from tests.support.tasks import append_text, begin_journal, turn_work
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

on_the_modules_loop = pytest.mark.asyncio(loop_scope="module")

SERVICES = ("ingress", "inference_worker", "tool_runner", "stream_edge", "steward")
ORIGIN = "https://app.example"
STOP_SECONDS_MAX = SHUTDOWN_SECONDS + 2.0


# Starting and stopping


class Attempts:
    """Stands where the broker is going to be, and notes that somebody tried to connect. It says nothing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self.tried = asyncio.Event()

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._on_connection, "127.0.0.1", self._port)

    async def close(self) -> None:
        """Make room for the broker."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _on_connection(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.tried.set()


@asynccontextmanager
async def waiting_service(
    folder: Path, service: str
) -> AsyncIterator[tuple[Mesh, Process, asyncio.Task[Process], Attempts]]:
    """A service that has tried to reach its broker, which is not there yet."""
    broker = Broker(folder / "broker")
    mesh = Mesh(folder, broker, {})
    attempts = Attempts(broker.port)
    await attempts.open()
    process = Process(service, mesh.environment_of(service), folder / f"{service}.log")
    starting = asyncio.create_task(process.start())
    try:
        async with within(20):
            await attempts.tried.wait()
        yield mesh, process, starting, attempts
    finally:
        await process.stop()
        await asyncio.gather(starting, return_exceptions=True)
        await broker.stop()


async def test_each_service_alone_serves_once_the_broker_is_there_and_shows_up_in_nats_micro(tmp_path: Path) -> None:
    async def run_alone(service: str) -> None:
        async with waiting_service(tmp_path / service, service) as (mesh, process, starting, attempts):
            assert not starting.done()
            await attempts.close()
            await mesh.broker.start()
            await starting
            async with connect(mesh.settings, "test") as connection:
                for verb in ("INFO", "PING"):
                    answer = json.loads((await connection.requests.one(f"$SRV.{verb}.{service}")).data)
                    assert (answer["name"], answer["version"]) == (service, VERSION)
                    assert answer["metadata"]["pid"] == str(process.pid)
                    assert answer["type"] == f"io.nats.micro.v1.{verb.lower()}_response"
            if process.address:
                async with PatientClient(base_url=f"http://{process.address}") as client:
                    assert (await client.get("/health/live")).json()["service"] == service
                    # The broker is empty but for what a steward would make.
                    assert (await client.get("/health/ready")).status_code == 503
            assert await process.stop() == 0
            assert "Traceback" not in process.log.read_text()

    for service in SERVICES:
        (tmp_path / service).mkdir()
    await asyncio.gather(*(run_alone(service) for service in SERVICES))


async def test_each_service_ends_at_once_when_told_to_while_it_waits_for_the_broker(tmp_path: Path) -> None:
    async def end_waiting(service: str) -> None:
        async with waiting_service(tmp_path / service, service) as (_, process, starting, attempts):
            async with within(3):
                assert await process.stop() == 0
            with pytest.raises(RuntimeError, match="did not start"):
                await starting
            assert "Traceback" not in process.log.read_text()
            await attempts.close()

    for service in SERVICES:
        (tmp_path / service).mkdir()
    await asyncio.gather(*(end_waiting(service) for service in SERVICES))


async def start_in_vain(service: str, **variables: str) -> tuple[int | None, str]:
    """Run a service that must not start; its status and what it said."""
    environment = {"PYTHONPATH": f"{ROOT}/libs:{ROOT}/services", "PATH": "", "MESH_CONFIG": NO_FILE, **variables}
    ended = await children.run([sys.executable, "-m", service], environment)
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


async def test_a_setting_that_makes_no_sense_ends_a_service_with_one_line_that_names_it() -> None:
    wrong = [
        ("ingress", "MESH_INGRESS_ADDRESS", "nowhere"),
        ("ingress", "MESH_INGRESS_ADDRESS", "127.0.0.1:99999"),
        ("stream_edge", "MESH_EDGE_STREAMS_MAX", "0"),
        ("inference_worker", "MESH_WORKER_CONCURRENCY", "many"),
        ("inference_worker", "MESH_SCRIPTED_ALLOW_EXIT", "perhaps"),
        ("tool_runner", "MESH_ACK_WAIT_SECONDS", "nan"),
        ("steward", "MESH_LOG_LEVEL", "loud"),
        ("steward", "MESH_NATS_URL", "nats://127.0.0.1:port"),
    ]
    ended = await asyncio.gather(*(start_in_vain(service, **{variable: value}) for service, variable, value in wrong))
    for (service, variable, _), (status, said) in zip(wrong, ended, strict=True):
        assert (status, said.count("\n")) == (2, 1), said
        assert said.startswith(f"{service}: ")
        assert variable in said


async def test_a_port_that_is_taken_ends_a_service_with_one_line_that_names_the_setting(broker: Broker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for service, variable in (("ingress", "MESH_INGRESS_ADDRESS"), ("stream_edge", "MESH_EDGE_ADDRESS")):
            status, said = await start_in_vain(service, MESH_NATS_URL=broker.url, **{variable: address})
            assert (status, said.count("\n")) == (2, 1), said
            assert said.startswith(f"{service}: {variable}='{address}': ")


async def test_an_edge_that_is_told_to_stop_ends_its_streams_whatever_their_readers_do(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, "stream_edge") as mesh, connect(mesh.settings, "test") as connection:
        (edge,) = mesh.processes
        journal = await begin_journal(connection.requests, turn_work())
        for _ in range(12):
            await append_text(journal, "x" * 700_000)
        stuck = socket.socket()
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect((mesh.settings.edge_address.host, mesh.settings.edge_address.port))
        stuck.sendall(f"GET /v1/tasks/{journal.state.task}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        up_to_date = asyncio.Semaphore(0)

        async def read() -> None:
            """Read to the orderly end of the stream."""
            decoder = Decoder()
            types: list[str] = []
            async with (
                PatientClient(base_url=mesh.edge_url) as client,
                client.stream("GET", f"/v1/tasks/{journal.state.task}/events", timeout=20) as response,
            ):
                async for chunk in response.aiter_bytes():
                    types += [frame.event_type for frame in decoder.feed(chunk)]
                    if types == ["task.queued", "step.claimed", *["output.delta"] * 12]:
                        up_to_date.release()

        reading = [asyncio.create_task(read()) for _ in range(5)]
        for _ in reading:
            await up_to_date.acquire()
        async with within(STOP_SECONDS_MAX):
            edge.signal(signal.SIGTERM)
            async with within(2):  # Who reads is told at once.
                await asyncio.gather(*reading)
            assert await edge.stop() == 0
        stuck.close()
        assert mesh.tracebacks() == []


async def test_an_ingress_that_is_told_to_stop_answers_those_who_wait(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, "ingress") as mesh, PatientClient(base_url=mesh.ingress_url) as client:
        (ingress,) = mesh.processes
        waiting = asyncio.create_task(
            client.post("/v1/tasks", json={"input": "hello"}, headers={"Prefer": "wait=30"}, timeout=30)
        )

        async def accepted() -> bool:
            return len((await client.get("/v1/tasks")).json()["tasks"]) == 1

        await until(accepted)
        async with within(STOP_SECONDS_MAX):
            assert await ingress.stop() == 0
        answer = await waiting
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")
        assert mesh.tracebacks() == []


# The steward


async def test_the_steward_tells_how_a_lane_stands_and_the_ingress_passes_it_on(tmp_path: Path) -> None:
    async with (
        running_mesh(tmp_path, "ingress", "steward") as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):

        async def statistics() -> LaneStatistics:
            entry = await key_value.get(connection.requests, "lanes", subjects.lane_key("default", "normal"))
            assert entry is not None
            assert entry.value is not None
            return decode(entry.value, LaneStatistics)

        async def lane_is(condition: Callable[[LaneStatistics], bool]) -> bool:
            return condition(await statistics())

        async def queue() -> dict[str, Any]:
            # The same key: the same task, however often it is asked.
            response = await client.post("/v1/tasks", json={"input": "0"}, headers={"Idempotency-Key": "0"})
            assert response.status_code == 202
            return dict(response.json()["queue"])

        async def queue_is(condition: Callable[[dict[str, Any]], bool]) -> bool:
            return condition(await queue())

        async def post(count: int) -> None:
            for number in range(count):
                assert (await client.post("/v1/tasks", json={"input": f"{number}"})).status_code == 202

        await post(2)
        await queue()
        await until(lambda: lane_is(lambda lane: lane.depth == 3))
        waiting = await statistics()
        assert (waiting.pool, waiting.priority, waiting.running) == ("default", "normal", 0)
        assert (waiting.drain_per_second, waiting.wait_seconds_p50, waiting.wait_seconds_p95) == (None, None, None)
        await until(lambda: queue_is(lambda told: (told["depth"], told["position"]) == (3, 3)))
        assert (await queue())["eta_seconds"] is None
        await until(lambda: queue_is(lambda told: told["basis"] == "no-worker"))

        worker = await mesh.start("inference_worker")
        await until(lambda: lane_is(lambda lane: lane.depth == 0 and bool(lane.drain_per_second)))
        drained = await statistics()
        assert drained.wait_seconds_p50 is not None
        assert drained.wait_seconds_p95 is not None
        assert 0 < drained.wait_seconds_p50 <= drained.wait_seconds_p95
        await until(lambda: queue_is(lambda told: (told["depth"], told["basis"]) == (0, "begun")))

        assert await worker.stop() == 0
        await post(20)
        await until(lambda: queue_is(lambda told: told["depth"] == 20))
        answer = await client.post("/v1/tasks", json={"input": "one more"})
        told = answer.json()["queue"]
        assert (told["depth"], told["position"]) == (20, 21)
        # Whether the worker's end has been seen or not.
        assert told["basis"] == "no-worker" or 0 < told["eta_seconds"] < 20 * 60
        shown = (await client.get(answer.headers["Location"])).json()
        assert (shown["status"], shown["queue"]["position"]) == ("queued", 21)
        assert mesh.tracebacks() == []


async def test_the_steward_makes_what_is_missing_and_reports_what_differs(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "broker")
    await broker.start()
    mesh = Mesh(tmp_path, broker, {})
    try:
        async with connect(mesh.settings, "test") as connection:
            smaller = msgspec.structs.replace(SIGNALS, max_bytes=1024 * 1024).as_config()
            await connection.requests.api("STREAM.CREATE.SIGNALS", smaller)
            steward = await mesh.start("steward")
            wanted = declared(mesh.settings, ("add",))

            async def all_but_one() -> bool:
                return [difference.name for difference in await compare(connection.requests, wanted)] == ["SIGNALS"]

            await until(all_but_one)
            await until(lambda: any(line["event"] == "provisioning.differs" for line in mesh.logs()))
            kept = await connection.requests.api("STREAM.INFO.SIGNALS")
            assert kept["config"]["max_bytes"] == 1024 * 1024
        made = {line["name"] for line in mesh.logs() if line["event"] == "provisioning.created"}
        assert {"TASKS", "EVENTS", "KV_tasks", "TASKS/default-normal", "TOOLS/tool-add"} <= made
        assert "SIGNALS" not in made
        (said,) = [line for line in mesh.logs() if line["event"] == "provisioning.differs"]
        assert (said["level"], said["remedy"]) == ("warning", "meshctl streams apply")
        assert re.fullmatch(r"stream SIGNALS: max_bytes is 1048576, declared \d+", str(said["difference"]))
        assert await steward.stop() == 0
        assert mesh.tracebacks() == []
    finally:
        await asyncio.gather(*(process.stop() for process in mesh.processes))
        await broker.stop()
