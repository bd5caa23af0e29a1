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
from nats.aio.client import Client

from mesh.broker import embedded
from mesh.broker.clock_keeper import ClockKeeper
from mesh.broker.line import Line
from mesh.broker.requests import Requests
from mesh.broker.rights import Rights, Verb
from mesh.configuration.broker_urls import BrokerLogin, parse_broker_url, without_password
from mesh.configuration.settings import Settings
from mesh.errors import BrokerDistrusted, BrokerRefused, SettingsError

log = structlog.get_logger("mesh.broker.connection")

RECONNECT_WAIT_SECONDS = 0.2
PING_INTERVAL_SECONDS = 20
PING_ANSWER_SECONDS = 5
CONNECT_TIMEOUT_SECONDS = 2
CLOSE_SECONDS_MAX = 2.0
REFUSALS_MAX = 5
"""So often in a row, a second in all, the first login is tried: a broker that is just starting, or whose password is
being changed, may take it by then."""
SERVER_VERSION_MIN = (2, 14)
"""Older servers have known authorization bypasses, and lack what TIMERS needs."""

_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)


class Connection:
    """A NATS client, the requests over it, and who wants to know when it was away."""

    def __init__(
        self,
        client: Client,
        role: str,
        refused: str = "the broker refuses the login",
        at: str = "its URL",
        domain: str | None = None,
    ) -> None:
        """`refused`: what to say if the broker does not take the login. `at`: its URL, without a password.

        `domain`: that of its JetStream.
        """
        self.client = client
        self.role = role
        self.requests = Requests(client, domain)
        self.clock = ClockKeeper(self.requests)
        self.line = Line(client, role)
        self.rights = Rights(self.requests, role, domain)
        self._reconnected: list[Callable[[], None]] = []
        self._disconnected: list[Callable[[], Awaitable[None]]] = []
        self._is_back = asyncio.Event()
        self._answer: asyncio.Task[None] | None = None
        self._last_error: str | None = None
        self._refused = refused
        self._at = at
        self._refusals = 0
        self._was_connected = False
        self._not_heard: set[str] = set()
        """Subjects that the broker's user may not subscribe to, in small letters."""

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
        """Wait until the broker is there."""
        while not self.client.is_connected:
            self._is_back.clear()
            await self._is_back.wait()

    async def check_inbox(self, subject: str) -> None:
        """Raise `SettingsError` if no answer can come, since the user may not subscribe to the inbox."""
        with suppress(nats.errors.Error, OSError):
            # Twice: the client's ping overtakes what waits to be sent. A refusal comes before the second answer.
            await self.client.flush(PING_ANSWER_SECONDS)
            await self.client.flush(PING_ANSWER_SECONDS)
        if subject.lower() in self._not_heard:
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
        said = str(error) or type(error).__name__
        if isinstance(error, ssl.SSLCertVerificationError):
            said = self._distrusted(error)
            if not self._was_connected:
                # At once: the client would wait for ever for the end of that connection (nats-py 2.16).
                raise BrokerDistrusted(said)
        if "authorization violation" in said.lower():
            said = self._refused
            self._refusals += 1
            if self._refusals >= REFUSALS_MAX and not self._was_connected:
                raise BrokerRefused(said)
        else:
            self._refusals = 0
        denied = _DENIED.search(said)
        if denied is not None:
            self.requests.on_not_allowed(denied[2])
            verb: Verb = "publish" if denied[1].lower() == "publish" else "subscribe"
            if verb == "subscribe":
                self._not_heard.add(denied[2].lower())
            self.rights.on_refused(verb, denied[2])
            said = f"the broker's user may not {verb} to {denied[2]}"
        # While the broker is away each try to reconnect fails the same way, several times a second: say it once.
        if said != self._last_error:
            log.warning("broker.error", role=self.role, error=said)
        self._last_error = said

    def _distrusted(self, error: ssl.SSLCertVerificationError) -> str:
        return (
            f"the broker at {self._at} shows a certificate that is not trusted here: {error.verify_message or error};"
            " SSL_CERT_FILE names the file with its authority"
        )

    async def _on_disconnected(self) -> None:
        self.requests.on_disconnected()
        self.line.on_disconnected()
        if not self.client.is_closed:
            log.warning("broker.disconnected", role=self.role)
        for callback in list(self._disconnected):
            await callback()

    async def _on_reconnected(self) -> None:
        log.info("broker.reconnected", role=self.role)
        self._last_error = None
        self.requests.on_connected()
        self.rights.on_reconnected()
        self.clock.ask_again()
        self._is_back.set()
        for callback in self._reconnected:
            callback()


