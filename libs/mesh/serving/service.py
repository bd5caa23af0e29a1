"""What every service process does: settings, logs, connection, signals, `nats micro`, readiness."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import nats.errors
import nats.micro
import structlog

from contracts import VERSION
from contracts.build import BUILD
from contracts.errors import TaskmeshError
from contracts.records.status import HealthCheck
from contracts.streams import EVENTS, TASKS, TASKS_BUCKET
from mesh import faults
from mesh.broker.connection import Connection, connect
from mesh.broker.requests import Requests
from mesh.broker.suitability import check_start
from mesh.configuration.digest import configuration_digest
from mesh.configuration.settings import Settings, load_settings, worker_name
from mesh.errors import SettingsError
from mesh.serving.privacy import has_secrets, keep_private
from mesh.serving.reloading import Reloading
from mesh.serving.wellness import Wellness
from mesh.telemetry import traces

log = structlog.get_logger("mesh.serving.service")

READY_FD_VARIABLE = "MESH_READY_FD"
"""A file descriptor that a service writes one `Ready` line to, and closes, once it serves."""
PROBE_TIMEOUT_SECONDS = 2.0
STOP_INSISTS_SECONDS = 0.2


class Ready(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a service tells its parent when it serves. `address` is where HTTP listens, `<host>:<port>`."""

    service: str
    pid: int
    address: str | None = None


class Service:
    """A running service: its settings, its broker, and the events that say stop."""

    def __init__(self, name: str, settings: Settings, connection: Connection, wellness: Wellness | None = None) -> None:
        self.name = name
        self.settings = settings
        self.connection = connection
        self.worker = worker_name(name)
        self.configuration = configuration_digest(settings)
        self.wellness = wellness or Wellness()
        self.wellness.connection = connection
        self.http: str | None = None
        """Where it serves HTTP, `<host>:<port>`, if anywhere."""
        self.ops: str | None = None
        """Where it serves operators."""
        self.stopping = asyncio.Event()
        self.hurrying = asyncio.Event()
        """Told to stop a second time: what still runs is not waited for."""
        self._metadata: dict[str, str] = {}
        """What `nats micro info` shows: it is read anew for each answer."""
        self.reloading = Reloading(self)
        """Takes over a changed configuration file; `settings` are then others. What goes by it is added as a part."""

    @property
    def requests(self) -> Requests:
        """Requests to the broker."""
        return self.connection.requests

    def reloaded(self, configuration: str) -> None:
        """Another configuration holds: its digest."""
        self.configuration = self._metadata["configuration"] = configuration

    async def ready(self, address: str | None = None) -> None:
        """Show up in `nats micro ls`, and tell the parent process if it wants to know. `address`: where HTTP is."""
        self.http = address or self.http
        optional = {"http": self.http, "ops": self.ops}
        self._metadata |= {
            "pid": str(os.getpid()),
            "worker": self.worker,
            "build": BUILD,
            "configuration": self.configuration,
            **{key: value for key, value in optional.items() if value is not None},
        }
        await nats.micro.add_service(
            self.connection.client,
            name=self.name,
            version=VERSION,
            description=f"taskmesh {self.name}",
            metadata=self._metadata,
        )
        address = self.http
        log.info("service.ready", version=VERSION, build=BUILD, pid=os.getpid(), address=address, ops=self.ops)
        descriptor = os.environ.pop(READY_FD_VARIABLE, "")
        if descriptor:
            with os.fdopen(int(descriptor), "wb") as pipe:
                pipe.write(msgspec.json.encode(Ready(self.name, os.getpid(), address)) + b"\n")


def run(name: str, main: Callable[[Service], Awaitable[None]]) -> None:
    """Run a service until SIGTERM or SIGINT; a second one hurries. A wrong setting ends it with one line, status 2."""
    try:
        settings = load_settings()
        if has_secrets(settings.configuration, name):
            keep_private()
        traces.configure(settings, name)
        _event_loop_runner()(_serve(name, settings, main))
    except SettingsError as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201 - the one line, for people, before or instead of logs
        sys.exit(2)
    finally:
        traces.shut_down()


def _event_loop_runner() -> Callable[[Awaitable[None]], None]:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return asyncio.run  # type: ignore[return-value]  # it takes coroutines, which is what it gets
    return uvloop.run  # type: ignore[return-value]  # the same


async def _serve(name: str, settings: Settings, main: Callable[[Service], Awaitable[None]]) -> None:
    if faults.SWITCHED_OFF:
        log.error("service.safeguards_off", off=sorted(faults.SWITCHED_OFF))
    if faults.POINTS_ON:
        log.error("service.points_on")
    if faults.CLOCK_OFF:
        log.error("service.clock_off", seconds=faults.clock_off_seconds())
    this_task = asyncio.current_task()
    wellness = Wellness()
    service: Service | None = None
    stop_asked = False
    hung_up = asyncio.Event()

    def stop() -> None:
        nonlocal stop_asked
        again, stop_asked = stop_asked, True
        wellness.is_draining = True
        if service is not None:
            if again:
                service.hurrying.set()
            service.stopping.set()
        elif this_task is not None:
            # Still waiting for a broker, which may take for ever: there is nothing to drain. Python 3.11's wait_for,
            # which the client connects with, loses a cancellation that comes just as a connection opens: insist.
            this_task.cancel()
            loop.call_later(STOP_INSISTS_SECONDS, stop)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        # Who was started on a terminal ends with it.
        loop.add_signal_handler(signal.SIGHUP, stop if _on_terminal() else hung_up.set)
    try:
        async with AsyncExitStack() as stack:
            ops = await stack.enter_async_context(_operators(settings, name, wellness))
            try:
                connection = await stack.enter_async_context(connect(settings, name))
            except nats.errors.Error as error:
                # A broker that is not there is waited for: what ends the wait is a URL that can't be one.
                raise SettingsError(f"MESH_NATS_URL: {error}") from None
            await check_start(connection)
            service = Service(name, settings, connection, wellness)
            service.ops = ops
            async with service.reloading.running(connection, hung_up):
                await main(service)
    except asyncio.CancelledError:
        if not stop_asked:
            raise
    log.info("service.stopped")


def _on_terminal() -> bool:
    return any(os.isatty(descriptor) for descriptor in (0, 1, 2))


@asynccontextmanager
async def _operators(settings: Settings, name: str, wellness: Wellness) -> AsyncIterator[str | None]:
    """Serve operators during the body, if they are to be served. Yields where."""
    if settings.ops_address is None:
        yield None
        return
    # A web server's import takes a worker a third of a second and some megabytes: only where it is asked for.
    from mesh.serving.ops import operators  # noqa: PLC0415 - see above

    async with operators(settings, name, wellness) as address:
        yield str(address)


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
        if connection.requests.is_silent(prefix):
            return _silent(stream)
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                await connection.requests.api(f"STREAM.INFO.{stream}")
        except (TaskmeshError, TimeoutError) as error:
            return HealthCheck(name=stream, ok=False, detail=str(error) or "no answer in time")
        return HealthCheck(name=stream, ok=True)

    checks = await asyncio.gather(*(probe(stream, prefix) for stream, prefix in _NEEDED))
    return [HealthCheck(name="broker", ok=True), *checks]
