"""Being told to stop: the first SIGINT, SIGTERM or SIGHUP asks, a second SIGINT insists."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, TypeVar

T = TypeVar("T")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """The operator wants an end. Not an error."""

    def __init__(self, stops: Stops) -> None:
        super().__init__("stopped by a signal")
        self._stops = stops

    @property
    def insisted(self) -> bool:
        """Whether the operator did not want to wait, up to now."""
        return self._stops.insisted


class Stops:
    """Catches the signals while the context lasts."""

    def __init__(self) -> None:
        self.insisted = False
        self._asked = asyncio.Event()
        self._on_insisted: Callable[[], None] | None = None

    def __enter__(self) -> Stops:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            loop.add_signal_handler(number, self._on_signal, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    @property
    def asked(self) -> bool:
        """Whether somebody wants an end."""
        return self._asked.is_set()

    def on_insisted(self, callback: Callable[[], None]) -> None:
        """What to do when the operator does not want to wait."""
        self._on_insisted = callback

    async def wait(self) -> None:
        """Wait until somebody wants an end."""
        await self._asked.wait()

    async def unless(self, work: Awaitable[T]) -> T:
        """The result of `work`; if the stop comes first it is cancelled, and this raises `Stopped`."""
        running: asyncio.Future[Any] = asyncio.ensure_future(work)
        asked = asyncio.create_task(self._asked.wait())
        try:
            await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise Stopped(self)
            result: T = running.result()
            return result
        finally:
            for each in (running, asked):
                each.cancel()
            await asyncio.gather(running, asked, return_exceptions=True)

    def _on_signal(self, number: int) -> None:
        if self._asked.is_set() and number == signal.SIGINT:
            self.insisted = True
            if self._on_insisted is not None:
                self._on_insisted()
        self._asked.set()
