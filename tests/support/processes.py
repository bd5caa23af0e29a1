"""Real service processes of a test's own: started one by one, killed with real signals, started again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from contracts.guests import Guest
from mesh.broker.connection import connect
from mesh.broker.provisioning import apply, declared
from mesh.configuration.mesh_toml import NO_FILE
from mesh.configuration.settings import Settings, load_settings
from mesh.serving.service import READY_FD_VARIABLE, Ready
from tests.support import children
from tests.support.broker import Broker, free_port
from tests.support.guarded import guard
from tests.support.patience import ended, lease, within
from tests.support.slow_link import SlowLink, slow_link

READY_SECONDS = 30.0
STOP_SECONDS = 15.0
ROOT = Path(__file__).resolve().parents[2]


class Process:
    """One service process. `address` is where its HTTP listens."""

    def __init__(
        self, service: str, environment: dict[str, str], log: Path, *arguments: str, under: tuple[str, ...] = ()
    ) -> None:
        self.service = service
        self._under = under
        self._arguments = arguments
        self.log = log
        self.address = ""
        self._environment = environment
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._popen is not None
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._popen is not None and self._popen.poll() is None

    async def start(self) -> Process:
        """Start, and wait until it says that it serves."""
        reader, writer = os.pipe()
        with self.log.open("ab") as log:
            self._popen = children.start(
                [*self._under, sys.executable, "-m", self.service, *self._arguments],
                {**self._environment, READY_FD_VARIABLE: str(writer)},
                pass_fds=(writer,),
                stdout=log,
                stderr=log,
            )
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            async with within(READY_SECONDS):
                line = await asyncio.to_thread(pipe.readline)
        if not line:
            raise RuntimeError(f"{self.service} did not start: {self.log.read_text()[-3000:]}")
        self.address = msgspec.json.decode(line, type=Ready).address or ""
        return self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._popen is not None
        self._popen.send_signal(number)

    async def kill(self) -> None:
        """`kill -9`, and wait for the end."""
        assert self._popen is not None
        self._popen.kill()
        await asyncio.to_thread(self._popen.wait)

    async def stop(self) -> int:
        """SIGTERM, and wait for the end; its exit status."""
        assert self._popen is not None
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGCONT)
            self._popen.terminate()
            try:
                await ended(self._popen, STOP_SECONDS)
            except TimeoutError:
                await self.kill()
        return self._popen.returncode

    def resident_bytes(self) -> int:
        """Memory of the process (Linux)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no VmRSS")

    def descriptors(self) -> int:
        """How many descriptors the process has open (Linux)."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


class Mesh:
    """A broker and the services around it."""

    def __init__(self, folder: Path, broker: Broker, variables: dict[str, str]) -> None:
        self.folder = folder
        self.broker = broker
        self.link: SlowLink | None = None
        """What lies between its services and the broker, if anything does. The test itself is next to the broker."""
        self.processes: list[Process] = []
        edge_port = free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MESH_")},
            "MESH_HOME": str(folder / "home"),
            "MESH_NATS_URL": broker.url,
            "MESH_INGRESS_ADDRESS": f"127.0.0.1:{free_port()}",
            "MESH_EDGE_ADDRESS": f"127.0.0.1:{edge_port}",
            "MESH_LOG_FORMAT": "json",
            "MESH_CONFIG": NO_FILE,
            # Scripts that hang are no reason to wait for as long as a step may take.
            "MESH_DRAIN_SECONDS": "5",
            **broker.variables,
            **variables,
        }
        self.settings = load_settings(self.environment)
        if broker.enforces and "MESH_NATS_URL" not in variables:
            # Commands that are run with it log in as operators; the test itself may do everything.
            self.environment["MESH_NATS_URL"] = broker.url_of("meshctl")

    def environment_of(self, service: str) -> dict[str, str]:
        """What a service is started with: the broker as it is seen from there, with the login of its role, if any."""
        if self.link is None and not self.broker.enforces:
            return self.environment
        url = self.link.url if self.link is not None else f"nats://127.0.0.1:{self.broker.port}"
        if self.broker.url.startswith("tls:"):
            url = url.replace("nats:", "tls:")
        return self.environment | {"MESH_NATS_URL": self.broker.with_login(url, service)}

    async def start(self, service: str, *arguments: str, **variables: str) -> Process:
        """Start one more process of a service, or of a module that takes `arguments`."""
        return await self._start((), service, arguments, variables)

    async def start_limited(self, descriptors: int, service: str, **variables: str) -> Process:
        """The same, with so many descriptors and no more (Linux)."""
        return await self._start(("prlimit", f"--nofile={descriptors}:{descriptors}"), service, (), variables)

    async def _start(
        self, under: tuple[str, ...], service: str, arguments: tuple[str, ...], variables: dict[str, str]
    ) -> Process:
        log = self.folder / f"{service}-{len(self.processes)}.log"
        process = Process(service, {**self.environment_of(service), **variables}, log, *arguments, under=under)
        self.processes.append(process)
        return await process.start()

    @asynccontextmanager
    async def at_a_distance(self, rtt_seconds: float | None) -> AsyncIterator[None]:
        """A block in which services are started behind one slow link; next to the broker, if it is None."""
        if rtt_seconds is None:
            yield
            return
        async with slow_link(self.broker.port, rtt_seconds) as self.link:
            yield

    @property
    def ingress_url(self) -> str:
        """Where tasks are posted."""
        return f"{self.settings.scheme}://{self.settings.ingress_address}"

    @property
    def edge_url(self) -> str:
        """Where streams are read."""
        return f"{self.settings.scheme}://{self.settings.edge_address}"

    def logs(self) -> list[dict[str, object]]:
        """Every log line of every process that is JSON."""
        lines: list[dict[str, object]] = []
        for process in self.processes:
            for line in process.log.read_text().splitlines():
                try:
                    lines.append(msgspec.json.decode(line))
                except msgspec.DecodeError:
                    continue
        return lines

    def logs_of(self, event: str) -> list[dict[str, object]]:
        """The log lines of one event."""
        return [line for line in self.logs() if line.get("event") == event]

    def tracebacks(self) -> list[str]:
        """Processes whose log shows an exception that nobody handled."""
        return [process.log.name for process in self.processes if "Traceback" in process.log.read_text()]


@asynccontextmanager
async def running_mesh(
    folder: Path, *services: str, broker_extra: str = "", max_payload: str = "1MB", **variables: str
) -> AsyncIterator[Mesh]:
    """A broker with all streams, and these services, with a `lease`; everything is stopped at the end."""
    async with distant_mesh(
        folder, None, *services, broker_extra=broker_extra, max_payload=max_payload, **variables
    ) as mesh:
        yield mesh


@asynccontextmanager
async def enforced_mesh(
    folder: Path, services: Sequence[str], guests: Sequence[Guest] = (), **variables: str
) -> AsyncIterator[Mesh]:
    """The same, whose broker enforces the lists of least rights, also of guests: what it refuses fails the test."""
    broker = Broker(folder / "broker", enforces=True, guests=guests)
    async with _distant_mesh(folder, None, broker, *services, **variables) as mesh:
        yield mesh


@asynccontextmanager
async def distant_mesh(
    folder: Path,
    rtt_seconds: float | None,
    *services: str,
    broker_extra: str = "",
    max_payload: str = "1MB",
    **variables: str,
) -> AsyncIterator[Mesh]:
    """A running mesh whose services, those that are started later too, are behind one slow link, `mesh.link`."""
    own = guard(folder / "secrets") if not broker_extra else None
    if own is not None:
        broker = own.broker(folder / "broker", max_payload)
    else:
        broker = Broker(folder / "broker", extra=broker_extra, max_payload=max_payload)
    async with _distant_mesh(folder, rtt_seconds, broker, *services, **variables) as mesh:
        yield mesh


@asynccontextmanager
async def _distant_mesh(
    folder: Path, rtt_seconds: float | None, broker: Broker, *services: str, **variables: str
) -> AsyncIterator[Mesh]:
    ack_wait_seconds = float(variables.get("MESH_ACK_WAIT_SECONDS", Settings().ack_wait_seconds))
    variables = {**variables, "MESH_ACK_WAIT_SECONDS": str(lease(ack_wait_seconds))}
    await broker.start()
    mesh = Mesh(folder, broker, variables)
    async with mesh.at_a_distance(rtt_seconds):
        try:
            async with serving(mesh, *services):
                yield mesh
        finally:
            await broker.stop()


@asynccontextmanager
async def serving(mesh: Mesh, *services: str) -> AsyncIterator[None]:
    """A block in which a mesh has all its streams, and these services run."""
    try:
        async with connect(mesh.settings, "test") as connection:
            await apply(connection.requests, declared(mesh.settings), update=False)
        for service in services:
            await mesh.start(service)
        yield
    finally:
        await asyncio.gather(*(process.stop() for process in mesh.processes if process._popen is not None))
