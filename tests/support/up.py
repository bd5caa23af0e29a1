"""`meshctl up` as an operator has it, in a home of a test's own, and other commands of meshctl."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from mesh.broker.embedded import is_alive
from tests.support import children
from tests.support.patience import within
from tests.support.waiting import until

MESHCTL = [sys.executable, "-m", "meshctl"]
FREE_PORTS = ["--nats-port", "0", "--ingress-address", "127.0.0.1:0", "--edge-address", "127.0.0.1:0"]
SERVICES = {"ingress", "stream_edge", "inference_worker", "tool_runner", "steward", "nats_server"}
READY_SECONDS = 40
STOP_SECONDS_MAX = 10
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")} | {
    "MESH_CONFIG": os.devnull  # not the mesh.toml of whoever runs the tests
}


def runs(pid: int) -> bool:
    """Whether a process runs: one that has ended, and that nobody has asked about yet, does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return not Path("/proc/self/stat").exists() and is_alive(pid)


class Up:
    """A running `meshctl up`. `ready` is the line that it printed."""

    def __init__(self, home: Path, process: asyncio.subprocess.Process, log: Path) -> None:
        self.home = home
        self.process = process
        self.log = log
        self.ready: dict[str, Any] = {}
        self.rest = b""

    def pids(self) -> dict[str, list[int]]:
        """What pids.json says now."""
        pids: dict[str, list[int]] = json.loads((self.home / "pids.json").read_bytes())
        return pids

    @property
    def all_pids(self) -> list[int]:
        """Every process that pids.json names."""
        return [pid for pids in self.pids().values() for pid in pids]

    @property
    def environment(self) -> dict[str, str]:
        """With what other commands find this mesh."""
        return {
            **ENVIRONMENT,
            "MESH_HOME": str(self.home),
            "MESH_NATS_URL": self.ready["nats_url"],
            "MESH_INGRESS_URL": self.ready["ingress_url"],
            "MESH_EDGE_URL": self.ready["edge_url"],
        }

    async def wait_until_ready(self) -> None:
        """Read the one line."""
        assert self.process.stdout is not None
        async with within(READY_SECONDS):
            line = await self.process.stdout.readline()
        assert line, self.log.read_text()
        self.ready = json.loads(line)

    async def end(self, number: signal.Signals, seconds: float = STOP_SECONDS_MAX) -> None:
        """Send a signal, wait for the end, which must come in time. `rest` is what it has still printed."""
        self.process.send_signal(number)
        async with within(seconds):
            self.rest, _ = await self.process.communicate()

    async def killed(self, service: str) -> int:
        """`kill -9` the first process of a service, and wait until its successor serves; returns its pid."""
        old = self.pids()[service][0]
        restarts = self.log.read_text().count("process.restarted")
        os.kill(old, signal.SIGKILL)
        await until(lambda: self.log.read_text().count("process.restarted") > restarts, 20)
        [new] = self.pids()[service]
        assert new != old
        assert not runs(old)
        assert runs(new)
        return new


@asynccontextmanager
async def up(
    home: Path, *arguments: str, variables: Mapping[str, str] | None = None, under: Sequence[str] = ()
) -> AsyncIterator[Up]:
    """`meshctl up` into a pipe, ready; stopped at the end if it still runs. `under`: a command that becomes it."""
    log = home.with_suffix(".log")
    with log.open("ab") as errors:
        process = await children.begin(
            [*under, *MESHCTL, "up", "--home", str(home), *FREE_PORTS, *arguments],
            {**ENVIRONMENT, **(variables or {})},
            stdout=children.PIPE,
            stderr=errors,
        )
    mesh = Up(home, process, log)
    try:
        await mesh.wait_until_ready()
        yield mesh
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with within(STOP_SECONDS_MAX + 5):
                    await process.communicate()
            except TimeoutError:
                process.kill()
                await process.communicate()


async def meshctl(
    *arguments: str, environment: Mapping[str, str] = ENVIRONMENT, text: str = "", seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return await children.run([*MESHCTL, *arguments], environment, text=text, seconds=seconds)
