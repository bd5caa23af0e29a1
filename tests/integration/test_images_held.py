"""How long images are held, and how many at once: many turns together, and servers that take or refuse them slowly."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest
from structlog.testing import capture_logs

from inference_worker.dialects import seeing
from inference_worker.dialects.errors import ProviderFailed
from inference_worker.dialects.openai.client import OpenAIProvider, open_client
from inference_worker.dialects.room import Room
from inference_worker.dialects.seeing import HELD_BYTES_MAX, IMAGES_BYTES_MAX, IMAGES_MAX, SeeingSource
from inference_worker.models.chunks import TurnInput
from mesh.broker.connection import Connection
from mesh.configuration.provider_tables import OpenAIProviderConfiguration
from mesh.task.conversation import ConversationItem, ToolAnswer
from tests.integration.test_images import HI, called, png, said_by, seen
from tests.support import model_server, openai_provider
from tests.support.broker import free_port
from tests.support.listening import listening
from tests.support.model_server import Exchange
from tests.support.patience import within
from tests.support.waiting import until

pytestmark = pytest.mark.integration

TURNS = 16
LARGE = [png(mark, IMAGES_BYTES_MAX // IMAGES_MAX) for mark in range(IMAGES_MAX)]
MIB = 1024 * 1024


class Holding:
    """A server that reads requests, keeps nothing of them, and answers once it may."""

    def __init__(self) -> None:
        self.read_bytes: list[int] = []
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.may_answer = asyncio.Event()
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for one request."""
        self.connections += 1
        await self.may_read.wait()
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        left = size = int(length.split(b":")[1])
        while left:
            left -= len(await reader.read(left))
        self.read_bytes.append(size)
        await self.may_answer.wait()
        await model_server.openai(Exchange(0, head, b"{}", writer))
        await reader.read()


@asynccontextmanager
async def holding(room: Room, connection: Connection) -> AsyncIterator[tuple[SeeingSource, Holding]]:
    """A source whose server is a holding one."""
    server = Holding()
    async with listening(server.serve) as port:
        configuration = OpenAIProviderConfiguration(base_url=f"http://127.0.0.1:{port}/v1")
        async with open_client(configuration, None, connections_max=TURNS) as client:
            provider = OpenAIProvider("local", configuration, client)
            yield SeeingSource(provider, connection.requests, room), server


def size_of(entries: list[ConversationItem]) -> int:
    """Of the results that are read for a conversation, in bytes."""
    return sum(entry.kept.size for entry in entries if isinstance(entry, ToolAnswer) and entry.kept is not None)


async def test_turns_that_wait_for_their_answers_hold_no_images(connection: Connection) -> None:
    """In 16 turns were 240 MiB: the images as they were read, in the request, and as that was encoded."""
    entries = await called(connection.requests, 1, *LARGE)
    room = Room(HELD_BYTES_MAX)
    async with holding(room, connection) as (source, server):
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            turns = [asyncio.create_task(said_by(source, HI, *entries)) for _ in range(TURNS)]
            await until(lambda: len(server.read_bytes) == TURNS)
            now, most = (each - before for each in tracemalloc.get_traced_memory())
        finally:
            tracemalloc.stop()
        assert min(server.read_bytes) > IMAGES_BYTES_MAX
        assert now < 16 * MIB
        # One more is being made: as it was read, in the request, encoded.
        assert most < 64 * MIB
        assert room.free_bytes == room.bytes_max
        server.may_answer.set()
        assert await asyncio.gather(*turns) == ["Hello"] * TURNS


async def test_a_turn_waits_until_others_have_sent_theirs_not_until_they_are_answered(connection: Connection) -> None:
    entries = await called(connection.requests, 1, *LARGE)
    room = Room(size_of(entries))
    async with holding(room, connection) as (source, server):
        server.may_read.clear()
        turns = [asyncio.create_task(said_by(source, HI, *entries)) for _ in range(3)]
        await until(lambda: server.connections == 1)
        assert room.free_bytes == 0
        server.may_read.set()
        await until(lambda: len(server.read_bytes) == 3)
        server.may_answer.set()
        assert await asyncio.gather(*turns) == ["Hello"] * 3
        assert min(server.read_bytes) > IMAGES_BYTES_MAX


