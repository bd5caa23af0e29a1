"""Whatever comes over a bare socket is answered as it should be, harms nobody, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from mesh.configuration.settings import Address
from tests.support.bad_input import ABSENT_TASK, Bench, footprint, has_ended, open_bench
from tests.support.patience import within
from tests.support.processes import Process
from tests.support.raw_requests import CASES, Sent
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

GROWTH_BYTES_MAX = 64 * 1024 * 1024
"""How much a service may have grown in all of this: freed memory is not always given back."""
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z -]+\r\n")
ALL = [(f"{kind}: {name}", sent) for kind, cases in CASES.items() for name, sent in cases.items()]


def http_processes(bench: Bench) -> list[Process]:
    """Ingress and edge."""
    return [process for process in bench.mesh.processes if process.service in ("ingress", "stream_edge")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """A mesh for all cases; at their end it is as it was."""
    async with open_bench(tmp_path_factory.mktemp("raw")) as opened:
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


async def control(bench: Bench) -> None:
    """A sound request to each service."""
    tenant = {"Mesh-Tenant": "acme"}
    for client, path in ((bench.ingress, ""), (bench.edge, "/events")):
        response: httpx.Response = await client.get(f"/v1/tasks/{bench.foreign_task}{path}", headers=tenant)
        assert response.status_code == 200
        assert bench.foreign_task in response.text


async def answers(address: Address, sent: Sent, target: bytes) -> list[int]:
    """The statuses of what comes back before the service ends the connection."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
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
