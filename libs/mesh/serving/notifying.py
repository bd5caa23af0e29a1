"""What systemd is told of a process (sd_notify(3)): that it serves, that it ends, and that it lives.

Where `NOTIFY_SOCKET` is set, and only there. A unit is `Type=notify`; with `WatchdogSec=` it is a second watchdog, from
outside: the sign of life comes from the event loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Final

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE: Final = "WATCHDOG_USEC"
WATCHDOG_PID_VARIABLE: Final = "WATCHDOG_PID"
VARIABLES: Final = (SOCKET_VARIABLE, WATCHDOG_VARIABLE, WATCHDOG_PID_VARIABLE)
"""None is for a child: it would speak for its parent."""
STARTING_SECONDS: Final = 10.0
"""How often a start that takes its time, since it waits for its broker, says that it goes on."""
EXTENSION_SECONDS: Final = 30.0
_MICROSECONDS: Final = 1_000_000
_WATCHDOG_SHARE: Final = 0.4
"""A sign of life after this part of the time that systemd waits for one: half is what its manual asks for, at most."""


class Notifier:
    """Tells systemd, or nobody where there is none. Nothing here fails: a service does not hang on who watches it."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address_of(environment.get(SOCKET_VARIABLE, ""))
        self.watchdog_seconds = _watchdog_seconds(environment)
        """How long systemd waits for a sign of life; None: it waits for none."""
        self._is_ready = False

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return self._address is not None

    def ready(self) -> None:
        """The process serves."""
        self._is_ready = True
        self._tell("READY=1", "STATUS=")

    def reloading(self, monotonic_seconds: float) -> None:
        """It reads its configuration anew, since this time of CLOCK_MONOTONIC; `ready` says that it has."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={int(monotonic_seconds * _MICROSECONDS)}")

    def stopping(self, seconds_max: float) -> None:
        """It ends, and may take so long."""
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int((seconds_max + EXTENSION_SECONDS) * _MICROSECONDS)}")

    @asynccontextmanager
    async def kept_up(self) -> AsyncIterator[None]:
        """Give signs of life during the body, and while the process has not served yet, say that its start goes on."""
        if not self.is_heard:
            yield
            return
        # No task group: what ends a start with one line would leave it as a group of errors.
        jobs = [asyncio.create_task(self._keep_starting())]
        if self.watchdog_seconds is not None:
            jobs.append(asyncio.create_task(self._keep_alive(self.watchdog_seconds * _WATCHDOG_SHARE)))
        try:
            yield
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def _keep_starting(self) -> None:
        while not self._is_ready:
            extension = f"EXTEND_TIMEOUT_USEC={int(EXTENSION_SECONDS * _MICROSECONDS)}"
            self._tell("STATUS=starting, or waiting for the broker", extension)
            await asyncio.sleep(STARTING_SECONDS)

    async def _keep_alive(self, seconds: float) -> None:
        while True:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(seconds)

    def _tell(self, *lines: str) -> None:
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.setblocking(False)
            notify.sendto("\n".join(lines).encode(), self._address)


def without_notify(environment: MutableMapping[str, str]) -> None:
    """Take the variables away from what a child is given."""
    for variable in VARIABLES:
        environment.pop(variable, None)


def _address_of(path: str) -> str | None:
    if path.startswith("@"):  # An abstract one (Linux).
        return "\0" + path[1:]
    return path if path.startswith("/") else None


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    with suppress(ValueError):
        if int(environment.get(WATCHDOG_PID_VARIABLE) or os.getpid()) == os.getpid():
            seconds = int(environment.get(WATCHDOG_VARIABLE, "")) / _MICROSECONDS
            return seconds if seconds > 0 else None
    return None
