"""One TLS connection: what a client may do with one that is plain, it may do with this, and no more.

The loops have a TLS of their own, which does not keep the bounds of `mesh.serving.http_protocol`: nobody is told of a
connection before its handshake has ended, what it has not sent yet is not counted, and it can't be closed in one
direction. So OpenSSL's work is done here between two buffers in memory, and all that it writes goes on at once: the
connection below is the only place where something waits.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

import structlog

from contracts.codec import encode
from contracts.errors import problem
from mesh.serving.connections import Connections
from mesh.serving.security_headers import written

log = structlog.get_logger("mesh.serving.tls_protocol")

HANDSHAKE_SECONDS_MAX: Final = 15.0
"""How long a client may take for its handshake, from the connection on."""
HANDSHAKE_BYTES_MAX: Final = 64 * 1024
"""What it may send meanwhile. Few send more than two kilobytes: nobody is asked for a certificate."""
PLAIN_SECONDS_MAX: Final = 5.0
"""How long somebody who speaks plain HTTP has to take the answer."""
PLAIN_BYTES_MAX: Final = 256 * 1024
"""How much is read of what is no TLS, so that the answer is not lost in a reset."""

_HANDSHAKE: Final = 0x16
"""The first byte of a TLS connection: a record of the type handshake (RFC 8446, 5.1)."""
_READ_BYTES: Final = 256 * 1024
_WRITE_BYTES: Final = 64 * 1024
"""So much is encrypted at once: OpenSSL's buffer stays as large as it once was, for as long as the connection lives."""


class Tls(NamedTuple):
    """How a server speaks TLS."""

    context: Callable[[], ssl.SSLContext]
    """What the next handshake takes."""
    hsts_days: float
    """How long browsers are to come by https alone; 0: nothing is said of it."""


class TlsProtocol(asyncio.Protocol):
    """The lower side: what comes over the connection. `protocol` makes the one above, once the handshake is done."""

    def __init__(
        self,
        protocol: Callable[..., asyncio.Protocol],
        connections: Connections,
        context: Callable[[], ssl.SSLContext],
        **options: Any,
    ) -> None:
        self._make = protocol
        self._options = options
        self._all = connections
        self._context = context
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._handshake_bytes = 0
        self._above: asyncio.Protocol | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._discard_bytes_left: int | None = None
        """What may still be thrown away of what is no TLS; None before that."""
        self._is_paused = False
        self.has_written_eof = False
        self.transport: asyncio.Transport

    # The connection below

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is of this kind
        self.transport = transport
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS_MAX, transport.abort)
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        self._stop_timer()
        if self._above is not None:
            self._above.connection_lost(exc)

    def eof_received(self) -> None:
        if self._above is not None:
            self._above.eof_received()

    def pause_writing(self) -> None:
        if self._above is not None:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        if self._above is not None:
            self._above.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._discard_bytes_left is not None:
            self._discard_bytes_left -= len(data)
            if self._discard_bytes_left < 0:
                self.transport.abort()
            return
        if self._tls is None:
            if data[0] != _HANDSHAKE:
                self._answer_plain()
                return
            self._tls = self._context().wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._incoming.write(data)
        self._handshake_bytes += len(data)
        self._go_on()

    def _go_on(self) -> None:
        try:
            if self._above is None:
                self._handshake()
            if self._above is not None:
                self._read()
        except ssl.SSLError as error:
            # The client's mistake, or an attack: it is told by an alert, and that is all.
            log.debug("tls.broken", error=error.reason)
            self.flush()
            self.transport.close()

    def _handshake(self) -> None:
        assert self._tls is not None  # noqa: S101 - the first bytes have made it
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self.flush()
            if self._handshake_bytes > HANDSHAKE_BYTES_MAX:
                self.transport.abort()
            return
        self.flush()
        self._stop_timer()
        self._above = self._make(**self._options)
        self._all.follow(self, self._above)  # type: ignore[arg-type]  # it has a transport from here on
        self._above.connection_made(TlsTransport(self, self.transport, self._tls))

    def _read(self) -> None:
        """Give the protocol above what can be decrypted, for as long as it takes more."""
        assert self._tls is not None  # noqa: S101 - as above
        assert self._above is not None  # noqa: S101 - as above
        while not self._is_paused and not self.transport.is_closing():
            try:
                data = self._tls.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                # The client has said that nothing more comes (close_notify): as the end of a plain connection.
                self._above.eof_received()
                self.close()
                return
            self._above.data_received(data)
        self.flush()

    def _answer_plain(self) -> None:
        """Tell who does not speak TLS that it has to, and read on for a while, so that the answer arrives."""
        body = encode(problem("invalid-request", "this address speaks TLS: use https"))
        self.transport.write(written("400 Bad Request", body))
        self.transport.write_eof()
        self._discard_bytes_left = PLAIN_BYTES_MAX
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(PLAIN_SECONDS_MAX, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # What the protocol above asks for

    def flush(self) -> None:
        """Send what OpenSSL has written. Behind the end there is nothing to send."""
        data = self._outgoing.read()
        if data and not self.has_written_eof and not self.transport.is_closing():
            self.transport.write(data)

    def end(self) -> None:
        """Say that nothing more is sent (close_notify; RFC 8446, 6.1)."""
        if self._tls is not None and not self.has_written_eof:
            with suppress(ssl.SSLError):  # It would wait for the client's.
                self._tls.unwrap()
            self.flush()
            self.has_written_eof = True

    def close(self) -> None:
        """End the connection once all is sent."""
        self.end()
        self.transport.close()

    def pause(self) -> None:
        """Read no more for now."""
        self._is_paused = True
        self.transport.pause_reading()

    def resume(self) -> None:
        """Read on: first what has come already."""
        if self._is_paused:
            self._is_paused = False
            asyncio.get_running_loop().call_soon(self._resume)

    def _resume(self) -> None:
        if self._is_paused or self.transport.is_closing():
            return
        self.transport.resume_reading()
        self._go_on()


class TlsTransport(asyncio.Transport):
    """The upper side: a transport as any other, of a protocol that knows nothing of TLS."""

    def __init__(self, lower: TlsProtocol, transport: asyncio.Transport, tls: ssl.SSLObject) -> None:
        super().__init__()
        self._lower = lower
        self._transport = transport
        self._tls = tls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        match name:
            case "sslcontext":
                return self._tls.context
            case "ssl_object":
                return self._tls
        return self._transport.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not data or self._lower.has_written_eof or self._transport.is_closing():
            return
        left = memoryview(data)
        while left:
            left = left[self._tls.write(left[:_WRITE_BYTES]) :]
            self._lower.flush()

    def write_eof(self) -> None:
        self._lower.end()
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        self._lower.pause()

    def resume_reading(self) -> None:
        self._lower.resume()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        if not self._transport.is_closing():
            self._lower.close()

    def abort(self) -> None:
        self._transport.abort()
