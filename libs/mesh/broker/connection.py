"""The connection of a process to its broker: named, and never given up."""

from __future__ import annotations

import asyncio
import random
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import nats.errors
import structlog

from mesh.broker.clock_keeper import ClockKeeper
from mesh.broker.credential_files import LoginUnusable
from mesh.broker.credentials import Credentials
from mesh.broker.line import Line
from mesh.broker.nats_client import LOGIN_GONE, NatsClient, TlsRefused
from mesh.broker.renewal import Renewal
from mesh.broker.requests import Requests
from mesh.broker.rights import Rights, Verb
from mesh.configuration.settings import Settings
from mesh.errors import BrokerDistrusted, BrokerRefused, SettingsError

log = structlog.get_logger("mesh.broker.connection")

RECONNECT_WAIT_SECONDS = 0.2
PING_INTERVAL_SECONDS = 20
PING_ANSWER_SECONDS = 5
CONNECT_TIMEOUT_SECONDS = 2
REFUSALS_MAX = 5
"""So often in a row, a second in all, the first login is tried: a broker that is just starting, or whose password is
being changed, may take it by then."""
SERVER_VERSION_MIN = (2, 14)
"""Older servers have known authorization bypasses, and lack what TIMERS needs."""

_NO_GREETING = "expecting INFO"
_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)


