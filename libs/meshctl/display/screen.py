"""A terminal on which a model's words run on while a line below them says how it goes. Elsewhere only the words."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from meshctl.client import Received

FRAMES: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
REFRESH_SECONDS: Final = 0.1
CHARACTERS_PER_TOKEN: Final = 4
"""A rule of thumb for English: how many tokens it really were is in `turn.completed`."""

DIM: Final = "\x1b[2m"
PLAIN: Final = "\x1b[0m"
# VT100, which every terminal since speaks. "Index" moves down, scrolling at the bottom, and keeps the column: so there
# is always a line below, and the cursor comes back to where the words go on.
_MAKE_ROOM: Final = "\x1bD\x1b[A"
_SAVE: Final = "\x1b7"
_RESTORE: Final = "\x1b8"
_BELOW: Final = "\x1b[B\r"
_ERASE_LINE: Final = "\x1b[K"
_ERASE_DOWN: Final = "\x1b[J"


class Screen:
    """Words, and the line below them. Without `is_live` there is no such line."""

    def __init__(self, write: Callable[[str], None], *, is_live: bool, columns: Callable[[], int]) -> None:
        self._write = write
        self._is_live = is_live
        self._columns = columns
        self._began_at = time.monotonic()
        self._doing = "waiting"
        self._characters = 0
        self._frame = 0
        self._drawn = False

    def add(self, received: Received, text: str) -> None:
        """Show what an event says."""
        if received.type == "output.delta":
            self._doing = "running"
            self._characters += len(text)
        elif received.type != "reasoning.delta":
            self._doing = received.type
        self._write(self._cleared() + text + self._line())

    def refresh(self) -> None:
        """Turn the spinner, and tell the time."""
        self._frame += 1
        self._write(self._cleared() + self._line())

    def close(self) -> None:
        """Take the line away."""
        self._write(self._cleared())

    def _cleared(self) -> str:
        if not self._drawn:
            return ""
        self._drawn = False
        return _SAVE + _BELOW + _ERASE_DOWN + _RESTORE

    def _line(self) -> str:
        if not self._is_live:
            return ""
        self._drawn = True
        tokens = -(-self._characters // CHARACTERS_PER_TOKEN)
        seconds = time.monotonic() - self._began_at
        line = f"{FRAMES[self._frame % len(FRAMES)]} {self._doing}  about {tokens} tokens  {seconds:.1f} s"
        # One column is left free: a full line would wrap.
        line = line[: max(0, self._columns() - 1)]
        return f"{_MAKE_ROOM}{_SAVE}{_BELOW}{DIM}{line}{PLAIN}{_ERASE_LINE}{_RESTORE}"


@asynccontextmanager
async def screen(*, is_live: bool) -> AsyncIterator[Screen]:
    """A screen on standard output; the line below is kept fresh, and gone at the end."""
    shown = Screen(_print, is_live=is_live, columns=lambda: shutil.get_terminal_size().columns)
    if not is_live:
        yield shown
        return
    ticking = asyncio.create_task(_tick(shown))
    try:
        yield shown
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        shown.close()


async def _tick(shown: Screen) -> None:
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        shown.refresh()


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
