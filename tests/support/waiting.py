"""Waiting for a thing, never for a time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from mesh.broker.connection import Connection
from tests.support.patience import POLL_SECONDS, within

QUEUES = ("BACKLOG", "TASKS", "TURNS", "TOOLS", "CONTROL")


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 30) -> None:
    """Wait until a condition holds; `TimeoutError` if it does not in time, which a busy machine stretches."""
    async with within(seconds):
        while True:
            held = condition()
            if await held if inspect.isawaitable(held) else held:
                return
            await asyncio.sleep(POLL_SECONDS)


async def until_no_work_is_left(connection: Connection, seconds: float = 60) -> None:
    """Wait until the queues are empty: what was to be done is done, and acked."""

    async def empty() -> bool:
        infos = [await connection.requests.api(f"STREAM.INFO.{stream}") for stream in QUEUES]
        return all(info["state"]["messages"] == 0 for info in infos)

    await until(empty, seconds)
