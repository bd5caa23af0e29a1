"""The line to one server of a cluster: left at once where that server goes away, or gives no answer any more.

By itself the client stays with a server that is about to stop until it is thrown out, up to two minutes later, and
takes up to a minute to find that a line is dead: one whose other end is cut off, or stands still, breaks nothing. Where
there is no other server nothing is gained by leaving.
"""

from __future__ import annotations

import asyncio
import random

import nats.errors
import structlog
from nats.aio.client import Client

log = structlog.get_logger("mesh.broker.line")

LOOK_SECONDS = 0.5
"""How often a server is asked whether it is there, where there are others."""
ANSWER_SECONDS = 0.75
"""How long its answer may take, so often:"""
TRIES = 2
"""A process that slept itself hears the answer to its first question too late, and that to the second in time."""
LEAVE_SECONDS_MAX = 0.2
"""Clients leave a server that is about to stop at different times, so that they don't all come to another at once."""


class Line:
    """The line of one client."""

    def __init__(self, client: Client, role: str) -> None:
        self._client = client
        self._role = role
        self._leaving: asyncio.Task[None] | None = None

    async def watch(self) -> None:
        """Drop the line whenever its server gives no answer and there is another, until cancelled."""
        try:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                if self._client.is_connected and self._has_choice and not await self._answers():
                    self._drop()
        finally:
            if self._leaving is not None:
                self._leaving.cancel()

    async def on_lame_duck(self) -> None:
        """The server says that it is about to stop: go to another one."""
        if self._has_choice and (self._leaving is None or self._leaving.done()):
            # Not here: the client reads nothing more until this returns.
            self._leaving = asyncio.create_task(self._leave())

    def on_disconnected(self) -> None:
        """Have the client come back to the server that it left last of all: it may swallow what is sent to it."""
        pool, left = self._client._server_pool, self._client._current_server
        if left in pool:
            pool.remove(left)
            pool.append(left)

    @property
    def _has_choice(self) -> bool:
        return len(self._client.servers) > 1

    async def _answers(self) -> bool:
        for _ in range(TRIES):
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._client.flush()
            except (TimeoutError, nats.errors.Error, OSError):
                continue
            return True
        return not self._client.is_connected  # The client has found out by itself.

    async def _leave(self) -> None:
        log.info("broker.leaves", role=self._role)
        await asyncio.sleep(random.uniform(0, LEAVE_SECONDS_MAX))
        # What was published without waiting, such as an ack, goes out first.
        await self._answers()
        await self._client.force_reconnect()

    def _drop(self) -> None:
        log.warning("broker.no_answer", role=self._role)
        # Not closed: that would wait for the other end to take what is still to be sent.
        writer = getattr(self._client._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
