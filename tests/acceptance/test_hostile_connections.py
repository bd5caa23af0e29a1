"""Connections that send nothing, take nothing or come in thousands end in bounded time, and lock nobody out."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from litestar import Response
from litestar.types import ASGIApp, Receive, Scope, Send

from mesh.configuration.settings import Address
from mesh.serving import connections, http, http_protocol, listening
from mesh.serving.connections import CONNECTIONS_SPARE, DESCRIPTORS_RESERVED, Connections
from mesh.serving.tls import load
from mesh.serving.tls_protocol import Tls
from tests.support.bad_input import assert_problem, exchange
from tests.support.certificates import Authority
from tests.support.http_client import PatientClient
from tests.support.patience import within
from tests.support.processes import running_mesh
from tests.support.services_loop import on_services_loop
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

GET = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE = 16 * 1024 * 1024
"""More than the buffers of both sides take while nobody reads."""


class Served(NamedTuple):
    """A server, and how a client gets to it."""

    address: Address
    trust: ssl.SSLContext | None

    async def open(self, limit: int = 65_536) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of its own."""
        return await asyncio.open_connection(self.address.host, self.address.port, ssl=self.trust, limit=limit)

    async def exchange(self, sent: bytes) -> httpx.Response:
        """Send these bytes on a connection of their own, and read until the server closes it."""
        return await exchange(self.address, sent, self.trust)

    def holds(self, connections_max: int) -> bool:
        """Whether so many connections are left at most, by the system's own table: those that a process has open."""
        port = f":{self.address.port:04X}"
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        held = [line for line in lines if line[1].endswith(port) and line[3] != "0A" and line[9] != "0"]
        return len(held) <= connections_max


class Way(NamedTuple):
    """How connections are made: plain, or by TLS. `trust` is the client's, `tls` the server's."""

    trust: ssl.SSLContext | None = None
    tls: Tls | None = None

    @asynccontextmanager
    async def serving(self, answer: Callable[[Send], Awaitable[None]]) -> AsyncIterator[Served]:
        """The server of the services, with an application that answers everything alike."""

        async def app(_: Scope, __: Receive, send: Send) -> None:
            await answer(send)

        async with self.serving_app(app) as served:
            yield served

    @asynccontextmanager
    async def serving_app(self, app: ASGIApp) -> AsyncIterator[Served]:
        """The server of the services, with an application of a test's own."""
        listener = listening.bind(Address("127.0.0.1", 0), "MESH_TEST_ADDRESS")
        stopping, started = asyncio.Event(), asyncio.Event()

        async def on_started() -> None:
            started.set()

        server = asyncio.create_task(http.serve(app, listener, stopping, on_started(), self.tls))
        await started.wait()
        try:
            yield Served(listening.address_of(listener), self.trust)
        finally:
            stopping.set()
            await server


