"""Listening sockets: of one's own, or handed over by whoever supervises this process.

A socket that is handed over outlives the process: what connects while a successor starts waits in its queue, and is
neither refused nor reset.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from mesh.configuration.settings import Address
from mesh.errors import SettingsError

BACKLOG: Final = 2048
LISTENERS_VARIABLE: Final = "MESH_LISTENERS"
"""Descriptors that listen already, as `<variable of the address>=<descriptor>`, separated by commas."""


def bind(address: Address, variable: str) -> socket.socket:
    """A listening socket: the one handed over for this variable, else a new one.

    Raises `SettingsError`, naming the variable, if the address is taken or not ours.
    """
    handed_over = _handed_over(variable)
    return handed_over if handed_over is not None else listen(address, variable)


def listen(address: Address, variable: str) -> socket.socket:
    """A new listening socket. Raises `SettingsError`."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listener = socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
    except OSError as error:
        # Not error.strerror: asked for a server, the standard library tells the address once more there.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SettingsError(f"{variable}={str(address)!r}: can't listen: {reason}") from None
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> Address:
    """Where a socket listens, with the port it was given."""
    host, port = listener.getsockname()[:2]
    return Address(host, port)


def told_as(listeners: Mapping[str, socket.socket]) -> str:
    """What a child is told of these in `LISTENERS_VARIABLE`; it has to be given their descriptors, too."""
    return ",".join(f"{variable}={listener.fileno()}" for variable, listener in listeners.items())


def _handed_over(variable: str) -> socket.socket | None:
    for told in os.environ.get(LISTENERS_VARIABLE, "").split(","):
        name, _, descriptor = told.partition("=")
        if name == variable:
            with suppress(ValueError, OSError):  # It says something else: then there is none.
                listener = socket.socket(fileno=int(descriptor))
                listener.set_inheritable(False)
                listener.setblocking(False)
                return listener
    return None
