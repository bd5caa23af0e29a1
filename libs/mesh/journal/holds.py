"""Holds: the owner of a running step is asked to append nothing for a moment, so that somebody else gets in.

An append over a fence wins only if nobody has stored since its read. A writer that is a few milliseconds away from the
broker never wins against an owner that streams. So it asks, by a core message that carries no promise: who does not
hear it, or is asked too often, goes on, and the fence keeps the journal whole.
"""

from __future__ import annotations

import asyncio

import nats.errors
import structlog

from contracts import subjects
from contracts.codec import encode
from contracts.messages.control import HOLD_SECONDS_MAX, Hold
from mesh.broker.connection import Connection

log = structlog.get_logger("mesh.journal.holds")

ROUND_TRIPS = 4.0
"""How many a hold lasts: it has to get there, what is under way has to be read, and the append has to come."""
MARGIN_SECONDS = 0.1
REST_SHARE = 0.5
"""After a hold in which nobody came, its owner goes on for at least this part of it, whoever asks."""


class Pause:
    """The owner's side: appends wait until it is over."""

    def __init__(self) -> None:
        self._until = 0.0
        self._deaf_until = 0.0
        self._ended = asyncio.Event()

    def ask(self, seconds: float) -> None:
        """Append nothing for so long, if it was not asked in vain just now."""
        at = asyncio.get_running_loop().time()
        if at < self._deaf_until:
            return
        seconds = min(seconds, HOLD_SECONDS_MAX)
        self._until = at + seconds
        self._deaf_until = self._until + seconds * REST_SHARE
        self._ended.clear()

    def end(self) -> None:
        """Somebody has got in."""
        self._until = self._deaf_until = 0.0
        self._ended.set()

    async def over(self) -> None:
        """Wait for its end."""
        left = self._until - asyncio.get_running_loop().time()
        if left <= 0:
            return
        try:
            async with asyncio.timeout(left):
                await self._ended.wait()
        except TimeoutError:
            pass


async def ask(connection: Connection, tenant: str, task: str) -> None:
    """Ask whoever works on a task to append nothing for a moment. Nobody answers, and it may get lost."""
    seconds = min(HOLD_SECONDS_MAX, ROUND_TRIPS * connection.requests.round_trip_seconds + MARGIN_SECONDS)
    if not connection.is_connected:
        return
    try:
        await connection.client.publish(subjects.hold(tenant, task), encode(Hold(seconds=seconds)))
    except (nats.errors.Error, OSError) as error:
        log.info("hold.not_asked", task=task, error=str(error))
