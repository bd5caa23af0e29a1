"""The slow link of the tests: what passes is late by its round trip, and nothing else; it can be cut, and restored."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from mesh.broker.connection import connect
from mesh.configuration.settings import Settings
from tests.support.broker import Broker
from tests.support.listening import listening
from tests.support.patience import within
from tests.support.slow_link import SlowLink, slow_link
from tests.support.waiting import until

pytestmark = pytest.mark.integration

SAID = b"x" * 1024
LATE_SECONDS_MAX = 0.1
"""How much later than the link says an answer may come on a machine that has other things to do."""

SILENT_SECONDS = 0.2


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say everything again, and end as the client does."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def echoing(rtt_seconds: float) -> AsyncIterator[SlowLink]:
    """A link to a server that says everything again."""
    async with listening(echo) as port, slow_link(port, rtt_seconds) as link:
        yield link


@asynccontextmanager
async def connected(link: SlowLink) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection over a link."""
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def round_trip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    began = time.perf_counter()
    writer.write(b"?")
    await reader.readexactly(1)
    return time.perf_counter() - began


@pytest.mark.parametrize("rtt_seconds", [0.002, 0.02, 0.12])
async def test_a_round_trip_takes_as_long_as_the_link_says(rtt_seconds: float) -> None:
    async with echoing(rtt_seconds) as link, connected(link) as connection, within(30):
        await round_trip(*connection)
        took = [await round_trip(*connection) for _ in range(10)]
        print(f"{statistics.median(took) * 1000:.2f} ms")  # noqa: T201 - a figure, for who runs it with -s
        assert min(took) >= rtt_seconds
        assert min(took) <= rtt_seconds + LATE_SECONDS_MAX
        await link.set_rtt(0.25)
        assert await round_trip(*connection) >= 0.25


async def test_what_is_under_way_at_once_arrives_in_order_a_round_trip_later() -> None:
    """A thousand times a kilobyte, by five connections: one after the other they would take ten minutes."""
    async with echoing(0.12) as link, within(30):

        async def send() -> None:
            parts = [str(number).encode() + SAID for number in range(1_000)]
            async with connected(link) as (reader, writer):
                for part in parts:
                    writer.write(part)
                writer.write_eof()
                assert await reader.read() == b"".join(parts)

        await asyncio.gather(*(send() for _ in range(5)))


async def test_each_side_learns_that_the_other_is_gone() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(1) == b"1":
            writer.transport.abort()
            return
        try:
            await reader.read()
        finally:
            gone.set()

    async with listening(serve) as port, slow_link(port, 0.02) as link, within(20):
        async with connected(link) as (reader, writer):
            writer.write(b"1")
            assert await reader.read() == b""
        async with connected(link) as (_, writer):
            writer.write(b"2")
        await gone.wait()
    async with slow_link(port, 0.02) as link, connected(link) as (reader, _), within(20):
        # Nobody listens there any more.
        assert await reader.read() == b""


async def test_a_link_that_is_cut_breaks_connections_and_restored_takes_new_ones(broker: Broker) -> None:
    settings = replace(Settings(), nats_url=broker.url)
    async with (
        slow_link(broker.port, 0.01) as link,
        connect(replace(settings, nats_url=link.url), "test") as connection,
    ):
        await connection.requests.api("INFO")
        await link.cut()
        await until(lambda: not connection.is_connected)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", link.port)
        assert not connection.is_connected
        await link.restore()
        await until(lambda: connection.is_connected)
        await connection.requests.api("INFO")


async def test_a_link_that_is_silent_breaks_nothing_and_keeps_what_is_sent() -> None:
    async with echoing(0.01) as link, connected(link) as connection, within(20):
        await round_trip(*connection)
        await link.silence()
        waiting = asyncio.create_task(round_trip(*connection))
        done, _ = await asyncio.wait({waiting}, timeout=SILENT_SECONDS)
        assert not done
        await link.restore()
        assert await waiting >= SILENT_SECONDS
