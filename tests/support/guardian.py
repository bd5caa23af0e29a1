"""Ends what a process of the tests has left behind: `guardian.py <mark>`, with a pipe from that process as its input.

It waits until the pipe is closed, which the system does however the process ended, and then kills every process whose
environment holds the mark, and all that these have started. Linux only: it reads /proc. A program of its own, in a
session of its own, so that neither Ctrl-C nor a signal to the tests reaches it. Imports nothing of taskmesh.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

ROUNDS_MAX = 500
QUIET_ROUNDS = 3
"""After so many looks that found nothing, nothing is left: one look may miss a process that is just being made."""
PAUSE_SECONDS = 0.02


def main(mark: str) -> None:
    """Wait for the end of the pipe, then kill until nothing is left."""
    with suppress(PermissionError):  # It leads its session already.
        os.setsid()
    while os.read(0, 4096):
        pass
    quiet = 0
    for _ in range(ROUNDS_MAX):
        found = marked(mark)
        for pid in found:
            kill(pid)
        quiet = 0 if found else quiet + 1
        if quiet == QUIET_ROUNDS:
            return
        time.sleep(PAUSE_SECONDS)


def marked(mark: str) -> set[int]:
    """Every process that bears the mark, and whatever descends from one, but for this process and the dead."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parents[int(folder.name)] = int(parent)
                if mark.encode() in (folder / "environ").read_bytes():
                    found.add(int(folder.name))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def kill(pid: int) -> None:
    """`kill -9`, if it is still there and may be killed."""
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
