"""Who an operator is, for what is written down of their doing."""

from __future__ import annotations

import getpass
import os
import platform
import sys
from typing import Final

from contracts.messages.control import BY_CHARACTERS_MAX

PREFIX: Final = "operator:"


def operator_name() -> str:
    """`operator:<user>@<host>`: what this machine says of them, which proves nothing."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # A container's user has no name.
    return f"{PREFIX}{user}@{platform.node() or sys.platform}"[:BY_CHARACTERS_MAX]
