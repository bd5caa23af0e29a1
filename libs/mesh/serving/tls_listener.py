"""Accepting TLS: a bound on handshakes as there is one on requests, and an answer to who speaks plain HTTP.

A connection whose handshake is under way is counted among those without a request. By itself a loop knows nothing of
it before its handshake has ended, so that connections which say nothing would take all descriptors.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

import structlog

from contracts.codec import encode
from contracts.errors import problem
from mesh.serving.connections import Connections, Transport
from mesh.serving.security_headers import written

log = structlog.get_logger("mesh.serving.tls_listener")

HANDSHAKE_SECONDS_MAX: Final = 15.0
"""How long a client may take for its handshake, from the connection on."""
CLOSE_SECONDS_MAX: Final = 1.0
"""How long a client has to say that it has seen the end of a connection."""
PLAIN_SECONDS_MAX: Final = 5.0
"""How long somebody who speaks plain HTTP has to take the answer."""
PLAIN_BYTES_MAX: Final = 256 * 1024
"""How much is read of what is no TLS, so that the answer is not lost in a reset."""
ACCEPTED_MAX: Final = 64
"""So many are accepted at once, before others have their turn."""
ACCEPT_AGAIN_SECONDS: Final = 0.1
"""After a connection could not be accepted, as without a free descriptor."""

_HANDSHAKE: Final = 0x16
"""The first byte of a TLS connection: a record of the type handshake (RFC 8446, 5.1)."""
_READ_BYTES: Final = 64 * 1024


class Tls(NamedTuple):
    """How a server speaks TLS."""

    context: Callable[[], ssl.SSLContext]
    """What the next handshake takes."""
    hsts_days: float
    """How long browsers are to come by https alone; 0: nothing is said of it."""


class _Handshake:
    """A connection before its first request, as `Connections` counts it."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    @property
    def transport(self) -> Transport:
        return self

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self._task.cancel()

    def abort(self) -> None:
        self._task.cancel()


class TlsListener:
    """Accepts TLS connections on a socket. `context` is asked for each handshake."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        connections: Connections,
        context: Callable[[], ssl.SSLContext],
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._connections = connections
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._under_way: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Accept from now on."""
        self._again = None
        # Not the loop's sock_accept: what that has accepted is lost if it is cancelled at that moment.
        self._loop.add_reader(self._listener, self._accept)

    def stop(self) -> None:
        """Accept no more. Handshakes under way go on."""
        self._loop.remove_reader(self._listener)
        if self._again is not None:
            self._again.cancel()

    async def end(self) -> None:
        """End the handshakes that are still under way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(ACCEPTED_MAX):
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("tls.not_accepted", error=str(error))
                self._loop.remove_reader(self._listener)
                self._again = self._loop.call_later(ACCEPT_AGAIN_SECONDS, self.start)
                return
            task = self._loop.create_task(_serve(accepted, self._protocol, self._context))
            handshake = _Handshake(task)
            self._under_way.add(task)
            task.add_done_callback(partial(self._ended, handshake))
            self._connections.add(handshake)

    def _ended(self, handshake: _Handshake, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._connections.remove(handshake)


async def _serve(
    accepted: socket.socket, protocol: Callable[[], asyncio.Protocol], context: Callable[[], ssl.SSLContext]
) -> None:
    """Bring a connection to its first request. What goes wrong on the way is the client's business, and ends it."""
    loop = asyncio.get_running_loop()
    is_handed_over = False
    try:
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(HANDSHAKE_SECONDS_MAX):
            first = await _first_byte(loop, accepted)
            if first == _HANDSHAKE:
                is_handed_over = True
                await loop.connect_accepted_socket(
                    protocol,
                    accepted,
                    ssl=context(),
                    ssl_handshake_timeout=HANDSHAKE_SECONDS_MAX,
                    ssl_shutdown_timeout=CLOSE_SECONDS_MAX,
                )
        if first not in (_HANDSHAKE, None):
            async with asyncio.timeout(PLAIN_SECONDS_MAX):
                await _answer_plain(loop, accepted)
    except (OSError, TimeoutError) as error:
        # An SSLError is one of these, too.
        log.debug("tls.no_handshake", error=str(error))
    finally:
        if not is_handed_over:
            accepted.close()


async def _first_byte(loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> int | None:
    """The first byte that a client sends, which is left where it is; None if it ends without one."""
    while True:
        with suppress(BlockingIOError, InterruptedError):
            peeked = accepted.recv(1, socket.MSG_PEEK)
            return peeked[0] if peeked else None
        readable = asyncio.Event()
        loop.add_reader(accepted, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(accepted)


async def _answer_plain(loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> None:
    """Tell who does not speak TLS that it has to, and read on for a while, so that the answer arrives."""
    body = encode(problem("invalid-request", "this address speaks TLS: use https"))
    await loop.sock_sendall(accepted, written("400 Bad Request", body))
    accepted.shutdown(socket.SHUT_WR)
    left = PLAIN_BYTES_MAX
    while left > 0:
        piece = await loop.sock_recv(accepted, _READ_BYTES)
        if not piece:
            return
        left -= len(piece)
