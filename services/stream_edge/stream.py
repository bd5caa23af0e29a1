"""One SSE stream: from a request to the last frame."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import structlog
from litestar.types import Receive, Send

from contracts.api import sse
from mesh.journal.following import Followed, Follower

log = structlog.get_logger("stream_edge.stream")

COMMENT_SECONDS = 15.0
"""How long a stream is silent before a comment keeps proxies from closing it."""
WRITE_BYTES_MAX = 64 * 1024
"""How much is written at once: with the server's own high-water mark, the most that a slow reader holds."""
END_SECONDS_MAX = 1.0
"""How long a reader has to take what is on its way when the edge stops."""

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)


async def stream(
    follower: Follower, receive: Receive, send: Send, stopping: asyncio.Event, seconds_max: float | None = None
) -> None:
    """Send frames until the task has ended, the client is gone, the edge stops, or `seconds_max` are over.

    That is when what the client has shown holds no more: who comes again shows something else.
    """
    pump = asyncio.create_task(_pump(follower, send))
    waits = [pump, asyncio.create_task(_disconnected(receive)), asyncio.create_task(stopping.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=seconds_max)
    finally:
        for task in waits:
            task.cancel()
        results = await asyncio.gather(*waits, return_exceptions=True)
        await follower.close()
    if isinstance(results[0], Exception):
        # The head is sent: all that is left is to end the stream, and the client resumes.
        log.error("stream.broke", task=follower.task, exc_info=results[0])
    try:
        async with asyncio.timeout(END_SECONDS_MAX if stopping.is_set() or seconds_max is not None else None):
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except TimeoutError:
        # A reader that takes nothing more: the server closes the connection.
        log.info("stream.cut", task=follower.task)


async def _pump(follower: Follower, send: Send) -> None:
    # A list of its own: middleware adds to it, and what it adds is this client's.
    await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
    # In the block of the first event: many clients take a block with nothing but a field for an event.
    before_first = sse.retry(sse.RETRY_MILLISECONDS)
    async with aclosing(follower.batches(COMMENT_SECONDS)) as batches:
        async for batch in batches:
            if not batch:
                await _write(send, sse.comment("idle"))
            for chunk in _chunks(batch):
                await _write(send, before_first + chunk)
                before_first = b""


async def _write(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _chunks(batch: list[Followed]) -> list[bytes]:
    """Frames, joined up to the size of a write."""
    chunks: list[bytes] = []
    frames: list[bytes] = []
    size = 0
    for followed in batch:
        frame = sse.frame(followed.sequence, followed.type, followed.payload)
        if frames and size + len(frame) > WRITE_BYTES_MAX:
            chunks.append(b"".join(frames))
            frames, size = [], 0
        frames.append(frame)
        size += len(frame)
    if frames:
        chunks.append(b"".join(frames))
    return chunks


async def _disconnected(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