@asynccontextmanager
async def connect(settings: Settings, role: str) -> AsyncIterator[Connection]:
    """Connect as `taskmesh-<role>`, waiting for the broker as long as it takes, and close at the end.

    Meanwhile this process goes by the broker's clock (`mesh.clock.now`), if EVENTS is there to tell it.
    The inbox prefix is `_INBOX_<role>`, so that an account can allow each role its own answers only.
    Raises `SettingsError` if the URL is none, or the server is too old; `BrokerRefused` if it does not take the login
    at the start. Later on that is only said: whoever has changed a password may change it back.
    """
    try:
        servers, login = parse_broker_url(settings.broker_url)
    except ValueError as error:
        raise SettingsError(f"MESH_NATS_URL={without_password(settings.broker_url)!r}: {error}") from None
    client = Client()
    at = without_password(settings.broker_url)
    connection = Connection(client, role, _refusal(settings.broker_url, login), at, settings.nats_domain)
    try:
        await _open(client, connection, settings, servers, login)
    except BrokerRefused:
        await _close(client)
        raise
    try:
        version = client.connected_server_version
        if (version.major, version.minor) < SERVER_VERSION_MIN:
            raise SettingsError(f"nats-server {version.major}.{version.minor} is too old: at least 2.14 is needed")
        await connection.check_inbox(await connection.requests.start())
        # Before anything is decided or stamped here.
        await connection.clock.learn()
        await connection.rights.learn()
        jobs = (connection.clock.keep(), connection.line.watch(), connection.rights.keep())
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


async def _open(
    client: Client, connection: Connection, settings: Settings, servers: tuple[str, ...], login: BrokerLogin
) -> None:
    role = connection.role

    def token() -> str | None:
        # Read at each connect: the embedded broker may be there only later.
        return login.token or (embedded.token_for(settings.home, servers[0]) if len(servers) == 1 else None)

    await client.connect(
        # Each process in an order of its own, which the client then goes through.
        random.sample(servers, len(servers)),
        dont_randomize=True,
        user=login.user,
        password=login.password,
        token=token,  # type: ignore[arg-type]  # None is sent as none
        name=f"taskmesh-{role}",
        inbox_prefix=f"_INBOX_{role}".encode(),
        max_reconnect_attempts=-1,
        reconnect_time_wait=RECONNECT_WAIT_SECONDS,  # type: ignore[arg-type]  # it only sleeps that long
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        ping_interval=PING_INTERVAL_SECONDS,
        error_cb=connection._on_error,
        disconnected_cb=connection._on_disconnected,
        reconnected_cb=connection._on_reconnected,
        lame_duck_mode_cb=connection.line.on_lame_duck,
    )
    # A server that ends while it greets leaves the client without one, though it says that it has connected.
    await connection.connected()
    connection._was_connected = True


def _refusal(url: str, login: BrokerLogin) -> str:
    """What to say of a broker that does not take the login."""
    at = without_password(url)
    if login.token is not None:
        return f"the broker at {at} refuses the token of MESH_NATS_URL"
    if login.user is not None:
        return f"the broker at {at} refuses the user or password of MESH_NATS_URL"
    return (
        f"the broker at {at} asks for a login, and MESH_NATS_URL has none:"
        " nats://<user>:<password>@<host>:<port>; the broker of a meshctl up is found by its MESH_HOME"
    )


async def _close(client: Client) -> None:
    try:
        if client.is_connected:
            # What was published without waiting, such as a last nak, goes out first.
            await client.flush(timeout=1)
        # Bounded: after a failed TLS handshake the client waits for ever for the end of its connection.
        await asyncio.wait_for(client.close(), CLOSE_SECONDS_MAX)
    except (TimeoutError, nats.errors.Error, OSError):
        pass  # The broker is gone; there is nothing left to hand over.
