"""One HTTP connection: uvicorn's protocol, with a bound on all that a client may leave unsaid, unread or unended.

By itself uvicorn holds a head of any size for any time, keeps a connection that sends line breaks for ever, does not
read the body of a request that asks for an upgrade, sends chunks to HTTP/1.0, and closes on a body that it has not
read, so that the answer is lost in a reset.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, MutableMapping
from functools import partial
from itertools import chain
from typing import Any

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from contracts.codec import encode
from contracts.errors import problem
from mesh.serving.connections import Connections
from mesh.serving.security_headers import written

HEAD_BYTES_MAX = 64 * 1024
"""Largest request line and headers together."""
HEAD_SECONDS_MAX = 30.0
"""How long a head may take to come, from the connection or from its first byte."""
PIPELINED_MAX = 32
"""Requests of one connection that wait for the answer to an earlier one."""
DISCARD_BYTES_MAX = 32 * 1024 * 1024
"""How much is read and thrown away behind an answer that was given before the end of its request."""
RUBBISH_BYTES_MAX = 1024 * 1024
"""How much of what is no HTTP."""
DISCARD_SECONDS_MAX = 30.0
"""How long."""
_UPGRADE_HEADERS = frozenset({b"upgrade", b"http2-settings"})


def _has(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bool:
    return any(name.lower() == wanted for name, _ in headers)


class _HeadRefused(Exception):
    """Makes the parser give up."""


class Protocol(HttpToolsProtocol):
    """One connection. `connections` are all those of the server: it counts them, and closes those that take nothing."""

    def __init__(self, connections: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._all = connections
        self._answered: RequestResponseCycle | None = None
        """The request that is being answered, or was last. Of several that came together `cycle` is the last."""
        self._chunk_bytes = 0
        self._head_bytes: int | None = None
        """Bytes of the head under way, without the chunk that it began in; None outside of a head."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_without_upgrade: bytes | None = None
        """The head of a request that asks for an upgrade, which is to be read again as one that does not."""
        self._lingers_after_answer = False
        self._discard_bytes_left: int | None = None
        """What may still be thrown away before the connection ends; None before that."""
        self._discard_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._start_head_timer()
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        if self._discard_timer is not None:
            self._discard_timer.cancel()
        self.pipeline.clear()
        self._tell_gone()
        super().connection_lost(exc)

    # What comes

    def data_received(self, data: bytes) -> None:
        if self._discard_bytes_left is not None:
            self._discard_bytes_left -= len(data)
            if self._discard_bytes_left < 0:
                self.transport.abort()
            return
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse()
            return
        if self._head_bytes is not None and not self.transport.is_closing():
            self._head_bytes += self._chunk_bytes
            if self._head_bytes > HEAD_BYTES_MAX:
                self._refuse()

    def _feed(self, data: bytes) -> None:
        """Parse. An upgrade that is asked for is ignored (RFC 9110, 7.8): such a head is read again without it."""
        while True:
            self._chunk_bytes = len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as paused:
                head, self._head_without_upgrade = self._head_without_upgrade, None
                if head is None:
                    raise httptools.HttpParserError("CONNECT") from None
                data = head + data[paused.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            else:
                return

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._head_bytes = -self._chunk_bytes
        if self._head_timer is None:
            self._start_head_timer()

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        self._stop_head_timer()
        if len(self.url) + sum(map(len, chain.from_iterable(self.headers))) > HEAD_BYTES_MAX:
            raise _HeadRefused
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise _HeadRefused
        if self.url.startswith((b"http://", b"https://")):
            self._take_host_of_target()
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._head_without_upgrade = self._rebuilt_head()
            return
        if len(self.pipeline) >= PIPELINED_MAX:
            raise _HeadRefused
        self._unset_keepalive_if_required()
        self._all.busy(self)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._head_without_upgrade is None:
            super().on_message_complete()

    def _take_host_of_target(self) -> None:
        """What a target in absolute form names outranks `Host` (RFC 9112, 3.2.2)."""
        authority = self.url.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0].rpartition(b"@")[2]
        if sum(name == b"host" for name, _ in self.headers) == 1:
            self.headers[:] = [(name, authority if name == b"host" else value) for name, value in self.headers]

    def _rebuilt_head(self) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(option for option in options if option.lower() not in _UPGRADE_HEADERS)  # noqa: PLW2901
            if value and name not in _UPGRADE_HEADERS:
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    # What goes

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self._all.are_full() and not cycle.scope["path"].startswith("/health/"):
            app = self._all.refuse
        if cycle.scope["http_version"] == "1.0":
            cycle.waiting_for_100_continue = False  # RFC 9110, 10.1.1
        self._answered = cycle
        super()._start_asgi_task(cycle, partial(self._answer, cycle, app))

    async def _answer(
        self,
        cycle: RequestResponseCycle,
        app: ASGI3Application,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> None:
        """Run the application. An answer of unknown length to HTTP/1.0 ends with the connection, and so does one that
        is given before its request has ended: what is left of that is thrown away.
        """
        ends_by_close = False

        async def send_adapted(message: ASGISendEvent) -> None:
            nonlocal ends_by_close
            event: MutableMapping[str, Any] = message  # type: ignore[assignment]  # a dict, which mypy takes for closed
            if event["type"] == "http.response.start":
                if (cycle.more_body or self._all.is_ending) and not _has(event["headers"], b"connection"):
                    event = {**event, "headers": [*event["headers"], (b"connection", b"close")]}
                if cycle.scope["http_version"] == "1.0" and not _has(event["headers"], b"content-length"):
                    ends_by_close, cycle.chunked_encoding = True, False
            else:
                if ends_by_close:
                    cycle.expected_content_length = len(event["body"])
                if cycle.more_body and not (cycle.keep_alive or event["more_body"]):
                    # uvicorn closes if it need not keep the connection: what is unread would then be a reset.
                    cycle.keep_alive = self._lingers_after_answer = True
            await send(event)  # type: ignore[arg-type]  # as above

        await app(scope, receive, send_adapted)

    def on_response_complete(self) -> None:
        if self._lingers_after_answer:
            self.server_state.total_requests += 1
            self._linger(DISCARD_BYTES_MAX)
            return
        super().on_response_complete()
        if self.cycle.response_complete:
            self._all.quiet(self)

    def send_400_response(self, msg: str) -> None:
        self._refuse()

    def _refuse(self) -> None:
        """Answer what is not HTTP, and end the connection. An answer under way must not be written into."""
        cycle = self._answered
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()
            return
        self._tell_gone()
        detail = f"not an HTTP request, or one whose head has more than {HEAD_BYTES_MAX} bytes"
        body = encode(problem("invalid-request", detail))
        self.transport.write(written("400 Bad Request", body))
        self._linger(RUBBISH_BYTES_MAX)

    def _tell_gone(self) -> None:
        """Let the application know that nobody reads its answer: what it sends from here on is dropped."""
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def _linger(self, bytes_max: int) -> None:
        """End the connection so that the client gets the answer: a close with unread bytes would be a reset."""
        if self.transport.is_closing():
            return
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        self._all.quiet(self)
        self._discard_bytes_left = bytes_max
        self._discard_timer = self.loop.call_later(DISCARD_SECONDS_MAX, self.transport.abort)
        self.flow.resume_reading()
        self.transport.write_eof()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS_MAX, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
