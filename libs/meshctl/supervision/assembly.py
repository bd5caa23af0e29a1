"""The whole mesh as processes: the broker, the streams, and the five services, up and down together."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from contracts.records.storage import StoreRoom
from mesh.access.modes import check_mode, mode_of
from mesh.background import first_of
from mesh.configuration.secrets import environment_for
from mesh.configuration.settings import BROKER_ROLES, ROLE_FIELDS, Address, Settings, parse_address
from mesh.errors import SettingsError
from mesh.serving.listening import address_of, listen
from mesh.serving.notifying import Notifier, without_notify
from mesh.serving.service import STOP_INSISTS_SECONDS
from mesh.telemetry import traces
from meshctl.errors import StartFailed
from meshctl.supervision import private_files
from meshctl.supervision.broker_setup import provision
from meshctl.supervision.configuration_copy import ConfigurationCopy
from meshctl.supervision.control import Order, controlled
from meshctl.supervision.embedded_broker import Broker, check_port, with_memory_limit
from meshctl.supervision.home import Addresses, Home
from meshctl.supervision.log_watch import watch_logs
from meshctl.supervision.operator_key import operator_key_at
from meshctl.supervision.processes import ServiceProcess, Supervised, Supervisor
from meshctl.supervision.rolling import RestartFailed, Rolling, Told
from meshctl.supervision.rotation import RotationFailed, rotate
from meshctl.supervision.stops import Stops
from meshctl.supervision.store_room import room_at_start
from meshctl.supervision.store_watch import watch_store
from meshctl.variables import API_KEY_FILE_VARIABLE, API_KEY_VARIABLE

log = structlog.get_logger("meshctl")

READY_SECONDS_MAX: Final = 30.0
DRAIN_SECONDS: Final = 5.0
"""How long steps may go on where everything ends: no worker stays that they could be left to, and somebody waits."""
DRAIN_MARGIN_SECONDS: Final = 3.0
"""What a service may need on top of its drain, to hand over and to end, before it is killed."""
BROKER_STOP_SECONDS_MAX: Final = 1.5
"""With the drain's 5 s, its margin and what a kill may take, all has ended within 10 s."""
_LOOPBACK_OF_ANY: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - read here, not bound


