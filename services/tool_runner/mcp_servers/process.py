"""An MCP server as a child process, spoken to over its standard input and output.

What it may write is bounded: a line of any length, or lines without end that are no messages, end the connection
instead of filling the runner's memory. It gets its own environment, and nothing of the runner's beside.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from contracts.records.tools import OBJECT_BYTES_MAX

INHERITED = ("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER")
"""The runner's variables that each program gets."""
MESSAGE_BYTES_MAX = OBJECT_BYTES_MAX + OBJECT_BYTES_MAX // 4
"""Longest message of a server: the largest result, and what JSON adds to it."""
RUBBISH_LINES_MAX = 1_000
"""So many lines one after another that are no messages end the connection."""
ERROR_LINE_BYTES_MAX = 128 * 1024
"""Of a line of its standard error: twice the largest secret, so that none is cut where a line of the log ends."""
END_SECONDS = 2.0
"""How long a program may take to end when its input is closed, and then when it is asked to."""
_DISCARD_BYTES = 64 * 1024

Message = SessionMessage | Exception


class ProgramMissing(Exception):
    """There is no such program, or no such folder to run it in."""


class Program(NamedTuple):
    """What to run: the command line, its whole environment, and its folder (None: the runner's)."""

    command: list[str]
    environment: Mapping[str, str]
    folder: str | None = None


def environment_for(own: Mapping[str, str], runners: Mapping[str, str]) -> dict[str, str]:
    """A program's whole environment: what is its own, and the few variables that each program gets."""
    return {name: runners[name] for name in INHERITED if name in runners} | dict(own)


def checked(program: Program) -> Program:
    """The program with the path that it was found under. Raises `ProgramMissing`, which names what is not there."""
    name, *arguments = program.command
    folder = Path(program.folder) if program.folder is not None else Path.cwd()
    if not folder.is_dir():
        raise ProgramMissing(f"cwd: there is no folder {folder}")
    # Of a relative path the folder counts that it is run in, as it does for the system.
    named = str(folder / name) if "/" in name else name
    found = shutil.which(named, path=program.environment.get("PATH"))
    if found is None:
        is_there = "/" in name and Path(named).exists()
        raise ProgramMissing(f"command: {name} " + ("can't be executed" if is_there else "is not there"))
    return program._replace(command=[found, *arguments])


@asynccontextmanager
async def program_streams(
    program: Program, on_end: Callable[[str | None], None], on_error_line: Callable[[str], None]
) -> AsyncIterator[Any]:
    """Run a program, and speak with it; it ends with the body, in bounded time.

    `on_end` is told when it closes its output, or why nothing more is read of it; `on_error_line` of each line on its
    standard error. Raises `ProgramMissing`, `OSError`.
    """
    program = checked(program)
    process = await asyncio.create_subprocess_exec(
        *program.command,
        env=dict(program.environment),
        cwd=program.folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        # Not the runner's own: what a program says of itself may be the token that it was given.
        stderr=asyncio.subprocess.PIPE,
        limit=MESSAGE_BYTES_MAX,
        start_new_session=True,
    )
    received, receiver = anyio.create_memory_object_stream[Message](0)
    sender, to_send = anyio.create_memory_object_stream[SessionMessage](0)
    async with anyio.create_task_group() as group:
        group.start_soon(_read, process, received, on_end)
        group.start_soon(_read_errors, process, on_error_line)
        group.start_soon(_write, process, to_send, received)
        try:
            yield receiver, sender
        finally:
            with anyio.CancelScope(shield=True):
                receiver.close()
                sender.close()
                await _end(process)
            group.cancel_scope.cancel()


async def _read(
    process: asyncio.subprocess.Process,
    received: MemoryObjectSendStream[Message],
    on_end: Callable[[str | None], None],
) -> None:
    assert process.stdout is not None  # noqa: S101 - it was asked for
    reason: str | None = None
    try:
        async with received:
            reason = await _messages(process.stdout, received)
    except (anyio.ClosedResourceError, anyio.BrokenResourceError):
        pass  # The session is over.
    on_end(reason)
    # Who writes on must not wait for a reader: it could not end. What does not fit a line is thrown away, too.
    while await process.stdout.read(_DISCARD_BYTES):
        pass


async def _read_errors(process: asyncio.subprocess.Process, on_line: Callable[[str], None]) -> None:
    """Hand on each line of the standard error; of one without end no more than its beginning."""
    assert process.stderr is not None  # noqa: S101 - it was asked for
    held, is_cut = b"", False
    while data := await process.stderr.read(_DISCARD_BYTES):
        *lines, held = (held + data).split(b"\n")
        for line in lines:
            if not is_cut:
                on_line(line.decode(errors="replace"))
            is_cut = False
        if len(held) > ERROR_LINE_BYTES_MAX:
            if not is_cut:
                on_line(held.decode(errors="replace"))
            held, is_cut = b"", True
    if held and not is_cut:
        on_line(held.decode(errors="replace"))


async def _messages(output: asyncio.StreamReader, received: MemoryObjectSendStream[Message]) -> str | None:
    """Hand on what is written until its end; why not to its end, if so."""
    rubbish = 0
    while True:
        try:
            line = await output.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError:
            return f"it wrote a line of more than {MESSAGE_BYTES_MAX} bytes"
        message = parsed(line)
        rubbish = rubbish + 1 if isinstance(message, Exception) else 0
        if rubbish > RUBBISH_LINES_MAX:
            return f"it wrote {rubbish} lines that are no messages"
        await received.send(message)


def parsed(line: bytes) -> Message:
    """What a line says; the error, if it is no message."""
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except (ValueError, RecursionError) as error:
        return error


async def _write(
    process: asyncio.subprocess.Process,
    to_send: MemoryObjectReceiveStream[SessionMessage],
    received: MemoryObjectSendStream[Message],
) -> None:
    assert process.stdin is not None  # noqa: S101 - it was asked for
    try:
        async with to_send:
            async for message in to_send:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                process.stdin.write(text.encode("utf-8", "replace") + b"\n")
                await process.stdin.drain()
    except (anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
        # Its output may still be open: the session must not wait for answers that nobody was asked for.
        await received.aclose()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close the input, then ask, then kill, each with its time; all that it has started in its session ends with it."""
    assert process.stdin is not None  # noqa: S101 - it was asked for
    process.stdin.close()
    if not await _ended(process):
        _signal(process, signal.SIGTERM)
        await _ended(process)
    _signal(process, signal.SIGKILL)
    await _ended(process)
    # A descendant in a session of its own may hold the pipe: nothing public lets go of it.
    transport = getattr(process, "_transport", None)
    if transport is not None:
        with suppress(PermissionError):
            transport.close()


async def _ended(process: asyncio.subprocess.Process) -> bool:
    try:
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    except TimeoutError:
        return process.returncode is not None
    return True


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
