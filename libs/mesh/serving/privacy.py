"""Keeping a process's environment and memory from others of its user: the programs that it starts, for one."""

from __future__ import annotations

import ctypes
import sys

from mesh.configuration.mesh_toml import Configuration
from mesh.configuration.secrets import secrets_of

_PR_SET_DUMPABLE = 4


def keep_private() -> None:
    """Let nobody but root read `/proc/<pid>/environ` and the memory of this process (prctl(2)). Linux only.

    What it executes is readable again. There are no core dumps of it, and debuggers can't attach.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def has_secrets(configuration: Configuration, service: str) -> bool:
    """Whether a service holds what the programs of MCP servers must not read. They run as the user that it runs as."""
    runs_programs = any(server.command is not None for server in configuration.tools.mcp.values())
    return bool(secrets_of(configuration, service)) or (service == "tool_runner" and runs_programs)