class Assembly:
    """A mesh of one machine. `nats_url`, `ingress_url` and `edge_url` are set once it has started."""

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str],
        home: Home,
        lock: int,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`progress` is told what the start is at, for people."""
        self.home = home
        self._progress = progress
        self.nats_url = ""
        self.ingress_url = ""
        self.edge_url = ""
        self.operator_key: str | None = None
        """What the services are to be shown, where they ask for keys."""
        self._settings = settings
        self._environment = dict(environment)
        without_notify(self._environment)
        for name in (API_KEY_VARIABLE, API_KEY_FILE_VARIABLE):
            self._environment.pop(name, None)  # No service has a use for what this command would show one.
        self._configuration = ConfigurationCopy(settings, self._environment, home)
        self._lock = lock
        self._supervisor = Supervisor(self._write_pids)
        self._broker: Broker | None = None
        self._rotating = asyncio.Lock()
        self._watches: list[asyncio.Task[None]] = []
        self._services: list[ServiceProcess] = []
        self._listeners: list[socket.socket] = []
        self._stop_seconds = settings.drain_seconds + DRAIN_MARGIN_SECONDS
        self._rolling = Rolling(self._supervisor, self._services, self._stop_seconds)

    async def start(self) -> None:
        """Start everything and wait until it serves. Raises `StartFailed`, `SettingsError`, `BrokerUnavailable`."""
        settings = self._settings
        if settings.nats_url is None and settings.nats_domain is not None:
            raise SettingsError(
                f"MESH_NATS_DOMAIN={settings.nats_domain!r}: the embedded broker has no domain: name a NATS of your own"
                " with MESH_NATS_URL"
            )
        if settings.nats_url is None:
            _check_no_login(settings)
        self.home.remove_addresses()  # Those of a mesh that was killed.
        _check_certificate(settings)
        check_mode(settings, settings.ingress_address, "MESH_INGRESS_ADDRESS")
        check_mode(settings, settings.edge_address, "MESH_EDGE_ADDRESS")
        _check_address(settings.ingress_address, "ingress")
        _check_address(settings.edge_address, "edge")
        self._configuration.read()
        settings = self._settings = self._configuration.settings
        give_up_at = asyncio.get_running_loop().time() + READY_SECONDS_MAX
        # nats-server rotates its log itself.
        logs = watch_logs(self.home, lambda: [each.name for each in self._services])
        self._watches.append(asyncio.create_task(logs))
        if settings.nats_url is not None:
            self.nats_url = settings.nats_url
        else:
            await self.start_broker(give_up_at)
        self._progress("looking at the streams")
        await provision(replace(settings, nats_url=self.nats_url), ours=self._broker is not None)

        self._watches.append(asyncio.create_task(self._configuration.serve(self.nats_url, self._reconfigure)))
        self._environment |= self._configuration.variables
        self._environment["MESH_HOME"] = str(self.home.path)
        self._environment["MESH_NATS_URL"] = self.nats_url
        # An ingress that is started again goes on with the index of its predecessor.
        self._environment["MESH_INDEX_FOLDER"] = str(settings.index_folder or self.home.index)
        # The ingress tells clients where the edge is, and both the stewards of webhooks: all have to know the ports.
        edge_socket = self._listen(settings.edge_address, "MESH_EDGE_ADDRESS")
        ingress_socket = self._listen(settings.ingress_address, "MESH_INGRESS_ADDRESS")
        if any(map(self._asks_for_credentials, ("MESH_EDGE_ADDRESS", "MESH_INGRESS_ADDRESS"))):
            self.operator_key = await operator_key_at(replace(settings, nats_url=self.nats_url), self.home)
        self._progress("starting the services")
        edge = self._start_service("stream_edge", listeners={"MESH_EDGE_ADDRESS": edge_socket})
        ingress = self._start_service("ingress", listeners={"MESH_INGRESS_ADDRESS": ingress_socket})
        for number in range(settings.workers):
            self._start_service("inference_worker", f"inference_worker-{number + 1}")
        for number in range(settings.runners):
            self._start_service("tool_runner", f"tool_runner-{number + 1}")
        self._start_service("steward")
        await self._until_ready(self._services, give_up_at)
        self.ingress_url = _url(settings.scheme, ingress.address)
        self.edge_url = _url(settings.scheme, edge.address)
        nats_url = None if "@" in self.nats_url else self.nats_url
        certificate = str(self.certificate) if self.certificate is not None else None
        self.home.write_addresses(Addresses(self.ingress_url, self.edge_url, nats_url, certificate))

    async def start_broker(self, give_up_at: float) -> None:
        """Start the embedded broker alone, and tell how much room it has. `give_up_at` is the loop's time."""
        self._progress("starting nats-server")
        room = await self._room()
        environment = environment_for("nats_server", self._environment, self._settings.configuration)
        environment = with_memory_limit(environment, room.memory_bytes)
        self._broker = Broker(self._settings, self.home, environment, self._lock)
        self._supervisor.start(self._broker)
        await self._until_ready([self._broker], give_up_at)
        self.nats_url = self._broker.url
        await self._watch_store(room, give_up_at)

    async def stop(self) -> None:
        """End the services, then the broker that they drain into."""
        if not self._supervisor.processes:
            await self._end_watches()
            self._close_listeners()
            return
        log.info("mesh.stopping")
        # Who names a time has it; the default is for one that stops while others stay.
        is_given = self._settings.is_given("drain_seconds")
        drain_seconds = self._settings.drain_seconds if is_given else DRAIN_SECONDS
        hurry_after_seconds = None if is_given else DRAIN_SECONDS
        services = [*self._services, *self._rolling.leaving]
        await self._supervisor.stop(services, drain_seconds + DRAIN_MARGIN_SECONDS, hurry_after_seconds)
        await self._end_watches()
        if self._broker is not None:
            await self._supervisor.stop([self._broker], BROKER_STOP_SECONDS_MAX)
        self._supervisor.close()
        self._close_listeners()
        self.home.remove_addresses()
        self.home.remove_pids()
        log.info("mesh.stopped")

    async def _end_watches(self) -> None:
        pending = set(self._watches)
        while pending:
            # Python 3.11's wait_for, which the broker's client connects with, may lose a cancellation: insist.
            for watch in pending:
                watch.cancel()
            _, pending = await asyncio.wait(pending, timeout=STOP_INSISTS_SECONDS)
        await asyncio.gather(*self._watches, return_exceptions=True)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    def kill(self) -> None:
        """End everything at once."""
        self._supervisor.kill()

    @property
    def certificate(self) -> Path | None:
        """The file of the certificate that ingress and edge show."""
        return self._settings.tls_cert.absolute() if self._settings.tls_cert is not None else None

    @property
    def pids(self) -> dict[str, list[int]]:
        """The processes that live now, by service; the broker, if it is ours, as `nats_server`."""
        services = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward", "nats_server")
        return {service: self._supervisor.pids(service) for service in services}

    def log_tails(self, names: tuple[str, ...]) -> list[str]:
        """What these processes had to say last, since this mesh was started."""
        lines: list[str] = []
        for process in self._supervisor.processes:
            if process.name in names:
                lines.append(f"--- {self.home.log_path(process.name)}")
                lines += self.home.log_tail(process.name, process.log_start) or ["(empty)"]
        return lines

    async def restart(self, told: Told, *, broker: bool) -> None:
        """Replace all processes one after another, without a gap, with mesh.toml as it is now. Raises `RestartFailed`.

        `broker`: the embedded broker, too, which is away for a moment.
        """
        if broker and self._broker is None:
            raise RestartFailed("the broker is not of this mesh: MESH_NATS_URL names it")
        try:
            self.read_configuration()
        except (SettingsError, StartFailed) as error:
            raise RestartFailed(f"nothing was restarted: {error}") from None
        await self._rolling.restart(told, self._broker if broker else None)

    async def rotate(self, told: Told, grace_seconds: float) -> None:
        """Replace the embedded broker's logins while everything runs. Raises `RotationFailed`."""
        if self._broker is None:
            raise RotationFailed(
                "the broker is not of this mesh: give it new logins as its operator does, then write the files that"
                " MESH_NATS_CREDS and its like name: processes read them anew within seconds"
            )
        async with self._rotating:
            await rotate(self._broker, self.home, told, grace_seconds)

    def _listen(self, address: Address, variable: str) -> socket.socket:
        """A socket that a service is to listen on, and its successors."""
        listener = listen(address, variable)
        self._listeners.append(listener)
        self._environment[variable] = str(address_of(listener))
        return listener

    def _asks_for_credentials(self, variable: str) -> bool:
        """Whether the service that listens there does. Raises `SettingsError` if it may not listen there."""
        configuration = self._settings.configuration
        address = parse_address(self._environment[variable])
        return mode_of(configuration.auth, address, variable, configuration.source) != "open"

    def _start_service(
        self, service: str, name: str | None = None, listeners: Mapping[str, socket.socket] | None = None
    ) -> ServiceProcess:
        sockets = dict(listeners or {})
        ops = self._settings.ops_address
        if ops is not None:
            port = ops.port + len(self._services) if ops.port else 0
            sockets["MESH_OPS_ADDRESS"] = self._listen(replace(ops, port=port), "MESH_OPS_ADDRESS")
        environment = environment_for(service, self._environment, self._settings.configuration)
        process = ServiceProcess(name or service, service, self.home, environment, sockets)
        self._services.append(process)
        self._supervisor.start(process)
        return process

    def read_configuration(self) -> None:
        """Start processes with mesh.toml as it is now, from now on: for who starts all of them again, one by one.

        Raises `SettingsError`, `StartFailed`; then what held before still does.
        """
        self._configuration.read()
        self._reconfigure(self._configuration.settings)

    def _reconfigure(self, settings: Settings) -> None:
        """Start processes with these settings from now on: what each may know is by them."""
        self._settings = settings
        traces.set_level(settings.logged_level)
        for process in self._services:
            process.environment = environment_for(process.service, self._environment, settings.configuration)

    async def _room(self) -> StoreRoom:
        """How much room the store has, before the broker takes any."""
        store = self.home.jetstream
        try:
            private_files.create_folder(store)
            return await asyncio.to_thread(room_at_start, self._settings.configuration, store)
        except OSError as error:
            raise StartFailed(f"can't use {store}: {error.strerror or error}") from None

    async def _watch_store(self, room: StoreRoom, give_up_at: float) -> None:
        """Tell from now on how much room there is: sizes come from it, and refusals."""
        serving = asyncio.Event()
        settings = replace(self._settings, nats_url=self.nats_url)
        self._watches.append(asyncio.create_task(watch_store(settings, self.home.jetstream, room, serving)))
        await first_of(serving, seconds=max(0.0, give_up_at - asyncio.get_running_loop().time()))
        if not serving.is_set():
            raise StartFailed("nats-server gives no answer", ("nats_server",))

    async def _until_ready(self, processes: Sequence[Supervised], give_up_at: float) -> None:
        await self._supervisor.until_ready(processes, max(0.0, give_up_at - asyncio.get_running_loop().time()))

    def _write_pids(self) -> None:
        self.home.write_pids({"meshctl": [os.getpid()], **self.pids})