@pytest.fixture(params=["plain", "tls"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    """Each way that there is."""
    if request.param == "plain":
        return Way()
    authority = Authority(tmp_path)
    context = load(*authority.issue()).context
    return Way(authority.client_context(), Tls(lambda: context, 365))


async def short(send: Send) -> None:
    """Nothing to say."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def long(send: Send) -> None:
    """More than the system's buffers take."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE)]})
    await send({"type": "http.response.body", "body": b"x" * LARGE, "more_body": False})


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the server ends a connection, be it by a reset, within a bound."""
    async with within(20):
        with contextlib.suppress(ConnectionError):
            await reader.read()
    return True


@on_services_loop
@pytest.mark.parametrize("sent", [b"", b"\r\n", b"\r\n\r\n\r\n"], ids=["nothing", "a line break", "line breaks"])
async def test_a_connection_without_a_request_ends(way: Way, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(http, "KEEP_ALIVE_SECONDS", 0.2)
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS_MAX", 0.2)
    async with way.serving(short) as served:
        for before in (b"", GET):
            reader, writer = await served.open()
            writer.write(before + sent)
            assert await is_closed(reader)
            writer.close()


@on_services_loop
@pytest.mark.parametrize("sent", [b"\r\n", b"\r\n\r\n\r\n", b"G"], ids=["a line break", "line breaks", "a letter"])
async def test_what_comes_behind_an_answer_does_not_keep_its_connection(
    way: Way, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http, "KEEP_ALIVE_SECONDS", 0.2)
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS_MAX", 0.2)
    async with way.serving(short) as served:
        reader, writer = await served.open()
        writer.write(GET)
        async with within(10):
            await reader.readuntil(b"\r\n\r\n")
        # Only now: what comes along with the request is there before the clock of an idle connection is set.
        writer.write(sent)
        assert await is_closed(reader)
        writer.close()


@on_services_loop
@pytest.mark.parametrize("rest", [b"", b"x", b"x" * 100], ids=["nothing", "a byte", "some bytes"])
async def test_a_body_that_nobody_reads_and_that_never_ends_ends_the_connection(
    way: Way, monkeypatch: pytest.MonkeyPatch, rest: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "DISCARD_SECONDS_MAX", 0.2)
    async with way.serving(short) as served:
        reader, writer = await served.open()
        writer.write(b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n" + rest)
        async with within(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
        await until(lambda: served.holds(0))
        writer.close()


@on_services_loop
async def test_a_body_that_is_waited_for_and_never_ends_is_refused(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_SECONDS_MAX", 0.2)

    async def take(request: http.AnyRequest) -> Response[bytes]:
        return http.json_response(len(await http.read_json_body(request, 1000)))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await http.answer_directly(take, scope, receive, send)

    head = b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    async with way.serving_app(app) as served:
        for sent in (head, head + b"{", head + b"{}" * 40):
            assert_problem(await served.exchange(sent), "invalid-request")


@on_services_loop
async def test_a_head_that_comes_in_a_trickle_is_given_no_more_time(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS_MAX", 0.3)
    async with way.serving(short) as served:
        reader, writer = await served.open()
        ended = asyncio.create_task(is_closed(reader))
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /x HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"x" * 10_000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.wait({ended}, timeout=0.01)
                if ended.done():
                    break
        assert await ended
        writer.close()


@on_services_loop
async def test_what_is_thrown_away_behind_an_answer_is_bounded(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "DISCARD_BYTES_MAX", 1024 * 1024)
    async with way.serving(short) as served:
        reader, writer = await served.open()
        writer.write(b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        async with within(10):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            async with within(20):
                while sent < 64 * 1024 * 1024:
                    writer.write(b"x" * 65_536)
                    sent += 65_536
                    await writer.drain()
        assert sent < 32 * 1024 * 1024, "what the server does not take still fits into the system's buffers"
        writer.close()


@on_services_loop
async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(connections, "UNREAD_SECONDS_MAX", 0.3)
    async with way.serving(long) as served:
        reader, writer = await served.open(1024)
        writer.write(GET)
        received = 0
        async with within(20):
            with contextlib.suppress(ConnectionError):
                # The stream takes two limits and no more, until it is read, which is once the server has given up.
                await until(lambda: served.holds(0))
                while piece := await reader.read(65_536):
                    received += len(piece)
        assert received < LARGE
        writer.close()


@on_services_loop
async def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(connections, "UNREAD_SECONDS_MAX", 5.0)
    async with way.serving(long) as served:
        reader, writer = await served.open()
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        received = 0
        async with within(60):
            while received < LARGE:
                received += len(await reader.read(65_536))
        assert received == LARGE
        writer.close()


@on_services_loop
async def test_unread_answers_together_are_bounded(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(connections, "UNREAD_BYTES_MAX", LARGE // 16)
    async with way.serving(long) as served:
        opened = [await served.open(1024) for _ in range(8)]
        for _, writer in opened:
            writer.write(GET)

        await until(lambda: served.holds(1))
        for _, writer in opened:
            writer.transport.abort()  # By TLS a close would wait for what is unread.


@on_services_loop
async def test_more_requests_than_there_is_room_for_are_told_to_come_again_and_health_answers(
    way: Way,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once = 8
    monkeypatch.setattr(http, "raise_descriptor_limit", lambda: at_once + CONNECTIONS_SPARE + DESCRIPTORS_RESERVED)
    going_on = asyncio.Event()

    async def endless(send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await going_on.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async with way.serving(endless) as served:
        streams = [await served.open() for _ in range(at_once)]
        for reader, writer in streams:
            writer.write(GET)
            async with within(10):
                await reader.readuntil(b"\r\n\r\n")
        for _ in range(3):
            refused = await served.exchange(GET)
            assert_problem(refused, "too-many-connections")
        probe, asking = await served.open()
        asking.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with within(10):
            assert (await probe.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        going_on.set()
        asking.close()
        for _, writer in streams:
            writer.close()


@pytest.mark.asyncio
async def test_handshakes_that_never_end_give_way_to_those_that_ask(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with running_mesh(tmp_path, "stream_edge") as mesh:
        pair = authority.issue().variables()
        process = await mesh.start_limited(256, "ingress", MESH_INGRESS_ADDRESS="127.0.0.1:0", **pair)
        host, _, port = process.address.rpartition(":")
        hello = ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
        whole = hello.read()
        idle: list[asyncio.StreamWriter] = []
        for sent in (b"", b"\x16", whole[:100], whole):
            for _ in range(100):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(sent)
                idle.append(writer)
        async with PatientClient(base_url=f"https://{process.address}", verify=authority.client_context()) as client:
            assert (await client.get("/health/ready")).status_code == 200
            assert (await client.get("/v1/tasks/nope")).status_code == 404
        assert process.descriptors() < 256
        assert "http.full" in process.log.read_text()
        for writer in idle:
            writer.close()
        await process.stop()
        assert mesh.tracebacks() == []


@pytest.mark.asyncio
async def test_connections_that_do_nothing_give_way_to_those_that_ask(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, "ingress", "stream_edge", "inference_worker") as mesh:
        for service, variable in (("ingress", "MESH_INGRESS_ADDRESS"), ("stream_edge", "MESH_EDGE_ADDRESS")):
            process = await mesh.start_limited(256, service, **{variable: "127.0.0.1:0"})
            host, _, port = process.address.rpartition(":")
            request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
            idle: list[asyncio.StreamWriter] = []
            for sent in (b"", b"GET /hea", request, request + b"\r\n", request + b"\r\nGET"):
                for _ in range(100):
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.write(sent)
                    idle.append(writer)
            async with PatientClient(base_url=f"http://{process.address}") as client:
                assert (await client.get("/health/ready")).status_code == 200
                task = await client.get("/v1/tasks/nope")
                assert task.status_code == 404
            assert process.descriptors() < 256
            assert "http.full" in process.log.read_text()
            for writer in idle:
                writer.close()
            await process.stop()
        assert mesh.tracebacks() == []


@pytest.mark.asyncio
async def test_more_streams_than_descriptors_leave_health_and_the_rest_alone(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, "ingress", "stream_edge") as mesh, PatientClient() as client:
        submitted = await client.post(f"{mesh.ingress_url}/v1/tasks", json={"input": "hello"})
        task = submitted.json()["id"]
        edge = await mesh.start_limited(256, "stream_edge", MESH_EDGE_ADDRESS="127.0.0.1:0")
        host, _, port = edge.address.rpartition(":")
        request = f"GET /v1/tasks/{task}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        statuses: dict[bytes, int] = {}
        opened: list[asyncio.StreamWriter] = []
        for _ in range(300):
            reader, writer = await asyncio.open_connection(host, int(port))
            opened.append(writer)
            writer.write(request)
            async with within(20):
                status = (await reader.readuntil(b"\r\n\r\n"))[:12]
            statuses[status] = statuses.get(status, 0) + 1
        room = 256 - DESCRIPTORS_RESERVED - CONNECTIONS_SPARE
        assert statuses == {b"HTTP/1.1 200": room, b"HTTP/1.1 503": 300 - room}
        async with PatientClient(base_url=f"http://{edge.address}") as other:
            assert (await other.get("/health/ready")).status_code == 200
        for writer in opened:
            writer.close()
        assert mesh.tracebacks() == []


def test_a_limit_of_descriptors_is_raised_as_far_as_it_may() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 200), hard))
        raised = connections.raise_descriptor_limit()
        assert raised == resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, connections.DESCRIPTORS_MAX)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_server_with_few_descriptors_still_serves_some() -> None:
    assert Connections(10).requests_max > 0
