"""An application served as the services do it, without a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar.types import ASGIApp

from mesh.configuration.settings import Address
from mesh.serving.http import serve
from mesh.serving.listening import address_of, bind


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Its address, and what tells it to stop."""
    listener = bind(Address("127.0.0.1", 0), "MESH_INGRESS_ADDRESS")
    stopping, started = asyncio.Event(), asyncio.Event()

    async def on_started() -> None:
        started.set()

    serving = asyncio.create_task(serve(app, listener, stopping, on_started()))
    await started.wait()
    try:
        yield f"http://{address_of(listener)}", stopping
    finally:
        stopping.set()
        await serving
