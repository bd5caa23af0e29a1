"""All connections of a server together: no more than there are descriptors for, and none that takes nothing."""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import suppress
from typing import Protocol

import structlog
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from contracts.codec import encode
from contracts.errors import problem

log = structlog.get_logger("mesh.serving.connections")

DESCRIPTORS_MAX = 65_536
"""What a server raises its soft limit of descriptors to, if the hard one allows it."""
DESCRIPTORS_RESERVED = 64
"""Descriptors that are for no client: the broker, files, logs; and connections that are accepted to be turned away."""
CONNECTIONS_SPARE = 16
"""Connections above the requests that are served at once: health is asked on them, and others are told to wait."""
CONNECTIONS_MIN = 8
SWEEP_SECONDS = 1.0
UNREAD_SECONDS_MAX = 30.0
"""How long a client may take nothing of an answer."""
UNREAD_BYTES_MAX = 256 * 1024 * 1024
"""What the unread answers of all clients may take together: above that the largest are closed."""
LOG_SECONDS = 10.0
"""How often it is said that a server is full."""
RETRY_AFTER_SECONDS = 5


class Transport(Protocol):
    """What is asked of a transport."""

    def get_write_buffer_size(self) -> int:
        """Bytes that the system has not taken."""

    def close(self) -> None:
        """End it once these are gone."""

    def abort(self) -> None:
        """End it now."""


class Connection(Protocol):
    """What is asked of a connection."""

    @property
    def transport(self) -> Transport:
        """Where it writes."""


class Connections:
    """The connections of one server.

    Of `descriptors` some are reserved. When the rest is taken, a new connection takes the place of the one that has
    been without a request for longest, and while as many requests as there is room for are under way, streams
    included, others get 503 `too-many-connections`, and /health is served.
    """

    def __init__(self, descriptors: int) -> None:
        self.connections_max = max(CONNECTIONS_MIN + CONNECTIONS_SPARE, descriptors - DESCRIPTORS_RESERVED)
        self.requests_max = self.connections_max - CONNECTIONS_SPARE
        self._all: dict[Connection, tuple[int, float]] = {}
        """Of each: the bytes that it had not taken at the last sweep, and since when it has not taken any."""
        self._quiet: dict[Connection, None] = {}
        """Those without a request, the longest quiet first."""
        self._next_log = 0.0
        self.is_ending = False
        """Whether each answer is the last of its connection."""
        self._none_is_quiet = asyncio.Event()

    def add(self, connection: Connection) -> None:
        """A client has connected."""
        if connection in self._all:
            return
        now = time.monotonic()
        self._all[connection] = (0, now)
        self._quiet[connection] = None
        if len(self._all) > self.connections_max:
            longest = next(iter(self._quiet))
            self._say_full()
            self._drop(longest)

    def follow(self, before: Connection, connection: Connection) -> None:
        """Another one stands for the same client from here on, which has no request yet."""
        self._all[connection] = self._all.pop(before, (0, time.monotonic()))
        self._quiet[connection] = None
        self._quiet.pop(before, None)

    def remove(self, connection: Connection) -> None:
        """A connection has ended."""
        self._all.pop(connection, None)
        self._quiet.pop(connection, None)
        self._tell_whether_quiet()

    def busy(self, connection: Connection) -> None:
        """A request has come on it."""
        self._quiet.pop(connection, None)
        self._tell_whether_quiet()

    def quiet(self, connection: Connection) -> None:
        """It has no request under way."""
        if connection in self._all:
            self._quiet[connection] = None

    def are_full(self) -> bool:
        """Whether there is no room for a request more."""
        return len(self._all) - len(self._quiet) > self.requests_max

    async def refuse(self, _: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """The ASGI application for requests that there is no room for."""
        self._say_full()
        body = encode(problem("too-many-connections", f"{self.requests_max} requests are under way already"))
        head = [
            (b"content-type", b"application/problem+json"),
            (b"cache-control", b"no-store"),
            (b"retry-after", b"%d" % RETRY_AFTER_SECONDS),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": head, "trailers": False})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def let_go(self, seconds_max: float) -> None:
        """From now on a connection ends with its answer; wait until none is left without a request, so long at most."""
        self.is_ending = True
        self._tell_whether_quiet()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                await self._none_is_quiet.wait()
        for connection in list(self._quiet):
            connection.transport.close()

    def _tell_whether_quiet(self) -> None:
        if self.is_ending and not self._quiet:
            self._none_is_quiet.set()

    async def watch(self) -> None:
        """Close what takes nothing, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep(time.monotonic())

    def sweep(self, now: float) -> None:
        """Close those that have taken nothing for too long, and the largest while too much is unread."""
        total = 0
        slow: list[tuple[int, Connection]] = []
        for connection, (before, since) in list(self._all.items()):
            unread = connection.transport.get_write_buffer_size()
            takes_nothing = 0 < before <= unread
            if not takes_nothing:
                since = now  # noqa: PLW2901 - of this connection
            self._all[connection] = (unread, since)
            if takes_nothing and now - since >= UNREAD_SECONDS_MAX:
                self._abort(connection, unread)
                continue
            total += unread
            if before:
                slow.append((unread, connection))
        slow.sort(key=lambda each: each[0])
        while total > UNREAD_BYTES_MAX and slow:
            unread, connection = slow.pop()
            total -= unread
            self._abort(connection, unread)

    def _abort(self, connection: Connection, unread: int) -> None:
        log.warning("http.unread", unread_bytes=unread)
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self.remove(connection)
        connection.transport.abort()

    def _say_full(self) -> None:
        now = time.monotonic()
        if now >= self._next_log:
            self._next_log = now + LOG_SECONDS
            log.warning(
                "http.full",
                connections=len(self._all),
                connections_max=self.connections_max,
                requests=len(self._all) - len(self._quiet),
                requests_max=self.requests_max,
            )


def raise_descriptor_limit() -> int:
    """Raise the soft limit of descriptors towards `DESCRIPTORS_MAX`, as far as it may; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = DESCRIPTORS_MAX if hard == unlimited else min(hard, DESCRIPTORS_MAX)
    if soft != unlimited and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError) as error:
            log.info("http.limit_kept", descriptors=soft, error=str(error))
    return DESCRIPTORS_MAX if soft == unlimited else min(soft, DESCRIPTORS_MAX)
