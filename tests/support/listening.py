"""Servers on loopback that end with the block that they are for, and every connection with them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

ACCEPTING_ROUNDS = 5
"""Of the loop: a connection that was being accepted is there by then."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[int]:
    """Serve connections on 127.0.0.1; the port, by default a free one. What goes wrong is raised at the end."""
    connections: list[tuple[asyncio.Task[None], asyncio.StreamWriter]] = []

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # The client has gone.
        finally:
            writer.close()

    def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append((asyncio.create_task(serve_one(reader, writer)), writer))

    server = await asyncio.start_server(on_connection, "127.0.0.1", port, ssl=tls)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for _ in range(ACCEPTING_ROUNDS):
            await asyncio.sleep(0)
        for task, writer in connections:
            task.cancel()
            writer.transport.abort()
        results = await asyncio.gather(*(task for task, _ in connections), return_exceptions=True)
        for _, writer in connections:
            with suppress(OSError):
                await writer.wait_closed()
        await server.wait_closed()
        for result in results:
            if isinstance(result, Exception):
                raise result
