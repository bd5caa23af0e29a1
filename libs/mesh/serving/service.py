"""What every service process does: settings, logs, connection, signals, `nats micro`, readiness."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import nats.errors
import structlog
from nats.micro.service import Service as MicroService
from nats.micro.service import ServiceConfig

from contracts import VERSION
from contracts.build import BUILD
from contracts.errors import TaskmeshError
from contracts.records.orders import DrainAnswer, DrainOrder
from contracts.records.status import HealthCheck
from contracts.streams import EVENTS, TASKS, TASKS_BUCKET
from mesh import faults
from mesh.broker.connection import Connection, connect
from mesh.broker.replication import lacks_quorum
from mesh.broker.requests import Requests
from mesh.broker.suitability import check_start
from mesh.configuration.checking import unknown_variables
from mesh.configuration.digest import configuration_digest
from mesh.configuration.secret_sources import named_variables, open_to_all
from mesh.configuration.settings import Address, Settings, load_service_settings, worker_name
from mesh.errors import NoLeader, SettingsError
from mesh.serving.neighbours import Neighbours
from mesh.serving.notifying import Notifier
from mesh.serving.orders import drain_endpoint
from mesh.serving.privacy import has_secrets, keep_private
from mesh.serving.reloading import Reloading
from mesh.serving.statuses import STATUS_DRAINED, STATUS_STOPPED, STATUS_WRONG_SETTING
from mesh.serving.tls_protocol import Tls
from mesh.serving.watchdog import watched
from mesh.serving.wellness import Wellness
from mesh.telemetry import metrics, traces
from mesh.valves.watched import Valves

if TYPE_CHECKING:
    from mesh.serving.tls import Certificate

log = structlog.get_logger("mesh.serving.service")

HTTP_SERVICES = frozenset({"ingress", "stream_edge"})

READY_FD_VARIABLE = "MESH_READY_FD"
"""A file descriptor that a service writes one `Ready` line to, and closes, once it serves."""
PROBE_TIMEOUT_SECONDS = 2.0
STOP_INSISTS_SECONDS = 0.2
UNKNOWN_VARIABLES_MAX = 4
"""So many variables are named that nobody reads."""


class Ready(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a service tells its parent when it serves. `address` is where HTTP listens, `<host>:<port>`."""

    service: str
    pid: int
    address: str | None = None


