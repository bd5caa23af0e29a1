"""Child processes: started in a session of their own, restarted when they die, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.retries import PROCESS_POLICY
from mesh.loop_health import LoopHealth
from mesh.serving.listening import LISTENERS_VARIABLE, address_of, told_as
from mesh.serving.service import READY_FD_VARIABLE, Ready
from mesh.serving.statuses import STATUS_DRAINED, STATUS_STOOD_STILL, STATUS_WRONG_SETTING
from meshctl.errors import StartFailed
from meshctl.supervision import leash
from meshctl.supervision.home import Home

log = structlog.get_logger("meshctl.supervision.processes")

LIVED_SECONDS: Final = 10.0
"""Whoever lived that long died for a new reason: the back-off begins anew."""
KILL_SECONDS_MAX: Final = 0.5
"""How long a killed process may take to disappear."""
DEATHS_BEFORE_READY_MAX: Final = 5
"""Whoever died so often without having served once will not serve: about 2 s of trying."""
READY_LINE_BYTES_MAX: Final = 4096
WRITE_AGAIN_SECONDS: Final = 1.0
"""Pause before what could not be written down is written again: a disk that is full may have room by then."""


_TOLD_TO_END: Final = (0, -signal.SIGTERM)
"""How a process ends that somebody has sent SIGTERM: after its drain, or while it could not catch that yet."""
_REASONS: Final = {
    0: "told to end, not by meshctl",
    -signal.SIGTERM: "told to end, not by meshctl",
    STATUS_WRONG_SETTING: "a wrong setting: its log has it",
    STATUS_STOOD_STILL: "its loop stood still: its log has the stacks",
    -signal.SIGPROF: "its loop stood still: its log has the stacks",
}


class Backoff:
    """How long to wait before a restart: doubling, from 0.1 to 5 s (`PROCESS_POLICY`)."""

    def __init__(self) -> None:
        self._deaths = 0

    def delay_seconds(self, lived_seconds: float) -> float:
        """The delay after a death, given how long the process had lived."""
        self._deaths = 1 if lived_seconds >= LIVED_SECONDS else self._deaths + 1
        return PROCESS_POLICY.delay_seconds(self._deaths, 1.0)


class Launch(NamedTuple):
    """What to start: an argument list, its environment, and descriptors that it inherits."""

    arguments: list[str]
    environment: Mapping[str, str]
    descriptors: tuple[int, ...] = ()


class Supervised(ABC):
    """One place in the mesh that a process fills, then its successor, until `terminate`.

    `name` names the log, `service` the kind. `death_signal` is what Linux sends the child should meshctl itself be
    killed.
    """

    def __init__(self, name: str, service: str, home: Home, death_signal: signal.Signals) -> None:
        self.name = name
        self.service = service
        self.pid: int | None = None
        self.first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.log_start = home.log_size(name)
        self.serves = asyncio.Event()
        """Set while the process of this place serves."""
        self.is_vacated = False
        """Whether its process was drained: the place stays empty."""
        self._home = home
        self._is_asked = False
        """Whether meshctl has asked for the end of the process, and wants a successor."""
        self._has_ended = asyncio.Event()
        self._death_signal = death_signal
        self._stop = asyncio.Event()
        self._died_at: float | None = None

    @abstractmethod
    def prepare(self) -> Launch:
        """What to start now. Called before each start."""

    @abstractmethod
    async def until_ready(self, pid: int) -> bool:
        """Wait until the process serves; False if it never will. Cancelled when it dies."""

    async def run(self, on_change: Callable[[], None]) -> None:
        """Keep a process running. `on_change` is called whenever `pid` has changed."""
        backoff = Backoff()
        deaths_before_ready = 0
        while not self._stop.is_set():
            started_at = time.monotonic()
            status = await self._live(on_change)
            served, is_asked = self.serves.is_set(), self._is_asked
            self.serves.clear()
            self._is_asked = False
            self._has_ended.set()
            if self._stop.is_set():
                return
            if status == STATUS_DRAINED:
                self.is_vacated = True
                log.info("process.drained", process=self.name)
                self.vacated()
                return
            if not self.first_ready.done():
                deaths_before_ready += 1
                if status == STATUS_WRONG_SETTING or deaths_before_ready >= DEATHS_BEFORE_READY_MAX:
                    self.first_ready.set_exception(StartFailed(f"{self.name} does not start", (self.name,)))
                    return
            self._died_at = time.monotonic()
            if served and status in _TOLD_TO_END:
                # Nothing is wrong with it, and its successor need not wait.
                log.info("process.ended", process=self.name, **({} if is_asked else _fate(status)))
                continue
            delay_seconds = backoff.delay_seconds(time.monotonic() - started_at)
            log.warning("process.died", process=self.name, restart_in_seconds=delay_seconds, **_fate(status))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_seconds):
                    await self._stop.wait()

    def terminate(self) -> None:
        """Ask the process to end, and start no successor."""
        self._stop.set()
        self._ask_to_end()

    async def restart(self) -> None:
        """Ask the process to end, and wait until its successor serves."""
        self._is_asked = True
        self._has_ended.clear()
        self._ask_to_end()
        await self._has_ended.wait()
        await self.serves.wait()

    def _ask_to_end(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def vacated(self) -> None:  # noqa: B027 - a hook, empty unless somebody needs it
        """Its process was drained, and has ended."""

    def hurry(self) -> None:
        """Ask again: what it has in hand is not to be waited for any more."""
        self.terminate()

    def kill(self) -> None:
        """End the process, and all that it has started in its session, at once; start no successor."""
        self._stop.set()
        if self.pid is not None:
            _kill_group(self.pid)

    async def _live(self, on_change: Callable[[], None]) -> int | None:
        """One process's life; returns its exit status, None if it could not be started."""
        try:
            process = await self._start()
        except Exception as error:
            # No more processes, no more disk: that may pass. Whatever else it is, the others go on.
            known = isinstance(error, OSError)
            log.error("process.start_failed", process=self.name, error=str(error), exc_info=None if known else error)
            return None
        self.pid = process.pid
        if self._stop.is_set():  # While it was being started.
            self.terminate()
        on_change()
        readiness = asyncio.create_task(self._announce(process.pid))
        try:
            status = await process.wait()
        finally:
            readiness.cancel()
            await asyncio.gather(readiness, return_exceptions=True)
        # What it has started itself goes with it: a successor must not meet a predecessor's children.
        _kill_group(process.pid)
        self.pid = None
        on_change()
        return status

    async def _start(self) -> asyncio.subprocess.Process:
        launch = self.prepare()
        try:
            output = self._home.open_log(self.name)
            try:
                return await asyncio.create_subprocess_exec(
                    *_leash(self._death_signal),
                    *launch.arguments,
                    env=dict(launch.environment),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=launch.descriptors,
                    start_new_session=True,
                )
            finally:
                os.close(output)
        finally:
            self.started()

    def started(self) -> None:  # noqa: B027 - a hook, empty unless somebody needs it
        """The child has its copies of the descriptors, or there is none."""

    async def _announce(self, pid: int) -> None:
        if not await self.until_ready(pid):
            return
        self.serves.set()
        if not self.first_ready.done():
            self.first_ready.set_result(None)
            log.debug("process.ready", process=self.name, pid=pid)
        else:
            away_seconds = round(time.monotonic() - self._died_at, 3) if self._died_at is not None else None
            log.info("process.restarted", process=self.name, pid=pid, away_seconds=away_seconds)


