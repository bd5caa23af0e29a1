"""Commands on a terminal of their own, as a person would run them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support import children
from tests.support.patience import within

READ_BYTES = 65536
COLUMNS, LINES = "200", "60"


class Terminal:
    """A command on a pseudo-terminal. `output` is what it has printed."""

    def __init__(self, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self.output = ""
        self._command = command
        self._environment = {**environment, "TERM": "xterm", "COLUMNS": COLUMNS, "LINES": LINES}
        self._folder = folder

    async def run(self, until_printed: Callable[[str], bool] | None = None, seconds: float = 30) -> int:
        """Run to the end, or until something is printed, and then Ctrl-C. The exit status."""
        ours, theirs = pty.openpty()
        try:
            process = await children.begin(
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


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, READ_BYTES)
    except OSError:  # EIO: the other end is closed
        return b""
