"""nats-py's client, but for what it shows the broker, and when it gives up.

Tried with nats-py 2.16: it takes one TLS context for good; it reads a creds file without an end for ever; it sends a
login in the clear to a server of a `tls://` URL that offers no TLS; it closes for good, without another word, when the
broker says of a connection that serves what it does not know: that a login is taken away, by a reload or since a JWT
expires, or that there are too many subscriptions; it reads nothing more, and looks connected for a minute, once an
answer comes to a ping that nobody waits for any longer; it writes a ping past what is still to be written, so that the
answer tells nothing of a subscription of just before: what was published then passed one in ten by; and of servers that
are heard of at the second hand it wants a certificate of their address. What it does for each message is done here in
fewer steps: it looks at each letter of each header's name, has each header written by seven calls, and hands each
answer on by a queue to a task. Together that took a sixth of what an acceptance costs (measured).
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh.broker.credentials import Credentials

CLOSE_SECONDS_MAX: Final = 2.0
_LINE_END: Final = "\r\n"
_HEADER: Final = re.compile(r"^[ \t]*([!-9;-~]+)[ \t]*:[ \t]*([^\r\n]*?)[ \t]*\r?$", re.MULTILINE)

LOGIN_GONE: Final = (
    "authorization violation",
    "user authentication expired",
    "user authentication revoked",
    "account authentication expired",
)
"""What a server (2.15) says in small letters to whom it lets in no more. A new connect reads what there is by now."""
_HANDLED: Final = ("stale connection", "permissions violation")
"""What nats-py takes as it is meant: it connects anew, or says what was refused."""


class TlsRefused(nats.errors.Error):
    """The broker offers no TLS, and nothing may go to it in the clear."""


class NatsClient(Client):
    """A client that shows these credentials, as their files are at each connect."""

    def __init__(self, credentials: Credentials) -> None:
        super().__init__()
        self.credentials = credentials
        self._listeners: dict[int, Callable[[Msg], None]] = {}
        """By the subscription's number: who takes a message as soon as it is read."""

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """What the next handshake goes by. Raises `LoginUnusable`."""
        return self.credentials.ssl_context()

    async def listen(self, subject: str, listener: Callable[[Msg], None]) -> Subscription:
        """Subscribe. `listener` takes each message as soon as it is read, and must not take long."""
        subscription = await self.subscribe(subject)
        self._listeners[subscription._id] = listener
        return subscription

    def abort(self) -> None:
        """Drop the line at once: after a failed handshake nats-py waits for ever for the end of its connection."""
        for name in ("_bare_io_writer", "_io_writer"):
            writer = getattr(self._transport, name, None)
            if writer is not None:
                writer.transport.abort()

    async def end(self) -> None:
        """Close, within bounds, what may not even have connected."""
        if not self.is_connected:
            self.abort()
        # uvloop has a RuntimeError for a line that the broker's death has closed in between.
        with suppress(nats.errors.Error, OSError, TimeoutError, RuntimeError):
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await self.close()

    async def _connect_to_server(self, s: Any) -> None:
        # nats-py leaves the line of a try that failed open until it is collected as garbage.
        self.abort()
        await super()._connect_to_server(s)

    def _connect_command(self) -> bytes:
        """The CONNECT line. Raises `LoginUnusable`, `TlsRefused`."""
        server = self._current_server
        is_encrypted = self._server_info.get("tls_required") or (server is not None and server.uri.scheme == "wss")
        if self.credentials.wants_tls and not is_encrypted:
            raise TlsRefused(self.credentials.no_tls())
        shown = self.credentials.read()
        self._auth_configured = True
        self.options |= {"user": shown.user, "password": shown.password, "token": shown.token}
        self._signature_cb = shown.sign if shown.seed is not None else None
        jwt = shown.jwt
        self._user_jwt_cb = (lambda: bytearray(jwt.encode())) if jwt is not None else None
        self._public_nkey = shown.public_key
        line: bytes = super()._connect_command()
        return line

    async def _process_err(self, err_msg: str) -> None:
        if not self.is_connected or any(said in err_msg for said in _HANDLED):
            await super()._process_err(err_msg)
            return
        error: Any = nats.errors.Error(f"nats: {err_msg.strip(chr(39))}")
        await self._error_cb(error)
        if any(said in err_msg for said in LOGIN_GONE):
            await self._process_op_err(error)
        # Of anything else the server ends the connection itself if it has to, and the client connects anew.

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        if self.is_connected and self._transport is not None and self._pending:
            # First what is to be there when the answer comes.
            self._transport.writelines(self._pending)
            self._pending, self._pending_data_size = [], 0
        await super()._send_ping(future)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        await super()._process_info(info, initial_connection)
        current = self._current_server
        if current is None or current.tls_name is None:
            return
        # nats-py has a server heard of show the name that its teller is at: of one heard of itself that is an address.
        for server in self._server_pool:
            if server.discovered and server.tls_name == current.uri.hostname:
                server.tls_name = current.tls_name

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            # Who asked has given up: the answer counts, and is nobody's.
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._listeners.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        listener = self._listeners.get(sid)
        if listener is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        try:
            listener(self._build_message(sid, subject, reply, data, await self._process_headers(headers)))
        except Exception as error:
            await self._error_cb(error)

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, Any] | None
    ) -> None:
        block = header_block(headers or {})
        if block is None:
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        sizes = f"{len(block)} {len(block) + payload_size}" if block else f"{payload_size}"
        line = f"{'HPUB' if block else 'PUB'} {subject} {reply} {sizes}{_LINE_END}"
        await self._send_command(b"%b%b%b\r\n" % (line.encode(), block, payload))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        return parsed_headers(raw)


def header_block(headers: Mapping[str, str]) -> bytes | None:
    """The headers of a message as they go over the line; nothing of none. None if one of them has a line's end."""
    if not headers:
        return b""
    lines = "".join([f"{name}: {value}{_LINE_END}" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        return None  # It would be read as one more header.
    return f"NATS/1.0{_LINE_END}{lines}{_LINE_END}".encode()


def parsed_headers(block: bytes) -> dict[str, str]:
    """The headers of a message as they came, without the version's line. What is no header is left out."""
    return dict(_HEADER.findall(block.decode("utf-8", "replace")))
