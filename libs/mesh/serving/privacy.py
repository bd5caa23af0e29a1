"""Keeping a process's environment and memory from others of its user: the programs that it starts, for one."""

from __future__ import annotations

import ctypes
import sys

from mesh.configuration.mesh_toml import Configuration
from mesh.configuration.secret_sources import sources

_PR_SET_DUMPABLE = 4


def keep_private() -> None:
    """Let nobody but root read `/proc/<pid>/environ` and the memory of this process (prctl(2)). Linux only.

    What it executes is readable again. There are no core dumps of it, and debuggers can't attach.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def has_secrets(configuration: Configuration, service: str) -> bool:
    """Whether a service holds what other processes of its user must not read, from a variable or from a file.

    Programs of MCP servers run as the user that all of the mesh may run as: where there are any, every service keeps
    its login at the broker from them.
    """
    runs_programs = any(server.command is not None for server in configuration.tools.mcp.values())
    return runs_programs or any(source.service == service for source in sources(configuration))
