"""Every process that tests start begins here, and none outlives them, however they end.

Each bears a mark in its environment, which whatever it starts inherits. A guardian, itself a process, notices the end
of this one and kills all that bear the mark: after Ctrl-C, after SIGTERM, after `kill -9` of pytest or of one of its
workers. A parent-death signal (prctl) would reach a process's own children alone, and a shell's command is none.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.support.patience import Bound, within

MARK_VARIABLE = "TASKMESH_TEST_RUN"
NONE_VARIABLE = "TASKMESH_TEST_NO_PROCESSES"
"""Set where tests have promised to start none (`make quick`)."""
PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STDOUT = subprocess.STDOUT
RUN_SECONDS = 60.0
LOOK_SECONDS = 0.2

Command = Sequence[str | Path]
File = int | IO[bytes] | None

_MARK = uuid.uuid4().hex
_GUARDIAN = Path(__file__).with_name("guardian.py")
_on_guard: list[int] = []
"""The end of the pipe that the guardian listens to: open for as long as this process lives."""


def guard() -> None:
    """From here on a guardian watches over this process. What it starts bears its mark, and those of who started it."""
    if _on_guard:
        return
    os.environ[MARK_VARIABLE] = ":".join(filter(None, (os.environ.get(MARK_VARIABLE), _MARK)))
    if not Path("/proc/self/environ").exists():
        _on_guard.append(-1)
        return
    reader, writer = os.pipe()
    # Not a Popen: nobody waits for it. Without output, so that no pipe of this process stays open in it.
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", str(_GUARDIAN), _MARK],
        {},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, reader, 0),
            *((os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_WRONLY, 0) for descriptor in (1, 2)),
        ],
    )
    os.close(reader)
    _on_guard.append(writer)


def mark() -> str:
    """What all that this process starts bears in its environment."""
    return _MARK


def environment(variables: Mapping[str, str] | None) -> dict[str, str]:
    """These variables, or this process's own, with the mark."""
    if os.environ.get(NONE_VARIABLE):
        raise RuntimeError(f"a process is started, and {NONE_VARIABLE} says that none is needed")
    guard()
    return {**(os.environ if variables is None else variables), MARK_VARIABLE: os.environ[MARK_VARIABLE]}


def start(
    command: Command,
    env: Mapping[str, str] | None = None,
    *,
    stdin: File = DEVNULL,
    stdout: File = None,
    stderr: File = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process."""
    return subprocess.Popen(
        command, env=environment(env), stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, pass_fds=pass_fds
    )


async def begin(
    command: Command,
    env: Mapping[str, str] | None = None,
    *,
    stdin: File = DEVNULL,
    stdout: File = None,
    stderr: File = None,
    cwd: Path | None = None,
    **options: Any,
) -> asyncio.subprocess.Process:
    """Start a process whose pipes are read with asyncio. `options`: those of its streams, as `limit`."""
    return await asyncio.create_subprocess_exec(
        *command, env=environment(env), stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, **options
    )


async def run(
    command: Command,
    env: Mapping[str, str] | None = None,
    *,
    text: str = "",
    cwd: Path | None = None,
    stderr: File = PIPE,
    seconds: float = RUN_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run a process to its end: its status, and what it has printed. It is killed if it takes too long."""
    process = await begin(command, env, stdin=PIPE, stdout=PIPE, stderr=stderr, cwd=cwd)
    try:
        async with within(seconds):
            printed, errors = await process.communicate(text.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return subprocess.CompletedProcess(command, process.returncode, printed.decode(), (errors or b"").decode())


def run_blocking(
    command: Command, env: Mapping[str, str] | None = None, *, cwd: Path | None = None, seconds: float = RUN_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Like `run`, where no loop runs."""
    bound = Bound(seconds)
    with start(command, env, stdout=PIPE, stderr=PIPE, cwd=cwd) as process:
        try:
            while True:
                try:
                    printed, errors = process.communicate(timeout=LOOK_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    if not bound.left:
                        raise TimeoutError(f"{command[0]} did not end within {bound}") from None
        finally:
            if process.poll() is None:
                process.kill()
    return subprocess.CompletedProcess(command, process.returncode, printed.decode(), errors.decode())
