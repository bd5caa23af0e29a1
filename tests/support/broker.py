"""A real nats-server on a free port with a fresh store; it can be killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import httpx

from contracts.guests import Guest
from tests.support import children, enforced
from tests.support.patience import POLL_SECONDS, ended, within

PROGRAM = shutil.which("nats-server") or str(Path(sys.executable).parent / "nats-server")

READY_SECONDS = 10.0
STOP_SECONDS = 5.0

_CONFIG = """
listen: 127.0.0.1:{port}
http: 127.0.0.1:{monitoring_port}
max_payload: {max_payload}
{extra}
jetstream {{
  store_dir: {store}
  sync_interval: {sync_interval}
  max_file_store: 64GB
  max_memory_store: 64MB
  {jetstream}
}}
"""


_OWN = ("authorization", "accounts", "tls", "leafnodes", "cluster")
"""What a test configures itself where least rights are none of its business."""

PORTS = range(12_000, 32_000)
"""Below those that systems give to connections: who listens there, dies and starts again finds its port free."""


TAKEN_MAX = 256
"""Ports that a test's process keeps others from: who listens on an older one does so by now, or not any more."""
_taken: deque[IO[bytes]] = deque()

_CONTEXT: Final = {
    "MESH_NATS_CREDS": "creds",
    "MESH_NATS_NKEY": "nkey",
    "MESH_NATS_TLS_CA": "ca",
    "MESH_NATS_TLS_CERT": "cert",
    "MESH_NATS_TLS_KEY": "key",
}
"""What a context of the `nats` CLI calls a mesh's variables."""


def free_port() -> int:
    """A port that was free a moment ago, and that no connection will take, nor another test's process."""
    folder = Path(tempfile.gettempdir()) / f"taskmesh-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for port in random.sample(PORTS, len(PORTS)):
        lock = (folder / str(port)).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _taken.append(lock)
        if len(_taken) > TAKEN_MAX:
            _taken.popleft().close()
        return port
    raise RuntimeError("no port is free")


class Broker:
    """A nats-server process of a test's own."""

    def __init__(
        self,
        folder: Path,
        sync_interval: str = "1s",
        extra: str = "",
        max_payload: str = "1MB",
        domain: str | None = None,
        *,
        enforces: bool | None = None,
        guests: Sequence[Guest] = (),
        may_refuse: bool = False,
    ) -> None:
        """`extra`: more lines of its configuration, such as users. `domain`: that of its JetStream.

        `enforces`: whether it enforces the lists of least rights (`tests.support.enforced`), also of `guests`; None is
        as the suite is run, if `extra` has no users of its own. What it then refuses fails the test, unless it
        `may_refuse`: where that is what the test is about.
        """
        self.port = free_port()
        self.monitoring_port = free_port()
        is_open = domain is None and not any(word in extra for word in _OWN)
        self.enforces = enforces if enforces is not None else enforced.is_enforced() and is_open
        self.url = self.url_of(enforced.ROOT)
        self._guests = guests
        self._may_refuse = may_refuse
        self.log = folder / "nats.log"
        self.store = folder / "jetstream"
        self._config = folder / "nats.conf"
        folder.mkdir(parents=True, exist_ok=True)
        self._text = _CONFIG.format(
            port=self.port,
            monitoring_port=self.monitoring_port,
            store=self.store,
            sync_interval=sync_interval,
            max_payload=max_payload,
            extra=extra,
            jetstream=f"domain: {domain}" if domain else "",
        )
        self._config.write_text(self._text + (enforced.accounts(guests) if self.enforces else ""))
        self.variables: Mapping[str, str] = {}
        """What a mesh is told of it beside its URL."""
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: Mapping[str, str] | None = None
        """What its configuration may name as variables; None is this process's own environment."""
        if self.enforces:
            self.environment = {**os.environ, **enforced.passwords(guests)}

    def take_away(self, lacking: Mapping[str, Collection[str]]) -> None:
        """Enforce lists that lack these subjects, by user; a server that runs takes them over (SIGHUP)."""
        self._config.write_text(self._text + enforced.accounts(self._guests, lacking))
        if self.process is not None:
            self.process.send_signal(signal.SIGHUP)

    @property
    def way_in(self) -> dict[str, str]:
        """The variables of who connects to it."""
        return {**self.variables, "MESH_NATS_URL": self.url}

    def cli_variables(self, home: Path) -> dict[str, str]:
        """The variables by which the `nats` CLI finds it, with a context in this folder for what it asks for."""
        shown = self.variables
        context: dict[str, Any] = {name: shown[each] for each, name in _CONTEXT.items() if each in shown}
        if "MESH_NATS_TOKEN_FILE" in shown:
            context["token"] = Path(shown["MESH_NATS_TOKEN_FILE"]).read_text().strip()
        if "MESH_NATS_TLS_FIRST" in shown:
            context["tls_first"] = True
        folder = home / "nats" / "context"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "test.json").write_text(json.dumps({"url": self.url, **context}))
        (folder.parent / "context.txt").write_text("test")
        return {"NATS_URL": self.url, "HOME": str(home), "XDG_CONFIG_HOME": str(home)}

    def url_of(self, process: str) -> str:
        """Where a process finds it, with the login of its role if the broker enforces their rights."""
        return self.with_login(f"nats://127.0.0.1:{self.port}", process)

    def with_login(self, url: str, process: str) -> str:
        """The URL of what leads to it, with that login."""
        return enforced.with_login(url, enforced.role_of(process)) if self.enforces else url

    async def start(self, seconds: float = READY_SECONDS) -> None:
        """Start, and wait until it accepts connections. `seconds`: how long that may take, with much stored."""
        with self.log.open("ab") as log:
            self.process = children.start([PROGRAM, "-c", str(self._config)], self.environment, stdout=log, stderr=log)
        async with within(seconds):
            while True:
                if self.process.poll() is not None:
                    raise RuntimeError(f"nats-server ended: {self.log.read_text()[-2000:]}")
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(POLL_SECONDS)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def messages(self) -> int:
        """Messages that clients have sent and were sent so far, by the server's own count."""
        async with httpx.AsyncClient() as client:
            figures = (await client.get(f"http://127.0.0.1:{self.monitoring_port}/varz")).raise_for_status().json()
        return int(figures["in_msgs"]) + int(figures["out_msgs"])

    async def kill(self) -> None:
        """`kill -9`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(self.process.wait)

    async def stop(self) -> None:
        """End the process, however it stands."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                await ended(self.process, STOP_SECONDS)
            except TimeoutError:
                await self.kill()
        if self.enforces and not self._may_refuse:
            refused = enforced.violations(self.log)
            assert not refused, refused[:20]
