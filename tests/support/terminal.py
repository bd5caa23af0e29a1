"""Commands on a terminal of their own, as a person would run them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import termios
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support import children
from tests.support.patience import within

READ_BYTES = 65536
COLUMNS, LINES = "200", "60"


class Terminal:
    """A command on a pseudo-terminal. `output` is what it has printed.

    `size`: columns and lines that the terminal itself tells, and which can be changed; else variables do. Where the
    tests themselves run, of whatever size and kind, is no matter.
    """

    def __init__(
        self, command: list[str], environment: Mapping[str, str], folder: Path, size: tuple[int, int] | None = None
    ) -> None:
        self.output = ""
        self._command = command
        kept = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
        kind = {"TERM": "xterm"} if kept.get("TERM") in (None, "dumb", "unknown") else {}
        told = {"COLUMNS": COLUMNS, "LINES": LINES} if size is None else {}
        self._environment = {**kept, **kind, **told}
        self._folder = folder
        self._size = size
        self._descriptor = -1
        self._process: asyncio.subprocess.Process | None = None

    def resize(self, columns: int, lines: int) -> None:
        """Make it another size, and tell the command, as a terminal does."""
        _set_size(self._descriptor, columns, lines)
        assert self._process is not None
        self._process.send_signal(signal.SIGWINCH)

    async def run(self, until_printed: Callable[[str], bool] | None = None, seconds: float = 30) -> int:
        """Run to the end, or until something is printed, and then Ctrl-C. The exit status."""
        ours, theirs = pty.openpty()
        self._descriptor = ours
        if self._size is not None:
            _set_size(ours, *self._size)
        try:
            process = self._process = await children.begin(
                self._command, self._environment, stdin=theirs, stdout=theirs, stderr=theirs, cwd=self._folder
            )
        finally:
            os.close(theirs)
        try:
            async with within(seconds):
                while chunk := await asyncio.to_thread(_read, ours):
                    self.output += chunk.decode("utf-8", "replace")
                    if until_printed is not None and until_printed(self.output):
                        process.send_signal(signal.SIGINT)
                        until_printed = None
                return await process.wait()
        except TimeoutError:
            raise AssertionError(f"{' '.join(self._command)} printed only: {self.output}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            os.close(ours)


def _set_size(descriptor: int, columns: int, lines: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, READ_BYTES)
    except OSError:  # EIO: the other end is closed
        return b""
