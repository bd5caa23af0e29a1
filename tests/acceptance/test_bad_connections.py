"""What is hardly HTTP is refused or cut off, leaves nothing behind and harms nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from litestar import Litestar

from mesh.configuration.settings import Address
from mesh.serving import http, http_protocol, listening
from tests.support.bad_input import (
    ABSENT_TASK,
    HEAD_TOO_LARGE,
    SOUND,
    Bench,
    assert_problem,
    exchange,
    harming_nobody,
    open_bench,
)
from tests.support.http_client import PatientClient
from tests.support.patience import within

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path_factory.mktemp("bad-input")) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def unharmed(bench: Bench) -> AsyncIterator[None]:
    async with harming_nobody(bench):
        yield


def requests_of(address: Address) -> dict[str, bytes]:
    """Sound beginnings of requests to either service."""
    host = f"Host: {address}\r\n"
    return {
        "GET": f"GET /v1/tasks/{ABSENT_TASK}/events HTTP/1.1\r\n{host}".encode(),
        "POST": f"POST /v1/tasks HTTP/1.1\r\n{host}Content-Type: application/json\r\n".encode(),
    }


def addresses(bench: Bench) -> list[Address]:
    """Of both HTTP services."""
    return [bench.mesh.settings.ingress_address, bench.mesh.settings.edge_address]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    "sent",
    [
        b"rubbish\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /v1/tasks HTTP/9.9\r\n\r\n",
        b"NOSUCH /v1/tasks HTTP/1.1\r\n\r\n",
        b"GET /v1/tasks/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/tasks HTTP/1.1\r\nHost: x\r\nMesh-Tenant: a\x0bb\r\n\r\n",
        b"GET /v1/tasks HTTP/1.1\r\nHost: x\r\nMesh-Tenant: acme\nX: y\r\n\r\n",
        b"GET /v1/tasks HTTP/1.1\r\nHost: x\r\n: nameless\r\n\r\n",
        b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n",
    ],
    ids=lambda sent: sent[:24].decode("latin-1").encode("unicode_escape").decode(),
)
async def test_what_is_not_http_is_refused(bench: Bench, sent: bytes) -> None:
    for address in addresses(bench):
        assert_problem(await exchange(address, sent), "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_a_body_whose_chunks_are_rubbish_is_given_up(bench: Bench) -> None:
    address = bench.mesh.settings.ingress_address
    sent = requests_of(address)["POST"] + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    assert_problem(await exchange(address, sent), "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_a_head_that_is_too_large_is_refused(bench: Bench) -> None:
    for address in addresses(bench):
        for request in requests_of(address).values():
            whole = request + b"X-Filler: " + b"x" * HEAD_TOO_LARGE + b"\r\nContent-Length: 0\r\n\r\n"
            assert_problem(await exchange(address, whole), "invalid-request")
            line = request.replace(b" HTTP/1.1", b"?" + b"x" * HEAD_TOO_LARGE + b" HTTP/1.1") + b"\r\n"
            assert_problem(await exchange(address, line), "invalid-request")


@pytest.mark.usefixtures("unharmed")
async def test_a_head_without_an_end_is_cut_off(bench: Bench) -> None:
    for address in addresses(bench):
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(requests_of(address)["GET"])
        sent = 0
        try:
            async with within(20):
                while not writer.is_closing() and sent < 64 * 1024 * 1024:
                    writer.write(b"X-Filler: " + b"x" * 65_000 + b"\r\n")
                    sent += 65_000
                    await writer.drain()
        except OSError:
            pass  # Cut off in the midst of a write.
        finally:
            writer.close()
        assert sent < 16 * 1024 * 1024, "what the server does not take still fits into the system's buffers"


@pytest.mark.usefixtures("unharmed")
async def test_half_a_request_and_a_closed_connection_harm_nobody(bench: Bench) -> None:
    for address in addresses(bench):
        for method, request in requests_of(address).items():
            halves = [b"G", request[: len(request) // 2], request]
            if method == "POST":
                halves += [
                    request + b"Content-Length: 100\r\n\r\n" + SOUND,
                    request + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
                    request + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n",
                ]
            for half in halves:
                for abort in (False, True):
                    _, writer = await asyncio.open_connection(address.host, address.port)
                    writer.write(half)
                    await writer.drain()
                    if abort:
                        writer.transport.abort()
                    writer.close()


@pytest.mark.usefixtures("unharmed")
async def test_a_slow_head_delays_nobody_and_is_answered_in_the_end(bench: Bench) -> None:
    for address, client in zip(addresses(bench), (bench.ingress, bench.edge), strict=True):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        request = b"GET /nope HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        for byte in request:
            writer.write(bytes([byte]))
            await writer.drain()
            assert (await client.get("/health/live")).status_code == 200
        async with within(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
        writer.close()


async def test_a_head_that_takes_too_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS_MAX", 0.1)
    listener = listening.bind(Address("127.0.0.1", 0), "MESH_TEST_ADDRESS")
    address = listening.address_of(listener)
    stopping, started = asyncio.Event(), asyncio.Event()

    async def on_started() -> None:
        started.set()

    serving = asyncio.create_task(http.serve(Litestar(openapi_config=None), listener, stopping, on_started()))
    await started.wait()
    for beginning in (b"", b"GET /nope HTTP/1.1\r\nHost:"):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(beginning)
        async with within(10):
            assert await reader.read() == b""
        writer.close()
    # One that is whole is served, and so is the next on the same connection.
    async with PatientClient(base_url=f"http://{address}") as client:
        assert [(await client.get("/nope")).status_code for _ in range(2)] == [404, 404]
    stopping.set()
    await serving
