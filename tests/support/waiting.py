"""Waiting for a thing, never for a time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

from mesh.connection import Connection

POLL_SECONDS = 0.01


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 30) -> None:
    """Wait until a condition holds; `TimeoutError` if it does not in time."""
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if await held if inspect.isawaitable(held) else held:
                return
            await asyncio.sleep(POLL_SECONDS)


async def until_no_work_is_left(connection: Connection, seconds: float = 60) -> None:
    """Wait until TASKS is empty: every task has ended, and is acked."""

    async def empty() -> bool:
        info = await connection.requests.api("STREAM.INFO.TASKS")
        return bool(info["state"]["messages"] == 0)

    await until(empty, seconds)