class ServiceProcess(Supervised):
    """A service, `python -m <service>`. It says over MESH_READY_FD when it serves, and where.

    `listeners` are sockets that it listens on, by the variable of their address. They are meshctl's, and outlive it:
    who connects while a successor starts waits, and is neither refused nor reset.
    """

    def __init__(
        self,
        name: str,
        service: str,
        home: Home,
        environment: Mapping[str, str],
        listeners: Mapping[str, socket.socket] | None = None,
    ) -> None:
        # SIGKILL: with meshctl its broker ends too, so that there is nothing left to drain into, and a step that is
        # cut off anywhere is what the journal is for. Nothing may be left behind.
        super().__init__(name, service, home, signal.SIGKILL)
        self.address: str | None = None
        self.environment = environment
        """What the next process gets."""
        self._listeners = dict(listeners or {})
        self._ready_read: int | None = None
        self._ready_write: int | None = None

    def prepare(self) -> Launch:
        """The command line, with a pipe for its readiness."""
        if self._ready_read is not None:  # Of a predecessor that died before anybody read it.
            os.close(self._ready_read)
        self._ready_read, self._ready_write = os.pipe()
        environment = {**self.environment, READY_FD_VARIABLE: str(self._ready_write)}
        if self._listeners:
            environment[LISTENERS_VARIABLE] = told_as(self._listeners)
            environment |= {variable: str(address_of(each)) for variable, each in self._listeners.items()}
        descriptors = (self._ready_write, *(each.fileno() for each in self._listeners.values()))
        return Launch([sys.executable, "-m", self.service], environment, descriptors)

    def successor(self) -> ServiceProcess:
        """Who is to take this place while this one still holds it: of the same name, log and sockets."""
        return ServiceProcess(self.name, self.service, self._home, self.environment, self._listeners)

    def vacated(self) -> None:
        """Nobody listens there any more: who connects is refused."""
        for listener in self._listeners.values():
            listener.close()
        self._listeners = {}

    def started(self) -> None:
        """Only the child may hold the writing end: its death is then the end of the pipe."""
        if self._ready_write is not None:
            os.close(self._ready_write)
            self._ready_write = None

    async def until_ready(self, pid: int) -> bool:
        """Read the one line that the service writes."""
        descriptor, self._ready_read = self._ready_read, None
        assert descriptor is not None  # noqa: S101 - prepare() made it
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(READY_LINE_BYTES_MAX)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
        )
        try:
            ready = decode(await reader.readline(), Ready)
        except (InvalidPayload, ValueError):
            return False  # It closed the pipe without a word, or wrote something else.
        finally:
            transport.close()
        self.address = ready.address or self.address
        return True


