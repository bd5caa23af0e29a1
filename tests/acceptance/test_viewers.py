"""Many viewers on one edge, and one that hardly reads."""

from __future__ import annotations

import asyncio
import resource
import socket
from pathlib import Path

import httpx
import pytest

from contracts.api.sse import Decoder
from mesh.broker.connection import connect
from mesh.configuration.settings import Address
from mesh.journal.following import PAGE_BYTES_MAX
from mesh.journal.journal import Journal
from mesh.journal.live_buffer import BUFFER_BYTES_MAX
from stream_edge.stream import WRITE_BYTES_MAX
from tests.support.checker import ClientHistory, Frame, Recorded, check, check_history, read_stored
from tests.support.clients import Chunks, PostingConnection, Viewer
from tests.support.processes import running_mesh
from tests.support.tasks import append_text, begin_journal, complete_with, end_task, turn_work
from tests.support.waiting import until, until_no_work_is_left

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

VIEWERS = 1500
SLOW_READER_BYTES_MAX = BUFFER_BYTES_MAX + 4 * PAGE_BYTES_MAX + 4 * WRITE_BYTES_MAX
"""What one reader that does not read may cost the edge: its live buffer, a page and its frames, and what is written."""
LARGE_DELTA_CHARACTERS = 16_000
LARGE_EVENTS = 2_000
ALLOCATOR_BYTES_MAX = 8 * 1024 * 1024
"""Arenas that the interpreter takes from the system at a time, and does not give back at once."""


async def test_fifteen_hundred_viewers_on_one_edge_all_see_their_task_exactly(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    recorded = Recorded()
    async with running_mesh(
        tmp_path, "ingress", "stream_edge", MESH_WORKER_CONCURRENCY="1000", MESH_LOG_LEVEL="warning"
    ) as mesh:
        connection = PostingConnection(str(mesh.settings.ingress_address))
        viewers: list[Viewer] = []
        following: list[asyncio.Task[object]] = []
        for number in range(VIEWERS):
            status, _, payload = await connection.post(b'{"input": "!rate 5\\n!say 30"}')
            assert status == 202, number
            task = httpx.Response(200, content=payload).json()["id"]
            recorded.accepted.add(task)
            viewers.append(Viewer(str(mesh.settings.edge_address), task))
            following.append(asyncio.create_task(viewers[-1].follow(seconds=180)))
        connection.close()
        # Everybody is there before the first token: all 1,500 streams are open at once.
        await until(lambda: all(viewer.history.frames for viewer in viewers), seconds=60)
        for _ in range(2):
            await mesh.start("inference_worker")
        await asyncio.gather(*following)
        assert all(viewer.connections == 1 for viewer in viewers)
        recorded.histories += [viewer.history for viewer in viewers]
        async with connect(mesh.settings, "test") as opened:
            await until_no_work_is_left(opened)
            assert check(recorded, await read_stored(opened.requests)) == []
        assert mesh.tracebacks() == []


async def write_large_journal(journal: Journal, events: int) -> None:
    """As a worker would, but with larger deltas: far more than an edge may keep for anybody."""
    for number in range(events):
        await append_text(journal, f"{number} ".ljust(LARGE_DELTA_CHARACTERS, "x"))
    await complete_with(journal, "large")
    await end_task(journal)


async def open_slow_reader(address: Address, task: str, receive_bytes: int = 4096) -> socket.socket:
    """A stream on a socket that takes little at a time."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    reader.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(reader, (address.host, address.port))
    await loop.sock_sendall(reader, f"GET /v1/tasks/{task}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return reader


async def test_a_viewer_that_reads_a_byte_a_second_slows_nobody_and_costs_a_bounded_amount(tmp_path: Path) -> None:
    async with (
        running_mesh(tmp_path, "stream_edge", MESH_LOG_LEVEL="warning") as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        edge = mesh.processes[0]
        address = mesh.settings.edge_address
        loop = asyncio.get_running_loop()
        # A first round warms up: what the edge takes then, it takes without any slow reader.
        warm = await begin_journal(connection.requests, turn_work())
        following = [asyncio.create_task(Viewer(str(address), warm.state.task).follow()) for _ in range(3)]
        await write_large_journal(warm, LARGE_EVENTS)
        await asyncio.gather(*following)
        before = edge.resident_bytes()

        journal = await begin_journal(connection.requests, turn_work())
        slow = await open_slow_reader(address, journal.state.task)
        read = bytearray()

        async def trickle() -> None:
            while True:
                read.extend(await loop.sock_recv(slow, 1))
                await asyncio.sleep(1)

        trickling = asyncio.create_task(trickle())
        fast = [asyncio.create_task(Viewer(str(address), journal.state.task).follow()) for _ in range(3)]
        writing = asyncio.create_task(write_large_journal(journal, LARGE_EVENTS))
        most = before
        while not all(follower.done() for follower in fast):
            most = max(most, edge.resident_bytes())
            await asyncio.sleep(0.05)
        await writing
        trickling.cancel()
        slow.close()
        stored = await read_stored(connection.requests)
        for follower in fast:
            assert check_history(follower.result(), stored.journals[journal.state.task]) == []
        assert len(read) < 120, "the slow reader is still at its first bytes"
        written = sum(len(event.data) for event in stored.journals[journal.state.task])
        assert written > 3 * (SLOW_READER_BYTES_MAX + ALLOCATOR_BYTES_MAX), "else this test could not fail"
        assert most - before < SLOW_READER_BYTES_MAX + ALLOCATOR_BYTES_MAX


async def head_from(slow: socket.socket) -> bytes:
    """Read the head of an answer, and no more than comes along with its end."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += await asyncio.get_running_loop().sock_recv(slow, 256)
    return received


async def test_a_slow_viewer_that_catches_up_has_missed_nothing(tmp_path: Path) -> None:
    async with (
        running_mesh(tmp_path, "stream_edge", MESH_LOG_LEVEL="warning") as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        loop = asyncio.get_running_loop()
        journal = await begin_journal(connection.requests, turn_work())
        slow = await open_slow_reader(mesh.settings.edge_address, journal.state.task, 65536)
        received = await head_from(slow)
        # Nothing is read while all of it is written: the edge drops its buffer, many times over.
        await write_large_journal(journal, LARGE_EVENTS // 4)
        head, _, chunked = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        chunks = Chunks()
        body = chunks.feed(chunked)
        while not chunks.ended:
            body += chunks.feed(await loop.sock_recv(slow, 65536))
        slow.close()
        frames = [
            Frame(int(frame.last_event_id), frame.event_type, frame.data.encode()) for frame in Decoder().feed(body)
        ]
        stored = await read_stored(connection.requests)
        history = ClientHistory(journal.state.task, frames)
        assert check_history(history, stored.journals[journal.state.task]) == []