class Service:
    """A running service: its settings, its broker, and the events that say stop."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        connection: Connection,
        wellness: Wellness | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.connection = connection
        self.worker = worker_name(name)
        self.configuration = configuration_digest(settings)
        self.neighbours = Neighbours(connection)
        self.wellness = wellness or Wellness()
        self.wellness.connection = connection
        self._notifier = notifier or Notifier({})
        self.wellness.add_look(self.neighbours.checks)
        self.wellness.add_look(connection.rights.checks)
        unknown = _unknown_variables(settings)
        self.wellness.add_remark(lambda: unknown)
        self.certificate: Certificate | None = None
        """What it shows to HTTP clients, if it speaks TLS."""
        self.http: str | None = None
        """Where it serves HTTP, `<host>:<port>`, if anywhere."""
        self.ops: str | None = None
        """Where it serves operators."""
        metrics.watch_broker(lambda: connection.is_connected, lambda: connection.requests.round_trip_seconds)
        self.valves = Valves(connection.requests, lambda: self.settings.configuration.tenants)
        """What people have paused, or limited for a while. Known once it was opened, and kept up while it runs."""
        self.stopping = asyncio.Event()
        self.hurrying = asyncio.Event()
        """Told to stop a second time: what still runs is not waited for."""
        self.patient = asyncio.Event()
        """Set while what still runs is waited for however long it takes: it was told to drain so, and not to stop."""
        self.is_drained = False
        """Whether it was told to drain: it stays away then, once it has ended."""
        self.admission: Callable[[], list[HealthCheck]] = list
        """Whether callers can be told apart, where they have to be."""
        self.running: Callable[[], int] = int
        """How much it has in hand."""
        self.reloading = Reloading(self)
        """Takes over a changed configuration file; `settings` are then others. What goes by it is added as a part."""

    def show(self, certificate: Certificate | None) -> None:
        """Show this certificate to HTTP clients, and look for another one when a reload is asked for. None: no TLS."""
        self.certificate = certificate
        if certificate is not None:
            # It is no part of the configuration: as soon as it is there, and good, it is taken.
            self.reloading.add(lambda _: certificate.look(), _nothing)

    def tls(self, address: Address) -> Tls | None:
        """How it speaks TLS at an address, if it does."""
        return self.certificate.at(address, self.settings.tls_hsts_days) if self.certificate is not None else None

    @property
    def requests(self) -> Requests:
        """Requests to the broker."""
        return self.connection.requests

    def reloaded(self, configuration: str) -> None:
        """Another configuration holds: its digest."""
        self.configuration = self.neighbours.metadata["configuration"] = configuration

    async def ready(self, address: str | None = None) -> None:
        """Show up in `nats micro ls`, and tell the parent process if it wants to know. `address`: where HTTP is."""
        self.http = address or self.http
        optional = {"http": self.http, "ops": self.ops}
        # It tells this very dictionary: what is learnt later, such as the mesh, is told from then on.
        metadata = self.neighbours.metadata
        metadata |= {
            "pid": str(os.getpid()),
            "worker": self.worker,
            "build": BUILD,
            "configuration": self.configuration,
            **{key: value for key, value in optional.items() if value is not None},
        }
        micro = MicroService(
            self.connection.client,
            ServiceConfig(name=self.name, version=VERSION, description=f"taskmesh {self.name}", metadata=metadata),
        )
        with suppress(nats.errors.TimeoutError):
            # A broker that dies meanwhile hears of its subscriptions once it is back.
            await micro.start()
        address = self.http
        await micro.add_endpoint(drain_endpoint(self.worker, self._drain))
        # What a start has made stays for as long as the process does: it need not be looked through again and again.
        gc.collect()
        gc.freeze()
        log.info("service.ready", version=VERSION, build=BUILD, pid=os.getpid(), address=address, ops=self.ops)
        self._notifier.ready()
        descriptor = os.environ.pop(READY_FD_VARIABLE, "")
        if descriptor:
            with os.fdopen(int(descriptor), "wb") as pipe:
                pipe.write(msgspec.json.encode(Ready(self.name, os.getpid(), address)) + b"\n")

    def stop(self) -> None:
        """Take no more work, and end when what is in hand has, or has been handed over."""
        self.patient.clear()
        self.wellness.is_draining = True
        self.stopping.set()

    def _drain(self, order: DrainOrder) -> DrainAnswer:
        log.info("service.draining", running=self.running(), wait=order.wait)
        if order.wait and not self.stopping.is_set():
            self.patient.set()
        self.is_drained = True
        self.wellness.is_draining = True
        self.stopping.set()
        return DrainAnswer(worker=self.worker, running=self.running())


def _unknown_variables(settings: Settings) -> list[HealthCheck]:
    unknown = unknown_variables(os.environ, named_variables(settings.configuration))
    return [HealthCheck(name="variables", ok=not unknown, detail="; ".join(unknown[:UNKNOWN_VARIABLES_MAX]) or None)]


def run(name: str, main: Callable[[Service], Awaitable[None]]) -> None:
    """Run a service until SIGTERM or SIGINT; a second one hurries. Ends the process, as `statuses` has it.

    A wrong setting ends it with one line.
    """
    try:
        settings = load_service_settings(name)
        if has_secrets(settings.configuration, name) or _shows_certificate(settings, name):
            keep_private()
        traces.configure(settings, name)
        for path in open_to_all(settings.configuration, os.environ, name):
            log.warning("secret.open_to_all", file=str(path), remedy="chmod o-r, or a folder that only its user enters")
        status = _event_loop_runner()(_serve(name, settings, main))
    except SettingsError as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201 - the one line, for people, before or instead of logs
        sys.exit(STATUS_WRONG_SETTING)
    finally:
        traces.shut_down()
    sys.exit(status)


def _event_loop_runner() -> Callable[[Awaitable[int]], int]:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return asyncio.run  # type: ignore[return-value]  # it takes coroutines, which is what it gets
    return uvloop.run  # type: ignore[return-value]  # the same


async def _serve(name: str, settings: Settings, main: Callable[[Service], Awaitable[None]]) -> int:
    """Serve until told to stop; the status that the process ends with."""
    if faults.SWITCHED_OFF:
        log.error("service.safeguards_off", off=sorted(faults.SWITCHED_OFF))
    if faults.POINTS_ON:
        log.error("service.points_on")
    if faults.CLOCK_OFF:
        log.error("service.clock_off", seconds=faults.clock_off_seconds())
    this_task = asyncio.current_task()
    wellness, notifier = Wellness(), Notifier()
    service: Service | None = None
    stop_asked = False
    hung_up = asyncio.Event()

    def stop(number: signal.Signals) -> None:
        nonlocal stop_asked
        again, stop_asked = stop_asked, True
        if not again:
            log.info("service.stopping", signal=number.name)
            notifier.stopping(settings.drain_seconds)
        wellness.is_draining = True
        if service is not None:
            if again:
                service.hurrying.set()
            service.stop()
        elif this_task is not None:
            # Still waiting for a broker, which may take for ever: there is nothing to drain. Python 3.11's wait_for,
            # which the client connects with, loses a cancellation that comes just as a connection opens: insist.
            this_task.cancel()
            loop.call_later(STOP_INSISTS_SECONDS, stop, number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        # Who was started on a terminal ends with it.
        act = partial(stop, signal.SIGHUP) if _on_terminal() else hung_up.set
        loop.add_signal_handler(signal.SIGHUP, act)
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(watched(settings.watchdog_seconds))
            await stack.enter_async_context(notifier.kept_up())
            certificate = await stack.enter_async_context(_certificate(settings, name, wellness))
            ops = await stack.enter_async_context(_operators(settings, name, wellness, certificate))
            try:
                connection = await stack.enter_async_context(connect(settings, name))
            except nats.errors.Error as error:
                # A broker that is not there is waited for: what ends the wait is a URL or a login that can't be one.
                raise error if isinstance(error, SettingsError) else SettingsError(f"MESH_NATS_URL: {error}") from None
            await check_start(connection)
            service = Service(name, settings, connection, wellness, notifier)
            service.ops = ops
            service.show(certificate)
            await service.neighbours.check_start()
            looking = asyncio.create_task(service.neighbours.keep_looking())
            stack.callback(looking.cancel)
            async with service.reloading.running(connection, hung_up):
                await main(service)
    except asyncio.CancelledError:
        if not stop_asked:
            raise
    log.info("service.stopped")
    return STATUS_DRAINED if service is not None and service.is_drained else STATUS_STOPPED


def _on_terminal() -> bool:
    return any(os.isatty(descriptor) for descriptor in (0, 1, 2))


def _shows_certificate(settings: Settings, name: str) -> bool:
    return settings.tls_cert is not None and (name in HTTP_SERVICES or settings.ops_address is not None)


@asynccontextmanager
async def _certificate(settings: Settings, name: str, wellness: Wellness) -> AsyncIterator[Certificate | None]:
    """Read a service's certificate, if it has one, and read it again during the body when it changes."""
    if settings.tls_key is not None and settings.tls_cert is None:
        raise SettingsError("MESH_TLS_KEY is the key of MESH_TLS_CERT, which is not set")
    if settings.tls_cert is None or not _shows_certificate(settings, name):
        yield None
        return
    from mesh.serving.tls import Certificate  # noqa: PLC0415 - what reads certificates takes megabytes

    certificate = Certificate(settings.tls_cert, settings.tls_key)
    wellness.add_remark(certificate.checks)
    async with certificate.watched():
        yield certificate


