"""The copy of mesh.toml that the processes of `meshctl up` go by: what it held at the start, or at the last reload.

A process that is started again reads what its predecessors read, whatever somebody has done to the file meanwhile. In a
reload `meshctl up` is one of those that are asked: it checks the file, and writes the copy before anybody takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from contracts.messages.reloading import ReloadAnswer, ReloadOrder, lines_of
from mesh.broker.connection import connect
from mesh.broker.embedded import SUPERVISOR
from mesh.configuration.checking import secret_mistakes
from mesh.configuration.digest import configuration_digest
from mesh.configuration.mesh_toml import DEFAULT_FILE, parse_configuration, read_file
from mesh.configuration.reloading import read_again
from mesh.configuration.settings import SOURCE_VARIABLE, Settings, worker_name
from mesh.errors import SettingsError
from mesh.serving.reloading import copy_name, hear_orders
from meshctl.errors import StartFailed
from meshctl.supervision.home import Home

log = structlog.get_logger("meshctl.configuration_copy")


class ConfigurationCopy:
    """The copy in MESH_HOME. `settings` are those that processes are started with."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], home: Home) -> None:
        self.settings = settings
        self._home = home
        self._environment = environment
        self._source = settings.config
        self._worker = worker_name("meshctl")
        self._kept = b""
        self._before: bytes | None = None
        self._held: tuple[str, bytes, Settings] | None = None

    @property
    def variables(self) -> dict[str, str]:
        """What leads a process to the copy, and tells it what it is a copy of."""
        return {"MESH_CONFIG": str(self._home.configuration), SOURCE_VARIABLE: str(self._source or "")}

    def read(self) -> None:
        """Read the file as it is now, and keep it. Raises `SettingsError`, `StartFailed`."""
        content = read_file(self._source)
        configuration = parse_configuration(content, str(self._source or DEFAULT_FILE))
        for mistake in secret_mistakes(configuration, self._environment):
            raise SettingsError(mistake)
        try:
            self._write(content)
        except OSError as error:
            raise StartFailed(f"can't write {self._home.configuration}: {error.strerror or error}") from None
        self.settings = replace(self.settings, configuration=configuration)

    async def serve(self, nats_url: str, changed: Callable[[Settings], None]) -> None:
        """Take part in reloads until cancelled. `changed` is told of the settings for processes from then on."""

        async def carry_out(order: ReloadOrder) -> ReloadAnswer | None:
            return self.answer(order, changed)

        async with connect(replace(self.settings, nats_url=nats_url), "meshctl", SUPERVISOR) as connection:
            await hear_orders(connection, carry_out)
            await asyncio.Event().wait()

    def answer(self, order: ReloadOrder, changed: Callable[[Settings], None]) -> ReloadAnswer | None:
        """Carry out a step; None where it is not for who keeps a copy."""
        match order.step:
            case "tell":
                return self._answer(ok=True)
            case "check":
                return self._check(order.id)
            case "keep":
                if self._held is None or self._held[0] != order.id:
                    return self._answer(ok=False)
                _, content, settings = self._held
                return self._keep(content, settings, changed)
            case "undo":
                if self._held is None or self._held[0] != order.id or self._before is None:
                    return self._answer(ok=True)
                content = self._before
                settings = replace(
                    self.settings, configuration=parse_configuration(content, self.settings.configuration.source)
                )
                return self._keep(content, settings, changed)
        return None

    def _check(self, order: str) -> ReloadAnswer:
        try:
            content = read_file(self._source)
        except SettingsError as error:
            return self._answer(ok=False, mistakes=[str(error)])
        settings, mistakes, fixed = read_again(self.settings, content)
        if settings is not None:
            # A process that is started again gets its variables from here.
            mistakes = secret_mistakes(settings.configuration, self._environment)
        if settings is not None and not mistakes and not fixed:
            self._held = (order, content, settings)
        ok = not mistakes and not fixed
        return self._answer(ok=ok, offered=settings, mistakes=mistakes, fixed=fixed)

    def _keep(self, content: bytes, settings: Settings, changed: Callable[[Settings], None]) -> ReloadAnswer:
        before = self._kept
        try:
            self._write(content)
        except OSError as error:
            return self._answer(ok=False, mistakes=[f"{self._home.configuration}: {error.strerror or error}"])
        self._before = before
        self.settings = settings
        changed(settings)
        log.info("configuration.kept_for_restarts", configuration=configuration_digest(settings))
        return self._answer(ok=True)

    def _write(self, content: bytes) -> None:
        self._home.write_private(self._home.configuration, content)
        self._kept = content

    def _answer(
        self,
        *,
        ok: bool,
        offered: Settings | None = None,
        mistakes: list[str] | None = None,
        fixed: list[str] | None = None,
    ) -> ReloadAnswer:
        return ReloadAnswer(
            worker=self._worker,
            service="meshctl",
            ok=ok,
            configuration=configuration_digest(self.settings),
            offered=configuration_digest(offered) if offered is not None else None,
            mistakes=lines_of(mistakes or []),
            fixed=lines_of(fixed or []),
            copy=copy_name(Path(self._home.configuration)),
        )
