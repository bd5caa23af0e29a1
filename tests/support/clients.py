"""Clients that record: they post tasks and read streams, on plain sockets, and keep every byte that matters."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable

import httpx

from contracts.api.sse import Decoder
from contracts.journal.events import TERMINAL_TYPES
from tests.support.checker import ClientHistory, Frame, Recorded
from tests.support.patience import within

CONNECT_RETRY_SECONDS = 0.05


class StreamRefused(Exception):
    """The edge answered with something else than a stream."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


async def open_stream(
    address: str,
    task: str,
    after: int | None,
    buffer_bytes_max: int = 65536,
    query: str = "",
    trust: ssl.SSLContext | None = None,
) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a stream; returns the HTTP status, and the connection. `trust`: by TLS."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=buffer_bytes_max, ssl=trust)
    cursor = f"Last-Event-ID: {after}\r\n" if after is not None else ""
    writer.write(f"GET /v1/tasks/{task}/events{query} HTTP/1.1\r\nHost: {address}\r\n{cursor}\r\n".encode())
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except BaseException:
        # Nobody else has the connection yet, to close it.
        writer.transport.abort()
        raise
    return int(head.split(b" ", 2)[1]), reader, writer


class Chunks:
    """Takes the chunks of HTTP/1.1 (RFC 9112, section 7.1) apart, however the bytes are cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """The content of the chunks that are whole now."""
        self._buffer += data
        content = bytearray()
        while (line_end := self._buffer.find(b"\r\n")) >= 0:
            size = int(self._buffer[:line_end], 16)
            whole = line_end + 2 + size + 2
            if len(self._buffer) < whole:
                break
            self.ended = self.ended or size == 0
            content += self._buffer[line_end + 2 : whole - 2]
            del self._buffer[:whole]
        return bytes(content)


class Viewer:
    """Follows one task over any number of connections, and records what it received."""

    query = ""
    """Of its requests, from the `?` on."""

    def __init__(self, address: str, task: str, trust: ssl.SSLContext | None = None) -> None:
        self.address = address
        self.trust = trust
        self.history = ClientHistory(task)
        self.connections = 0
        self.cursor: int | None = None
        self.ended = False

    async def follow(self, cut: Callable[[int], bool] = lambda _: False, seconds: float = 60) -> ClientHistory:
        """Follow to the end. After each frame `cut(frames so far)` may say that the connection breaks now."""
        async with within(seconds):
            while not self.ended:
                try:
                    await self._connect(cut)
                except (OSError, asyncio.IncompleteReadError):
                    await asyncio.sleep(CONNECT_RETRY_SECONDS)
                except StreamRefused as refused:
                    if refused.status == 204:
                        self.ended = True
                    elif refused.status < 500:
                        raise
                    await asyncio.sleep(CONNECT_RETRY_SECONDS)
        return self.history

    async def _connect(self, cut: Callable[[int], bool]) -> None:
        status, reader, writer = await open_stream(
            self.address, self.history.task, self.cursor, query=self.query, trust=self.trust
        )
        self.connections += 1
        decoder = Decoder()
        chunks = Chunks()
        try:
            if status != 200:
                raise StreamRefused(status)
            while not chunks.ended and (data := await reader.read(65536)):
                for frame in decoder.feed(chunks.feed(data)):
                    self._record(frame.event_type, frame.last_event_id, frame.data)
                    if self.ended or cut(len(self.history.frames)):
                        return
        finally:
            # Abort: a break in mid-frame, not an orderly goodbye.
            writer.transport.abort()

    def _record(self, event: str, identifier: str, data: str) -> None:
        sequence = int(identifier) if identifier and event != "stream.gap" else None
        self.history.frames.append(Frame(sequence, event, data.encode()))
        self.cursor = sequence if sequence is not None else self.cursor
        self.ended = event in TERMINAL_TYPES


def random_cuts(seed: int, count: int, of_frames: int) -> Callable[[int], bool]:
    """Cuts after `count` random frames of about `of_frames`."""
    places = set(random.Random(seed).sample(range(1, of_frames), count))
    return lambda frames: frames in places


async def post_task(client: httpx.AsyncClient, url: str, text: str, **extra: object) -> httpx.Response:
    """One `POST /v1/tasks`."""
    return await client.post(f"{url}/v1/tasks", json={"input": text, **extra})


async def submit(client: httpx.AsyncClient, url: str, recorded: Recorded, text: str, **extra: object) -> str:
    """Post a task that must be accepted; its id."""
    response = await post_task(client, url, text, **extra)
    assert response.status_code == 202, response.text
    task = str(response.json()["id"])
    recorded.accepted.add(task)
    return task


class PostingConnection:
    """A kept-alive connection that posts tasks with as little work as possible: for bursts."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, body: bytes, headers: str = "") -> tuple[int, dict[str, str], bytes]:
        """One `POST /v1/tasks`: status, headers with lower-case names, body."""
        if self._writer is None:
            host, _, port = self._address.rpartition(":")
            self._reader, self._writer = await asyncio.open_connection(host, int(port))
        assert self._reader is not None
        head = (
            f"POST /v1/tasks HTTP/1.1\r\nHost: {self._address}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{headers}\r\n"
        )
        self._writer.write(head.encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        answer_headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in answer[1:] if line)
        }
        payload = await self._reader.readexactly(int(answer_headers["content-length"]))
        return int(answer[0].split(" ")[1]), answer_headers, payload

    def close(self) -> None:
        """Drop the connection."""
        if self._writer is not None:
            self._writer.close()