async def _nothing(_: Settings) -> None:
    """What there is to take was taken."""


@asynccontextmanager
async def _operators(
    settings: Settings, name: str, wellness: Wellness, certificate: Certificate | None
) -> AsyncIterator[str | None]:
    """Serve operators during the body, if they are to be served. Yields where."""
    if settings.ops_address is None:
        yield None
        return
    # A web server's import takes a worker a third of a second and some megabytes: only where it is asked for.
    from mesh.serving.ops import operators  # noqa: PLC0415 - see above

    async with operators(settings, name, wellness, certificate) as address:
        yield str(address)


async def probe_mesh(service: Service) -> list[HealthCheck]:
    """Readiness of a service: its broker, its rights there, whom it can let in, that no other mesh would run its tasks
    again, and the certificate that it shows."""
    shown = [] if service.certificate is None else [service.certificate.remark()]
    checks = [*service.connection.rights.checks(), *service.neighbours.checks(), *service.admission(), *shown]
    return [*await probe_broker(service.connection), *checks]


_NEEDED = (
    (TASKS.name, "tasks"),
    (EVENTS.name, "events"),
    (TASKS_BUCKET.stream_name, f"$KV.{TASKS_BUCKET.name}"),
)
"""The streams that a submission needs, each with the beginning of its subjects."""


def silent_streams(connection: Connection) -> list[HealthCheck]:
    """The streams that gave no answer to the last publish, by what is known here."""
    return [_silent(stream) for stream, prefix in _NEEDED if connection.requests.is_silent(prefix)]


def _silent(stream: str) -> HealthCheck:
    return HealthCheck(name=stream, ok=False, detail="the last publish got no answer: is the broker's disk full?")


async def probe_broker(connection: Connection) -> list[HealthCheck]:
    """Readiness: the connection, and each stream that a submission needs, since one may fail alone."""
    if not connection.is_connected:
        return [HealthCheck(name="broker", ok=False, detail="not connected")]

    async def probe(stream: str, prefix: str) -> HealthCheck:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                lacking = lacks_quorum(await connection.requests.api(f"STREAM.INFO.{stream}"))
        except NoLeader as error:
            lacking = f"no leader: {error}"
        except (TaskmeshError, TimeoutError) as error:
            lacking = str(error) or "no answer in time"
        if lacking is None and connection.requests.is_silent(prefix):
            return _silent(stream)
        return HealthCheck(name=stream, ok=lacking is None, detail=lacking)

    checks = await asyncio.gather(*(probe(stream, prefix) for stream, prefix in _NEEDED))
    return [HealthCheck(name="broker", ok=True), *checks]
