"""Standard output: text for people on a terminal, JSON lines into a pipe."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner

from contracts.codec import encode
from meshctl.variables import NO_COLOR_VARIABLE

# A model's words reach the operator's terminal: nothing in them may move the cursor, retitle the window or worse.
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def for_people() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def prepare() -> None:
    """A terminal that can't show a character gets another one instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def printable(text: str) -> str:
    """Text as it may be shown on a terminal: control characters other than line feed and tab are replaced."""
    return text.translate(_CONTROLS)


def on_a_screen() -> bool:
    """Whether standard output can be written over: a terminal, and no dumb one."""
    return for_people() and os.environ.get("TERM") not in ("dumb", "unknown")


def in_colour() -> bool:
    """Whether standard output may be coloured: a terminal that can, and nobody said NO_COLOR."""
    return on_a_screen() and not os.environ.get(NO_COLOR_VARIABLE)


def show(what: RenderableType) -> None:
    """Print a table, or styled text; plain where colours are not wanted (https://no-color.org)."""
    console().print(what)


@contextlib.contextmanager
def progress(text: str) -> Iterator[Callable[[str], None]]:
    """A spinner while something takes its time, gone at the end. Yields what changes its text; silent elsewhere."""
    if not in_colour():
        yield lambda _: None
        return
    spinner = Spinner("dots", text)
    # Nothing else is taken over: what goes to standard error still goes where that leads.
    with Live(spinner, console=console(), transient=True, redirect_stdout=False, redirect_stderr=False):
        yield lambda changed: spinner.update(text=changed)


def console() -> Console:
    """Standard output, as `show` writes on it."""
    return Console(color_system="auto" if in_colour() else None, highlight=False, emoji=False, markup=False)


def json_line(value: Any) -> None:
    """One JSON object on a line of its own."""
    raw_line(encode(value))


def raw_line(payload: bytes) -> None:
    """One line, as it is, and at once: who reads the pipe may wait for it."""
    print(payload.decode("utf-8", "replace"), flush=True)


def give_up() -> None:
    """The reader of the pipe is gone: what is still buffered must not raise once more at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
