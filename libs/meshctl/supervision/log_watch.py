"""Keeps the logs of running processes within their bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from mesh.loop_health import LoopHealth
from meshctl.supervision.home import Home

log = structlog.get_logger("meshctl.log_watch")

LOOK_SECONDS: Final = 1.0
"""What a process writes meanwhile comes on top of `LOG_BYTES_MAX`."""


async def watch_logs(home: Home, names: Callable[[], Iterable[str]]) -> None:
    """Rotate logs that have grown too long, until cancelled. `names` says whose there are now."""
    health = LoopHealth(log, "logs.not_rotated")
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            await asyncio.to_thread(home.rotate_logs, list(names()))
        except OSError as error:
            health.failed(error)
        else:
            health.succeeded()
