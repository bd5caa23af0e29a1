"""What a client on the same machine needs of the embedded broker: where it listens, and its token.

Both lie in MESH_HOME, which its owner alone can read. Other users of the machine reach the port, and no more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

HOST: Final = "127.0.0.1"
PORTS_FOLDER: Final = "ports"
"""In MESH_HOME: nats-server writes `<program>_<pid>.ports` there, once it accepts connections."""
TOKEN_FILE: Final = "broker.token"  # noqa: S105 - the file's name
"""In MESH_HOME: what the embedded broker asks every client for."""
TOKEN_BYTES_MAX: Final = 4096


def ports(home: Path) -> Iterator[int]:
    """The ports of the brokers of this home that live; one, unless somebody has interfered."""
    for path in sorted((home / PORTS_FOLDER).glob("*.ports")):
        pid = path.stem.rpartition("_")[2]
        try:
            addresses = msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])["nats"]
            port = int(addresses[0].rpartition(":")[2])
            alive = is_alive(int(pid))
        except (OSError, msgspec.MsgspecError, KeyError, IndexError, ValueError):
            continue  # Half written, or not the broker's.
        if alive:
            yield port


def token_for(home: Path, server: str) -> str | None:
    """The token, if `server` (`nats://host:port`) is this home's own broker, and runs. Nobody else is shown it."""
    if server not in {f"nats://{HOST}:{port}" for port in ports(home)}:
        return None
    try:
        with (home / TOKEN_FILE).open(encoding="ascii") as file:
            return file.read(TOKEN_BYTES_MAX).strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def is_alive(pid: int) -> bool:
    """Whether there is a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
