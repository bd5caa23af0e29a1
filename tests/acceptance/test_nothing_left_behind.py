"""A run of tests that is interrupted or killed leaves no process behind: neither its own, nor what they started."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.support import children
from tests.support.guardian import marked
from tests.support.patience import within
from tests.support.processes import ROOT
from tests.support.waiting import until

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(sys.platform != "linux", reason="the guardian of a run reads /proc"),
]

RUN = """
import asyncio
import os
from pathlib import Path

from tests.support import children
from tests.support.processes import running_mesh

async def test_that_does_not_end(tmp_path):
    async with running_mesh(tmp_path, "ingress") as mesh:
        # A shell that has gone, and what it has left running in a session of its own, without its environment.
        shell = children.start(["sh", "-c", "setsid sh -c 'env -i sleep 600 & exec sleep 600' & exec sleep 600"])
        ready = Path(os.environ["READY_FOLDER"], f"{os.getpid()}.new")
        ready.write_text(children.mark())
        ready.rename(ready.with_suffix(""))
        await asyncio.Event().wait()
"""
PROCESSES = 5
"""Of each test: nats-server, the ingress, and three that sleep."""


class Run:
    """A run of pytest with workers, each in the middle of a test."""

    def __init__(self, controller: asyncio.subprocess.Process, ready: Path, workers: int) -> None:
        self.controller = controller
        self._ready = ready
        self._workers = workers

    @property
    def marks(self) -> dict[int, str]:
        """What the processes of each worker bear, by the worker's pid."""
        return {int(file.name): file.read_text() for file in self._ready.iterdir() if not file.suffix}

    @property
    def is_ready(self) -> bool:
        """Whether each test has come to where it waits."""
        return len(self.marks) == self._workers


@asynccontextmanager
async def run_of_tests(folder: Path, workers: int) -> AsyncIterator[Run]:
    """Start it, in a session of its own as from a terminal of its own, and wait until it is in the middle."""
    ready = folder / "ready"
    ready.mkdir()
    for number in range(workers):
        (folder / f"test_{number}.py").write_text(RUN)
    command: list[str | Path] = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-p", "tests.conftest"]
    command += [
        "-n",
        str(workers),
        "--dist",
        "loadfile",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        folder / "scratch",
        folder,
    ]
    log = folder / "pytest.log"
    with log.open("wb") as output:
        controller = await children.begin(
            command,
            {**os.environ, "READY_FOLDER": str(ready)},
            stdout=output,
            stderr=output,
            cwd=ROOT,
            start_new_session=True,
        )
    run = Run(controller, ready, workers)
    try:
        await until(lambda: run.is_ready or controller.returncode is not None, 60)
        assert run.is_ready, log.read_text()
        await until(lambda: all(len(marked(mark)) == PROCESSES for mark in run.marks.values()), 20)
        yield run
    finally:
        with suppress(ProcessLookupError):
            controller.kill()
        await controller.wait()


async def until_gone(*marks: str) -> None:
    """Wait until no process bears one of the marks, or descends from one that does."""
    await until(lambda: not any(map(marked, marks)), 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_a_run_that_is_told_to_end_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    async with run_of_tests(tmp_path, 1) as run:
        if number == signal.SIGINT:
            os.killpg(run.controller.pid, number)  # A terminal tells all of them.
        else:
            run.controller.send_signal(number)
        async with within(60):
            await run.controller.wait()
        await until_gone(*run.marks.values())
        await until(lambda: not any(Path(f"/proc/{worker}/exe").exists() for worker in run.marks), 20)


async def test_a_worker_that_is_killed_leaves_nothing_and_neither_does_the_run(tmp_path: Path) -> None:
    async with run_of_tests(tmp_path, 2) as run:
        (one, mark), (other, mark_of_other) = run.marks.items()
        os.kill(one, signal.SIGKILL)
        await until_gone(mark)
        assert len(marked(mark_of_other)) == PROCESSES, "the other worker goes on"
        run.controller.kill()
        await run.controller.wait()
        await until_gone(mark_of_other)
        await until(lambda: not Path(f"/proc/{other}/exe").exists(), 20)