class Supervisor:
    """Everything that meshctl has started.

    `on_change` writes down which processes live. While that fails, as on a full disk, it is tried again and again:
    processes are restarted all the same.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.processes: list[Supervised] = []
        self._on_change = on_change
        self._tasks: dict[Supervised, asyncio.Task[None]] = {}
        self._health = LoopHealth(log, "pids.not_written")
        self._again: asyncio.TimerHandle | None = None

    def start(self, process: Supervised) -> None:
        """Keep this process running from now on."""
        self.processes.append(process)
        self._tasks[process] = asyncio.create_task(process.run(self._changed), name=process.name)

    def _changed(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        try:
            self._on_change()
        except OSError as error:
            self._health.failed(error)
            self._again = asyncio.get_running_loop().call_later(WRITE_AGAIN_SECONDS, self._changed)
        else:
            self._health.succeeded()

    async def until_ready(self, processes: Iterable[Supervised], timeout_seconds: float) -> None:
        """Wait until each has served once. Raises `StartFailed` that names those that have not."""
        waited = {process.first_ready: process for process in processes}
        if not waited:
            return
        done, _ = await asyncio.wait(waited, timeout=timeout_seconds, return_when=asyncio.FIRST_EXCEPTION)
        for future in done:
            future.result()
        late = tuple(process.name for future, process in waited.items() if not future.done())
        if late:
            raise StartFailed(f"not ready in time: {', '.join(late)}", late)

    async def replace(self, old: Supervised, new: Supervised, ready_seconds: float) -> None:
        """Have `new` serve beside `old`. Raises `StartFailed` if it does not: it has gone then, and `old` is there."""
        self.start(new)
        try:
            await self.until_ready([new], ready_seconds)
        except BaseException:
            new.kill()
            await self.forget([new])
            raise
        log.info("process.replaced", process=old.name, pid=old.pid, successor=new.pid)

    async def forget(self, processes: Sequence[Supervised]) -> None:
        """Wait for the end of these, which were told to end, and have them no more."""
        await asyncio.gather(*(self._tasks[process] for process in processes), return_exceptions=True)
        for process in processes:
            process.first_ready.cancel()
            del self._tasks[process]
            self.processes.remove(process)

    async def stop(
        self, processes: Sequence[Supervised], timeout_seconds: float, hurry_after_seconds: float | None = None
    ) -> None:
        """End these: first asked, maybe asked to hurry meanwhile, after the timeout killed."""
        for process in processes:
            process.terminate()
        tasks = [self._tasks[process] for process in processes]
        if not tasks:
            return
        pending: set[asyncio.Task[None]] = set(tasks)
        if hurry_after_seconds is not None:
            _, pending = await asyncio.wait(tasks, timeout=hurry_after_seconds)
            for process in processes:
                if self._tasks[process] in pending:
                    process.hurry()
            timeout_seconds -= hurry_after_seconds
        if pending:
            _, pending = await asyncio.wait(pending, timeout=timeout_seconds)
        if pending:
            late = [process for process in processes if self._tasks[process] in pending]
            log.warning("process.killed", processes=[process.name for process in late], after_seconds=timeout_seconds)
            for process in late:
                process.kill()
            await asyncio.wait(pending, timeout=KILL_SECONDS_MAX)
        for process in processes:
            if not process.first_ready.cancel() and not process.first_ready.cancelled():
                process.first_ready.exception()  # Mark as seen: one failure is reported, there may be more.

    def close(self) -> None:
        """Write down nothing more: all have ended."""
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def kill(self) -> None:
        """End everything at once."""
        for process in self.processes:
            process.kill()

    def pids(self, service: str) -> list[int]:
        """The processes of a service that live now."""
        return [process.pid for process in self.processes if process.service == service and process.pid is not None]


def _leash(death_signal: signal.Signals) -> list[str]:
    if sys.platform != "linux":
        return []
    program = str(Path(leash.__file__).absolute())
    return [sys.executable, "-I", "-S", program, str(int(death_signal)), str(os.getpid())]


def _kill_group(pid: int) -> None:
    """The child leads its group. The group lives on while a member does, also when its leader has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _fate(status: int | None) -> dict[str, object]:
    if status is None:
        return {}
    reason = {"reason": _REASONS[status]} if status in _REASONS else {}
    if status < 0:
        with contextlib.suppress(ValueError):
            return {"signal": signal.Signals(-status).name, **reason}
    return {"status": status, **reason}