async def run_mesh(
    settings: Settings,
    environment: Mapping[str, str],
    during: Callable[[Assembly, Stops], Awaitable[int]],
    progress: Callable[[str], None] = lambda _: None,
) -> int:
    """Start a mesh, run `during` while it serves, and stop it whatever happens.

    Returns what `during` returned. Raises `Stopped` if the operator's signal came first, and `HomeBusy` or what
    `Assembly.start` raises.
    """
    home = Home(settings.home)
    home.create()
    notifier = Notifier()
    with home.locked() as lock, Stops() as stops:
        mesh = Assembly(settings, environment, home, lock, progress)
        stops.on_insisted(mesh.kill)

        async def carry(order: Order, told: Told) -> None:
            if order.order == "rotate":
                await mesh.rotate(told, order.grace_seconds)
            else:
                await mesh.restart(told, broker=order.broker)

        async with notifier.kept_up():
            try:
                await stops.unless(mesh.start())
                notifier.ready()
                async with controlled(home, carry):
                    return await stops.unless(during(mesh, stops))
            except StartFailed as error:
                for line in mesh.log_tails(error.failed):
                    print(line, file=sys.stderr)
                raise
            finally:
                notifier.stopping(settings.drain_seconds)
                await mesh.stop()


@asynccontextmanager
async def broker_for_a_look(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[str]:
    """The embedded broker of a home whose mesh does not run, on a free port, while the block lasts. Yields its URL.

    Raises `HomeBusy` if a mesh runs there, and `StartFailed`.
    """
    home = Home(settings.home)
    home.create()
    with home.locked() as lock:
        mesh = Assembly(replace(settings, nats_port=0), environment, home, lock)
        try:
            await mesh.start_broker(asyncio.get_running_loop().time() + READY_SECONDS_MAX)
            yield mesh.nats_url
        finally:
            await mesh.stop()


def _check_no_login(settings: Settings) -> None:
    """Raise `SettingsError` for a login at an embedded broker, which has its own."""
    for role in (None, *BROKER_ROLES):
        own = settings.of_role.get(role, {}) if role else {name: getattr(settings, name) for name in ROLE_FIELDS}
        for name in ROLE_FIELDS:
            if own.get(name):
                variable = settings.variable_of(name, role or "")
                raise SettingsError(
                    f"{variable}={own[name]}: the embedded broker has logins of its own: name a NATS of your own with"
                    " MESH_NATS_URL, or unset this"
                )


def _check_certificate(settings: Settings) -> None:
    """End the start with one line where the certificate is not one, before anything has started."""
    if settings.tls_cert is not None:
        from mesh.serving.tls import load  # noqa: PLC0415 - what reads certificates takes megabytes

        load(settings.tls_cert, settings.tls_key)


def _check_address(address: Address, name: str) -> None:
    if address.port:
        check_port(address.host, address.port, f"MESH_{name.upper()}_ADDRESS", f"--{name}-address")


def _url(scheme: str, address: str | None) -> str:
    """Where this machine finds a service: one that listens everywhere is found on loopback too."""
    if address is None:
        raise StartFailed("a service did not say where it listens")
    host, _, port = address.rpartition(":")
    return f"{scheme}://{_LOOPBACK_OF_ANY.get(host, host)}:{port}"
