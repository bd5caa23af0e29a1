"""Runs a program so that it ends when its parent does: `leash.py <signal> <parent pid> <program> <argument> …`

Linux only. Sets PR_SET_PDEATHSIG for itself (prctl(2); it survives execve) and then becomes the program. A program of
its own, because between fork and exec nothing but system calls is safe in a process that may have threads. Imports
nothing of taskmesh, so that it starts fast.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Tie this process to its parent, then become the program."""
    death_signal, parent, *command = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
        sys.exit(f"leash: prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit("leash: the parent is gone")  # It died before the signal was asked for.
    try:
        os.execv(command[0], command)  # noqa: S606 - an argument list, no shell
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror or error}")


if __name__ == "__main__":
    main(sys.argv[1:])
