"""New credentials taken into use while the process serves: within about a second after their files were changed.

A broker that rotates its logins takes the old and the new one for a while. In that time the process connects anew, with
nothing under way: pulls are given back, requests have had their answers, and later ones wait for the new connection.
Before that it tries the new login on a connection of its own, so that a wrong one costs nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import nats.errors
import structlog

from mesh.broker.nats_client import NatsClient
from mesh.broker.requests import Requests

log = structlog.get_logger("mesh.broker.renewal")

LOOK_SECONDS: Final = 1.0
"""How often the files are looked at."""
SPREAD_SECONDS: Final = 0.5
"""Processes connect anew at different times."""
QUIET_SECONDS_MAX: Final = 2.0
"""How long to wait for the answers of requests: a broker that answers does so within milliseconds."""
TRY_SECONDS_MAX: Final = 3.0


class Renewal:
    """Looks after the credentials of one client."""

    def __init__(self, client: NatsClient, requests: Requests, role: str) -> None:
        self._client = client
        self._requests = requests
        self._role = role
        self._leaving: list[Callable[[], Awaitable[None]]] = []
        self._said: str | None = None
        self.is_under_way = False
        """Whether the connection is about to be given up for another."""

    def on_leaving(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await this before the connection is given up for another: what the broker sends afterwards is lost."""
        self._leaving.append(callback)

    def off_leaving(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await it no more."""
        self._leaving.remove(callback)

    def on_connected(self) -> None:
        """It is there."""
        self.is_under_way = False

    async def watch(self) -> None:
        """Connect anew whenever the files of the credentials have changed, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._client.is_connected and self._client.credentials.has_changed():
                await asyncio.sleep(random.uniform(0, SPREAD_SECONDS))
                await self._renew()

    async def _renew(self) -> None:
        try:
            await self._accepted()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            # What holds the old one goes on. Said once for each reason, and looked at again.
            said = str(error) or type(error).__name__
            if isinstance(error, nats.errors.Error) and "authorization violation" in said.lower():
                said = self._client.credentials.refusal()
            if said != self._said:
                log.warning("broker.credentials_unusable", role=self._role, error=said)
            self._said = said
            return
        self._said = None
        if self._client.is_connected:
            await self._connect_anew()

    async def _accepted(self) -> None:
        """Log in on a connection of its own. Raises what says why that can't be done."""
        credentials = self._client.credentials.copy()
        credentials.check()
        probe = NatsClient(credentials)
        try:
            async with asyncio.timeout(TRY_SECONDS_MAX):
                await probe.connect(
                    list(credentials.url.servers),
                    name=f"taskmesh-{self._role}-renewal",
                    inbox_prefix=f"_INBOX_{self._role}".encode(),
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    error_cb=_unheard,
                    tls_handshake_first=credentials.tls_first,
                    connect_timeout=int(TRY_SECONDS_MAX),
                )
        finally:
            await probe.end()

    async def _connect_anew(self) -> None:
        log.info("broker.renews", role=self._role)
        self.is_under_way = True
        async with self._requests.held(QUIET_SECONDS_MAX):
            for callback in list(self._leaving):
                await callback()
            with suppress(nats.errors.Error, OSError):
                # What was published without waiting, such as an ack, goes out first.
                await self._client.flush()
            await self._client.force_reconnect()


async def _unheard(_: Exception) -> None:
    """What the trial has to say is raised."""