class Connection:
    """A NATS client, the requests over it, and who wants to know when it was away."""

    def __init__(self, client: NatsClient, role: str, domain: str | None = None) -> None:
        """`domain`: that of its JetStream."""
        self.client = client
        self.credentials = client.credentials
        self.role = role
        self.requests = Requests(client, domain)
        self.clock = ClockKeeper(self.requests)
        self.line = Line(client, role)
        self.rights = Rights(self.requests, role)
        self.renewal = Renewal(client, self.requests, role)
        self._reconnected: list[Callable[[], None]] = []
        self._disconnected: list[Callable[[], Awaitable[None]]] = []
        self._is_back = asyncio.Event()
        self._answer: asyncio.Task[None] | None = None
        self._last_error: str | None = None
        self.trouble = ""
        """What the client said last of what goes wrong."""
        self._refusals = 0
        self._was_connected = False

    @property
    def is_connected(self) -> bool:
        """True while the broker is there."""
        return self.client.is_connected

    def on_reconnected(self, callback: Callable[[], None]) -> None:
        """Call this after each reconnect: core messages and pull requests of the time between are lost."""
        self._reconnected.append(callback)

    def on_disconnected(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await this whenever the connection breaks, before it is made anew."""
        self._disconnected.append(callback)

    def off_disconnected(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await it no more."""
        self._disconnected.remove(callback)

    async def connected(self) -> None:
        """Wait until the broker is there, and nobody is about to connect anew."""
        while not self.client.is_connected or self.renewal.is_under_way:
            self._is_back.clear()
            await self._is_back.wait()

    async def check_inbox(self, subject: str) -> None:
        """Raise `SettingsError` if no answer can come, since the user may not subscribe to the inbox."""
        with suppress(nats.errors.Error, OSError):
            # A refusal comes before the answer.
            await self.client.flush(PING_ANSWER_SECONDS)
        if self.rights.was_refused("subscribe", subject):
            raise SettingsError(f"the broker's user may not subscribe to {subject}: no answer would come")

    async def answers(self) -> None:
        """Wait until the broker answers a ping: a line can be dead for a minute before that is known."""
        if self._answer is None or self._answer.done():
            self._answer = asyncio.create_task(self._ping())
        await asyncio.shield(self._answer)

    def wait_no_more(self) -> None:
        """The process ends: whoever still waits for an answer gets none."""
        if self._answer is not None:
            self._answer.cancel()

    async def _ping(self) -> None:
        while True:
            await self.connected()
            try:
                await self.client.flush(PING_ANSWER_SECONDS)
            except (nats.errors.Error, OSError):
                await asyncio.sleep(RECONNECT_WAIT_SECONDS)
            else:
                return

    async def _on_error(self, error: Exception) -> None:
        if self.renewal.is_under_way and isinstance(error, BrokenPipeError | ConnectionResetError):
            return  # Of the connection that is given up. What the next one has to say is something else.
        said = self._said_of(error)
        if any(gone in said.lower() for gone in LOGIN_GONE):
            said = self.credentials.refusal()
            self._refusals += 1
            if self._refusals >= REFUSALS_MAX and not self._was_connected:
                raise BrokerRefused(said)
        else:
            self._refusals = 0
        denied = _DENIED.search(said)
        if denied is not None:
            self.requests.on_not_allowed(denied[2])
            verb: Verb = "publish" if denied[1].lower() == "publish" else "subscribe"
            self.rights.on_refused(verb, denied[2])
            said = f"the broker's user may not {verb} to {denied[2]}"
        self.trouble = said
        # While the broker is away each try to reconnect fails the same way, several times a second: say it once.
        if said != self._last_error:
            log.warning("broker.error", role=self.role, error=said)
        self._last_error = said

    def _said_of(self, error: Exception) -> str:
        """What an error says. At the start, raises what no further try can mend."""
        if isinstance(error, ssl.SSLError):
            said = self.credentials.tls_failure(error)
            if not self._was_connected:
                # At once: the client would wait for ever for the end of that connection (nats-py 2.16).
                raise BrokerDistrusted(said)
            return said
        if isinstance(error, TlsRefused) and not self._was_connected:
            raise BrokerDistrusted(str(error))
        if isinstance(error, LoginUnusable) and not self._was_connected:
            raise error
        is_silent = isinstance(error, TimeoutError) or _NO_GREETING in str(error)
        if is_silent and self.client._transport and not self._was_connected:
            # It took the connection, and said nothing.
            return self.credentials.silence()
        return str(error) or type(error).__name__

    async def _on_disconnected(self) -> None:
        self.requests.on_disconnected()
        self.line.on_disconnected()
        if not self.client.is_closed and not self.renewal.is_under_way:
            log.warning("broker.disconnected", role=self.role)
        for callback in list(self._disconnected):
            await callback()

    async def _on_reconnected(self) -> None:
        log.info("broker.reconnected", role=self.role)
        self._last_error = None
        self.renewal.on_connected()
        self.requests.on_connected()
        self.rights.on_reconnected()
        self.clock.ask_again()
        self._is_back.set()
        for callback in self._reconnected:
            callback()


@asynccontextmanager
async def connect(
    settings: Settings, role: str, login: str | None = None, on_trying: Callable[[Connection], None] | None = None
) -> AsyncIterator[Connection]:
    """Connect as `taskmesh-<role>`, waiting for the broker as long as it takes, and close at the end.

    Meanwhile this process goes by the broker's clock (`mesh.clock.now`), if EVENTS is there to tell it.
    The inbox prefix is `_INBOX_<role>`, so that an account can allow each role its own answers only.
    `login`: which of an embedded broker's, if it is not the role's own. `on_trying` gets the connection before it is
    there: its `trouble` says why it isn't yet.
    Raises `SettingsError` if the URL is none, the login can't be used, or the server is too old; `BrokerRefused` if it
    does not take the login at the start. Later on that is only said: whoever has changed a password may change it back.
    """
    credentials = Credentials(settings, role, login)
    credentials.check()
    for remark in credentials.open_to_others():
        log.warning("broker.secret_open_to_others", role=role, problem=remark)
    client = NatsClient(credentials)
    connection = Connection(client, role, settings.nats_domain)
    if on_trying is not None:
        on_trying(connection)
    try:
        await _open(client, connection)
    except SettingsError:
        await _close(client)
        raise
    try:
        version = client.connected_server_version
        if (version.major, version.minor) < SERVER_VERSION_MIN:
            raise SettingsError(f"nats-server {version.major}.{version.minor} is too old: at least 2.14 is needed")
        await connection.check_inbox(await connection.requests.start())
        # Before anything is decided or stamped here.
        await connection.clock.learn()
        jobs = [connection.clock.keep(), connection.line.watch(), connection.renewal.watch()]
        if connection.rights.are_needed:
            await connection.rights.learn()
            jobs.append(connection.rights.keep())
        keeping = [asyncio.create_task(job) for job in jobs]
        try:
            yield connection
        finally:
            for task in keeping:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
    finally:
        connection.wait_no_more()
        await _close(client)


async def _open(client: NatsClient, connection: Connection) -> None:
    servers = client.credentials.url.servers
    await client.connect(
        # Each process in an order of its own, which the client then goes through.
        random.sample(servers, len(servers)),
        dont_randomize=True,
        name=f"taskmesh-{connection.role}",
        inbox_prefix=f"_INBOX_{connection.role}".encode(),
        max_reconnect_attempts=-1,
        reconnect_time_wait=RECONNECT_WAIT_SECONDS,  # type: ignore[arg-type]  # it only sleeps that long
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        ping_interval=PING_INTERVAL_SECONDS,
        tls_handshake_first=client.credentials.tls_first,
        error_cb=connection._on_error,
        disconnected_cb=connection._on_disconnected,
        reconnected_cb=connection._on_reconnected,
        lame_duck_mode_cb=connection.line.on_lame_duck,
    )
    # A server that ends while it greets leaves the client without one, though it says that it has connected.
    await connection.connected()
    connection._was_connected = True


async def _close(client: NatsClient) -> None:
    with suppress(TimeoutError, nats.errors.Error, OSError):  # The broker is gone; nothing is left to hand over.
        if client.is_connected:
            # What was published without waiting, such as a last nak, goes out first.
            await client.flush(timeout=1)
    await client.end()
