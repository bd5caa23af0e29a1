"""Taking over a changed configuration file while a process runs: asked for by SIGHUP, or by an order to all.

An order comes in two steps, so that all processes take a file or none does: each checks it and says what it comes to,
and only if all have agreed they are told to take it. What was checked is what is taken, whatever has become of the file
meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import structlog
from nats.aio.msg import Msg

from contracts.codec import decode, encode
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.messages.reloading import ReloadAnswer, ReloadOrder, lines_of
from contracts.subjects import CONFIGURATION_RELOAD
from mesh.broker.connection import Connection
from mesh.configuration.digest import configuration_digest
from mesh.configuration.mesh_toml import read_file
from mesh.configuration.reloading import read_again
from mesh.configuration.secret_sources import gather
from mesh.configuration.settings import SOURCE_VARIABLE, Settings
from mesh.errors import SettingsError
from mesh.masking import hide
from mesh.serving.privacy import has_secrets, keep_private
from mesh.telemetry import traces

log = structlog.get_logger("mesh.serving.reloading")

HELD_SECONDS: Final = 60.0
"""How long what was checked may wait for the word to take it."""


class Part(NamedTuple):
    """What of a service goes by the configuration.

    `check` raises `SettingsError` where the new settings would not do; that their secrets are there is looked at for
    all. `take` goes by them from now on; what is in hand may end by the old ones.
    """

    check: Callable[[Settings], None]
    take: Callable[[Settings], Awaitable[None]]


class Reloadable(Protocol):
    """A process with settings."""

    name: str
    worker: str
    settings: Settings

    def reloaded(self, configuration: str) -> None:
        """Another configuration holds: its digest."""
        ...


class Offer(NamedTuple):
    """What a file came to when it was checked."""

    settings: Settings | None
    mistakes: list[str]
    fixed: list[str]

    @property
    def takeable(self) -> Settings | None:
        """The settings, if all is well with them."""
        return None if self.mistakes or self.fixed else self.settings


class Reloading:
    """The reloads of one process. Parts that are added later are asked, too."""

    def __init__(self, process: Reloadable, environment: Mapping[str, str] = os.environ) -> None:
        self._process = process
        self._environment = environment
        self._parts: list[Part] = []
        self._held: tuple[str, Settings, float] | None = None
        self._taking = asyncio.Lock()
        self._is_half_taken = False

    def add(self, check: Callable[[Settings], None], take: Callable[[Settings], Awaitable[None]]) -> None:
        """One more part that goes by the configuration."""
        self._parts.append(Part(check, take))

    @asynccontextmanager
    async def running(self, connection: Connection, asked: asyncio.Event) -> AsyncIterator[None]:
        """Carry out orders beside the body, and read the file again whenever `asked` is set."""
        task = asyncio.create_task(self._serve(connection, asked))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _serve(self, connection: Connection, asked: asyncio.Event) -> None:
        await hear_orders(connection, self.answer)
        while True:
            await asked.wait()
            asked.clear()
            await self._reload_alone()

    async def answer(self, order: ReloadOrder) -> ReloadAnswer | None:
        """Carry out a step; None where it is not for this process."""
        match order.step:
            case "tell":
                return self._answer(ok=True)
            case "check":
                offer = self._offer()
                settings = offer.takeable
                if settings is not None:
                    self._held = (order.id, settings, asyncio.get_running_loop().time())
                return self._answer(ok=settings is not None, offer=offer)
            case "take":
                held = self._held
                now = asyncio.get_running_loop().time()
                if held is None or held[0] != order.id or now - held[2] > HELD_SECONDS:
                    return self._answer(ok=False)
                self._held = None
                return self._answer(ok=await self._take(held[1]))
        return None

    def _answer(self, *, ok: bool, offer: Offer | None = None) -> ReloadAnswer:
        return ReloadAnswer(
            worker=self._process.worker,
            service=self._process.name,
            ok=ok,
            configuration=configuration_digest(self._process.settings),
            offered=configuration_digest(offer.settings) if offer and offer.settings else None,
            secrets_changed=bool(offer and offer.settings and offer.settings.secrets != self._process.settings.secrets),
            mistakes=lines_of(offer.mistakes) if offer else [],
            fixed=lines_of(offer.fixed) if offer else [],
            copy=copy_name(self._process.settings.config) if SOURCE_VARIABLE in self._environment else None,
        )

    async def _reload_alone(self) -> None:
        # One of `meshctl up` goes by the copy that all of its mesh go by: it would read what it has.
        offer = self._offer(of_copy=True)
        if offer.takeable is not None:
            await self._take(offer.takeable)
        else:
            log.error("configuration.kept", mistakes=offer.mistakes, fixed=offer.fixed)

    def _offer(self, *, of_copy: bool = False) -> Offer:
        """What the file says now: the one that a copy is of, where there is a copy."""
        named: Path | None = self._process.settings.config
        if SOURCE_VARIABLE in self._environment and not of_copy:
            source = self._environment[SOURCE_VARIABLE]
            named = Path(source) if source else None
        try:
            settings, mistakes, fixed = read_again(self._process.settings, read_file(named))
        except SettingsError as error:
            return Offer(None, [str(error)], [])
        if settings is not None and not fixed:
            # Read here, and not as they are taken: a file may be another one by then.
            secrets, missing = gather(settings.configuration, self._environment, self._process.name)
            settings = replace(settings, secrets=secrets)
            mistakes += missing
        for part in self._parts if settings is not None and not fixed else []:
            try:
                part.check(settings)  # type: ignore[arg-type]  # None was ruled out
            except SettingsError as error:
                mistakes.append(str(error))
        return Offer(settings, mistakes, fixed)

    async def _take(self, settings: Settings) -> bool:
        async with self._taking:
            held = self._process.settings
            is_new = settings.configuration != held.configuration or settings.secrets != held.secrets
            if not is_new and not self._is_half_taken:
                return True
            before = configuration_digest(self._process.settings)
            if has_secrets(settings.configuration, self._process.name):
                keep_private()
            traces.set_level(settings.logged_level)
            hide(settings.secret_texts)
            self._process.settings = settings
            done = True
            for part in self._parts:
                try:
                    await part.take(settings)
                except (TaskmeshError, OSError) as error:
                    done = False
                    log.error("configuration.half_taken", error=str(error))
            self._is_half_taken = not done
            log.info(
                "configuration.taken",
                configuration=configuration_digest(settings),
                before=before,
                secrets_changed=settings.secrets != held.secrets,
            )
            self._process.reloaded(configuration_digest(settings))
            return done


async def hear_orders(
    connection: Connection, carry_out: Callable[[ReloadOrder], Awaitable[ReloadAnswer | None]]
) -> None:
    """Carry out each order that comes over a connection from now on, and answer it; None is no answer."""

    async def heard(message: Msg) -> None:
        try:
            order = decode(message.data, ReloadOrder)
        except InvalidPayload as error:
            log.warning("configuration.order_unreadable", error=str(error))
            return
        answer = await carry_out(order)
        if answer is not None and message.reply:
            await message.respond(encode(answer))

    await connection.client.subscribe(CONFIGURATION_RELOAD, cb=heard)


def copy_name(path: Path | None) -> str:
    """A copy of a file, by its machine and its place."""
    return f"{platform.node() or sys.platform}:{path}"
