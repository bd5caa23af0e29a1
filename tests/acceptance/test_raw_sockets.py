"""Whatever comes over a bare socket is answered as it should be, harms nobody, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx
import pytest
import pytest_asyncio

from mesh.configuration.settings import Address
from tests.support.bad_input import ABSENT_TASK, Bench, footprint, has_ended, open_bench
from tests.support.certificates import Authority, Pair
from tests.support.patience import within
from tests.support.processes import Process
from tests.support.raw_requests import CASES, Sent
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

GROWTH_BYTES_MAX = 64 * 1024 * 1024
"""How much a service may have grown in all of this: freed memory is not always given back."""
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z -]+\r\n")
ALL = [(f"{kind}: {name}", sent) for kind, cases in CASES.items() for name, sent in cases.items()]
WHOLE = [(name, sent) for name, sent in ALL if not sent.half]


def http_processes(bench: Bench) -> list[Process]:
    """Ingress and edge."""
    return [process for process in bench.mesh.processes if process.service in ("ingress", "stream_edge")]


class ByTls(NamedTuple):
    """The same two services, by TLS."""

    ingress: Address
    edge: Address
    trust: ssl.SSLContext


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who has signed the services' certificate."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> AsyncIterator[Bench]:
    """A mesh for all cases; at their end it is as it was."""
    async with open_bench(tmp_path_factory.mktemp("raw")) as opened:
        await start_by_tls(opened, authority.issue())
        await control(opened)
        before = await footprint(opened.connection)
        descriptors = [process.descriptors() for process in http_processes(opened)]
        memory = [process.resident_bytes() for process in http_processes(opened)]
        yield opened
        assert not [process.service for process in opened.mesh.processes if has_ended(process)]
        assert await footprint(opened.connection) == before, "something was stored"
        # A connection that the suite has closed may take the service a moment.
        await until(lambda: all(p.descriptors() <= d for p, d in zip(http_processes(opened), descriptors, strict=True)))
        for process, resident in zip(http_processes(opened), memory, strict=True):
            assert process.resident_bytes() - resident < GROWTH_BYTES_MAX, process.service
        assert opened.mesh.tracebacks() == []


async def start_by_tls(bench: Bench, pair: Pair) -> None:
    """Start two more services, the last ones."""
    for service, variable in (("ingress", "MESH_INGRESS_ADDRESS"), ("stream_edge", "MESH_EDGE_ADDRESS")):
        await bench.mesh.start(service, **{variable: "127.0.0.1:0"}, **pair.variables())


@pytest.fixture(scope="module")
def by_tls(bench: Bench, authority: Authority) -> ByTls:
    """Those two."""
    addresses = [process.address.rpartition(":") for process in http_processes(bench)[-2:]]
    ingress, edge = (Address(host, int(port)) for host, _, port in addresses)
    return ByTls(ingress, edge, authority.client_context())


async def control(bench: Bench) -> None:
    """A sound request to each service."""
    tenant = {"Mesh-Tenant": "acme"}
    for client, path in ((bench.ingress, ""), (bench.edge, "/events")):
        response: httpx.Response = await client.get(f"/v1/tasks/{bench.foreign_task}{path}", headers=tenant)
        assert response.status_code == 200
        assert bench.foreign_task in response.text


async def answers(address: Address, sent: Sent, target: bytes, trust: ssl.SSLContext | None = None) -> list[int]:
    """The statuses of what comes back before the service ends the connection. `trust`: by TLS."""
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=trust)
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        async with within(10):
            writer.write(sent.data.replace(b"%t", target))
            if sent.half:
                writer.write_eof()
            while piece := await reader.read(65_536):
                received += piece
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return [int(status) for status in _STATUS.findall(bytes(received))]


@pytest.mark.parametrize("sent", [sent for _, sent in ALL], ids=[name for name, _ in ALL])
async def test_a_stranger_is_answered_and_harms_nobody(bench: Bench, sent: Sent) -> None:
    settings = bench.mesh.settings
    for address, target in (
        (settings.ingress_address, f"/v1/tasks/{ABSENT_TASK}"),
        (settings.edge_address, f"/v1/tasks/{ABSENT_TASK}/events"),
    ):
        assert await answers(address, sent, target.encode()) == list(sent.statuses)
    await control(bench)


@pytest.mark.parametrize("sent", [sent for _, sent in WHOLE], ids=[name for name, _ in WHOLE])
async def test_a_stranger_is_answered_alike_by_tls(bench: Bench, by_tls: ByTls, sent: Sent) -> None:
    for address, target in (
        (by_tls.ingress, f"/v1/tasks/{ABSENT_TASK}"),
        (by_tls.edge, f"/v1/tasks/{ABSENT_TASK}/events"),
    ):
        assert await answers(address, sent, target.encode(), by_tls.trust) == list(sent.statuses)
    await control(bench)


async def test_what_is_no_tls_is_answered_once_where_tls_is_spoken(bench: Bench, by_tls: ByTls) -> None:
    others = {name: sent for name, sent in CASES["protocol"].items() if name != "TLS"}
    for sent in (*others.values(), CASES["line"]["HTTP/0.9"], CASES["pipeline"]["ten thousand"]):
        assert await answers(by_tls.ingress, sent, b"/x") == [400], sent.data[:40]
    await control(bench)


async def test_answers_that_nobody_reads_take_no_more_than_their_share(bench: Bench) -> None:
    """Each connection asks for megabytes in one go, and reads nothing: the next answer waits for the one before."""
    ingress = http_processes(bench)[0]
    before = ingress.resident_bytes()
    address = bench.mesh.settings.ingress_address
    opened = [await asyncio.open_connection(address.host, address.port, limit=1024) for _ in range(100)]
    for _, writer in opened:
        writer.write(b"GET /schema HTTP/1.1\r\nHost: localhost\r\n\r\n" * 30)
    await control(bench)
    assert ingress.resident_bytes() - before < GROWTH_BYTES_MAX
    for _, writer in opened:
        writer.transport.abort()
    await control(bench)


async def test_the_suite_has_enough_cases() -> None:
    assert len(ALL) >= 150
