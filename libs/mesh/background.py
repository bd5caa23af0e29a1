"""Jobs beside the main one: each is awaited by somebody, and one that breaks is no secret."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from contracts.errors import TaskmeshError
from mesh.loop_health import LoopHealth


@asynccontextmanager
async def background(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run endless jobs beside the body. They are cancelled at its end; one that breaks ends the body, and raises."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in jobs]
        yield
        for task in tasks:
            task.cancel()


class Replaceable:
    """An endless job that others take the place of. One that is cancelled may take its time to end beside the next."""

    def __init__(self, job: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        self._next: asyncio.Queue[Callable[[], Coroutine[Any, Any, None]] | None] = asyncio.Queue()
        self.put(job)

    def put(self, job: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
        """Run this one instead; None is no job."""
        self._next.put_nowait(job)

    async def run(self) -> None:
        """Run what was put last, until cancelled."""
        async with asyncio.TaskGroup() as group:
            current: asyncio.Task[None] | None = None
            while True:
                job = await self._next.get()
                if current is not None:
                    current.cancel()
                current = group.create_task(job()) if job is not None else None


async def repeatedly(act: Callable[[], Awaitable[object]], pause_seconds: float, health: LoopHealth) -> None:
    """Act again and again until cancelled. `health` is told how each round went."""
    while True:
        try:
            await act()
            health.succeeded()
        except TaskmeshError as error:
            health.failed(error)
        await asyncio.sleep(pause_seconds)


def is_seen(task: asyncio.Task[Any]) -> None:
    """A done callback, for what several wait for: each is told how it failed, and there may be nobody left who is."""
    if not task.cancelled():
        task.exception()


async def ended(task: asyncio.Task[Any], seconds: float) -> None:
    """Wait until a task has ended, however, or for so long. As `asyncio.wait` of one, at half its cost."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()

    def end(*_: object) -> None:
        if not over.done():
            over.set_result(None)

    timer = loop.call_later(seconds, end)
    task.add_done_callback(end)
    try:
        await over
    finally:
        timer.cancel()
        task.remove_done_callback(end)


async def first_of(*events: asyncio.Event, seconds: float | None) -> None:
    """Wait until one of the events is set, or for so long; None is for ever."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