async def test_who_finds_no_room_in_time_goes_without_images_and_says_so(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = await called(connection.requests, 1, *LARGE)
    room = Room(size_of(entries))
    async with (
        holding(room, connection) as (stuck, server),
        openai_provider.connected(model_server.openai) as (provider, other),
    ):
        server.may_read.clear()
        turn = asyncio.create_task(said_by(stuck, HI, *entries))
        await until(lambda: server.connections == 1)
        monkeypatch.setattr(seeing, "ROOM_SECONDS_MAX", 0.01)
        source = SeeingSource(provider, connection.requests, room)
        with capture_logs() as logs:
            assert await said_by(source, HI, *entries) == "Hello"
        assert [line["event"] for line in logs] == ["images.no_room"]
        turn.cancel()
        await asyncio.wait([turn])
        assert await said_by(source, HI, *entries) == "Hello"
    assert [len(seen(exchange.body["messages"])) for exchange in other.exchanges] == [0, IMAGES_MAX]
    assert room.free_bytes == room.bytes_max


async def refuses_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers before it has read the request, and reads no more."""
    await reader.readuntil(b"\r\n\r\n")
    error = json.dumps({"error": {"message": "too large"}}).encode()
    writer.write(
        b"HTTP/1.1 401 No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(error) + error
    )
    await writer.drain()


async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads some of the request, and drops the connection."""
    await reader.readexactly(100_000)
    writer.transport.abort()


async def is_silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Reads nothing."""
    await asyncio.Event().wait()


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize("serve", [refuses_early, breaks, is_silent])
async def test_room_is_given_back_however_a_request_ends(connection: Connection, serve: Serve) -> None:
    entries = await called(connection.requests, 1, *LARGE)
    room = Room(HELD_BYTES_MAX)
    async with listening(serve) as port:
        url = f"http://127.0.0.1:{port}/v1"
        configuration = OpenAIProviderConfiguration(base_url=url, first_token_seconds=1)
        async with open_client(configuration, None, connections_max=1) as client:
            source = SeeingSource(OpenAIProvider("local", configuration, client), connection.requests, room)
            with pytest.raises(ProviderFailed):
                await said_by(source, HI, *entries)
    assert room.free_bytes == room.bytes_max


async def test_room_is_given_back_where_nobody_listens(connection: Connection) -> None:
    entries = await called(connection.requests, 1, png(1))
    room = Room(HELD_BYTES_MAX)
    configuration = OpenAIProviderConfiguration(base_url=f"http://127.0.0.1:{free_port()}/v1")
    async with open_client(configuration, None, connections_max=1) as client:
        source = SeeingSource(OpenAIProvider("local", configuration, client), connection.requests, room)
        with pytest.raises(ProviderFailed, match="no connection"):
            await said_by(source, HI, *entries)
    assert room.free_bytes == room.bytes_max


async def test_results_without_images_take_no_room_while_the_model_answers(connection: Connection) -> None:
    entries = await called(connection.requests, 1, {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"})
    room = Room(HELD_BYTES_MAX)
    async with holding(room, connection) as (source, server):
        turn = asyncio.create_task(said_by(source, HI, *entries))
        await until(lambda: len(server.read_bytes) == 1)
        assert room.free_bytes == room.bytes_max
        server.may_answer.set()
        assert await turn == "Hello"


async def test_room_is_given_back_by_who_is_told_to_stop_meanwhile(connection: Connection) -> None:
    entries = await called(connection.requests, 1, *LARGE)
    room = Room(size_of(entries))
    async with holding(room, connection) as (source, server):
        server.may_read.clear()

        async def turn() -> None:
            async with aclosing(source.stream(TurnInput(messages=[HI, *entries], model="m"))) as chunks:
                await anext(chunks)

        turns = [asyncio.create_task(turn()) for _ in range(2)]
        await until(lambda: server.connections == 1)
        for each in reversed(turns):
            each.cancel()
        async with within(20):
            await asyncio.wait(turns)
    assert room.free_bytes == room.bytes_max
