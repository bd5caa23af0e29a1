"""What a client on the same machine needs of the embedded broker: where it listens, and a login.

Both lie in MESH_HOME, which its owner alone can read. Other users of the machine reach the port, and no more.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from contracts.permissions import ROLES, Role
from mesh.configuration.broker_urls import BrokerLogin

HOST: Final = "127.0.0.1"
PORTS_FOLDER: Final = "ports"
"""In MESH_HOME: nats-server writes `<program>_<pid>.ports` there, once it accepts connections."""
LOCK_FILE: Final = "lock"
"""In MESH_HOME: `meshctl up` and its broker hold it while one of them lives."""
LOGINS_FOLDER: Final = "logins"
"""In MESH_HOME: a file for each user of the embedded broker. Its two lines are variables of the `nats` CLI."""
USER_VARIABLE: Final = "NATS_USER"
PASSWORD_VARIABLE: Final = "NATS_PASSWORD"  # noqa: S105 - the variable's name
LOGIN_BYTES_MAX: Final = 4096
SUPERVISOR: Final[Role] = "supervisor"
"""`meshctl up` itself."""
OPERATOR: Final[Role] = "operator"
"""The commands of meshctl."""
ADMIN: Final = "admin"
"""People with the `nats` CLI, and programs of one's own: it may do everything."""
LOGINS: Final = (*ROLES, ADMIN)


def login_name(role: str) -> str:
    """Which login a process takes: a service its own, meshctl the operator's, anything else the administrator's."""
    if role == "meshctl":
        return OPERATOR
    return role if role in ROLES else ADMIN


def login_path(home: Path, login: str) -> Path:
    """Where a login lies."""
    return home / LOGINS_FOLDER / login


def render_login(login: BrokerLogin) -> str:
    """A login as its file has it."""
    return f"{USER_VARIABLE}={login.user}\n{PASSWORD_VARIABLE}={login.password}\n"


def read_login(path: Path) -> BrokerLogin | None:
    """A login from its file; None if there is none, or it can't be read."""
    try:
        with path.open(encoding="ascii") as file:
            lines = file.read(LOGIN_BYTES_MAX).splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    told = dict(line.split("=", 1) for line in lines if "=" in line)
    user, password = told.get(USER_VARIABLE), told.get(PASSWORD_VARIABLE)
    return BrokerLogin(user, password) if user and password else None


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


def is_of_home(home: Path, server: str) -> bool:
    """Whether `server` (`nats://host:port`) is this home's own broker, and runs. Nobody else is shown its logins.

    What a broker has left that was killed, or whose machine went down, names a process that may be anybody's by now,
    and a port that any user of the machine may have taken: a broker that runs holds the home's lock.
    """
    return server in {f"nats://{HOST}:{port}" for port in ports(home)} and is_locked(home)


def is_locked(home: Path) -> bool:
    """Whether a mesh, or its broker, runs on this home."""
    try:
        descriptor = os.open(home / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_alive(pid: int) -> bool:
    """Whether there is a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
