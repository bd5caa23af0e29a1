"""Progress of a call, as events: never more than one append in flight, and the latest word at most twice a second."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import NamedTuple

PROGRESS_SECONDS_MIN = 0.5
"""Between two events of one call: a tool may report as often as it likes, and what comes between is left out."""
MESSAGE_CHARACTERS_MAX = 1_000


class Reported(NamedTuple):
    """What a tool said last."""

    progress: float
    total: float | None
    message: str | None


class Progress:
    """Appends what is reported, through `append`. Use as a context: at its end no append is in flight.

    What gathered by then is dropped: the call's result follows. If an append failed, the end raises its error.
    """

    def __init__(
        self, append: Callable[[Reported], Awaitable[object]], seconds_min: float = PROGRESS_SECONDS_MIN
    ) -> None:
        self._append = append
        self._seconds_min = seconds_min
        self._latest: Reported | None = None
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Progress:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._news.set()
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if kind is not None and not issubclass(kind, Exception):
            # Cancelled: the step is somebody else's, or this process stops.
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        else:
            await writer

    def report(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the call is. Never waits; what is no number is not said."""
        if self._ended.is_set() or not math.isfinite(progress):
            return
        if total is not None and not math.isfinite(total):
            total = None
        if message is not None:
            message = message[:MESSAGE_CHARACTERS_MAX].encode("utf-8", "replace").decode()
        self._latest = Reported(progress, total, message)
        self._news.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._ended.is_set():
                return
            latest, self._latest = self._latest, None
            if latest is not None:
                await self._append(latest)
            try:
                async with asyncio.timeout(self._seconds_min):
                    await self._ended.wait()
                return
            except TimeoutError:
                pass
