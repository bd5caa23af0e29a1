"""The door of an HTTP service: which mode it is in, and who is let in by what they show."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog
from litestar.types import HTTPScope

from contracts.access import KEY_PREFIX
from contracts.records.status import HealthCheck
from mesh.access.bearer import bearer_of, refused
from mesh.access.callers import Door, Identity, open_door
from mesh.access.front_doors import asked_for
from mesh.access.key_door import KeyDoor
from mesh.access.modes import mode_of
from mesh.access.sources import Network
from mesh.background import Replaceable, background
from mesh.broker.connection import Connection
from mesh.configuration.access_tables import AuthConfiguration, JwtConfiguration
from mesh.configuration.settings import Address, Settings
from mesh.errors import SettingsError
from mesh.serving.reloading import Reloading
from mesh.serving.wellness import Wellness

if TYPE_CHECKING:
    from mesh.access.token_door import TokenDoor

log = structlog.get_logger("mesh.access.doors")


class Serving(Protocol):
    """A service, as far as its door needs it."""

    settings: Settings
    connection: Connection
    reloading: Reloading
    wellness: Wellness
    admission: Callable[[], list[HealthCheck]]


class FrontDoor:
    """A `Door` that asks for credentials: an API key, or, in mode `jwt`, a token too."""

    def __init__(self, keys: KeyDoor) -> None:
        self._keys = keys
        self._tokens: TokenDoor | None = None
        self._auth: AuthConfiguration | None = None
        self._trusted: list[Network] = []
        self._upkeep = Replaceable()

    def configure(self, auth: AuthConfiguration, source: str) -> None:
        """Go by this table, of this file, from the next request on. The mode stays. Raises `SettingsError`."""
        before, self._auth = self._auth, auth
        self._trusted = auth.networks()
        if auth.jwt is not None and (before is None or before.jwt != auth.jwt):
            self._tokens = token_door(auth.jwt, source)
            self._upkeep.put(self._tokens.keys.keep)

    async def run(self) -> None:
        """Keep up with the issuer's keys, until cancelled."""
        await self._upkeep.run()

    def checks(self) -> list[HealthCheck]:
        """Whether tokens can be checked, where they are taken."""
        return [self._tokens.keys.check_readiness()] if self._tokens is not None else []

    async def __call__(self, scope: HTTPScope) -> Identity:
        """Who asks. Raises `RequestRefused`, and `BrokerUnavailable` where nobody can tell."""
        token = bearer_of(scope)
        if token.startswith(KEY_PREFIX):
            identity = await self._keys.identity(token)
        elif self._tokens is not None:
            identity = await self._tokens.identity(token)
        else:
            raise refused("these credentials are not known here")
        return asked_for(identity, scope, self._trusted) if self._trusted else identity


@asynccontextmanager
async def opened_door(service: Serving, address: Address, variable: str) -> AsyncIterator[Door]:
    """The door of a service that listens at an address, which `variable` names. Raises `SettingsError`."""
    settings = service.settings
    auth, source = settings.configuration.auth, settings.configuration.source
    mode = mode_of(auth, address, variable, source)
    log.info("door.opened", mode=mode, address=str(address))
    if mode == "open":
        yield open_door
        return
    keys = KeyDoor(service.connection, is_heard=settings.nats_domain is None)
    await keys.open()
    door = FrontDoor(keys)
    door.configure(auth, source)

    def check(changed: Settings) -> None:
        if changed.configuration.auth.jwt is not None:
            token_door(changed.configuration.auth.jwt, changed.configuration.source)

    async def take(changed: Settings) -> None:
        door.configure(changed.configuration.auth, changed.configuration.source)

    service.reloading.add(check, take)
    service.wellness.add_look(door.checks)
    service.admission = door.checks
    async with background(door.run()):
        yield door


def token_door(configuration: JwtConfiguration, source: str) -> TokenDoor:
    """What checks an issuer's tokens; `source` is the file that says which. Raises `SettingsError`."""
    # Cryptography takes a process some megabytes: only where there are tokens.
    from mesh.access.token_door import TokenDoor  # noqa: PLC0415 - see above

    door = TokenDoor(configuration, Path(source).parent)
    try:
        door.keys.check()
    except SettingsError as error:
        raise SettingsError(f"{source}: {error}") from None
    return door
