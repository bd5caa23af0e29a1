"""Who an operator is, for what is written down of their doing."""

from __future__ import annotations

import getpass
import os
import platform
import sys

from contracts.actors import by_operator


def operator_name() -> str:
    """`operator:<user>@<host>`: what this machine says of them, which proves nothing."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # A container's user has no name.
    return by_operator(user, platform.node() or sys.platform)
