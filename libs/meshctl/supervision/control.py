"""The control socket of a running `meshctl up`, in its MESH_HOME: other commands of its user give it orders there.

A request is one line of JSON; the answers are lines, the last of which has `"event": "done"` or `"failed"`. Who hangs
up does not take an order back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import structlog

from contracts.codec import decode, encode
from contracts.errors import InvalidPayload
from meshctl.errors import MeshctlError, MeshGone
from meshctl.supervision.home import Home
from meshctl.supervision.rolling import RestartFailed, Told
from meshctl.supervision.rotation import GRACE_SECONDS, RotationFailed

log = structlog.get_logger("meshctl.supervision.control")

LINE_BYTES_MAX: Final = 64 * 1024
BACKLOG: Final = 8
REQUEST_SECONDS_MAX: Final = 5.0


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is to be done. `broker`: restart the embedded broker, too.

    `grace_seconds`: how long old logins are good in a rotation, for who goes on using them.
    """

    order: Literal["restart", "rotate"]
    broker: bool = False
    grace_seconds: float = GRACE_SECONDS


Carry = Callable[[Order, Told], Awaitable[None]]


@contextlib.asynccontextmanager
async def controlled(home: Home, carry: Carry) -> AsyncIterator[None]:
    """Take orders during the body; `carry` carries them out. A home without room for a socket has none."""
    under_way: set[asyncio.Task[None]] = set()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX):
                order = decode(await reader.readline(), Order)
        except (InvalidPayload, ValueError, TimeoutError, OSError) as error:
            _say(writer, {"event": "failed", "error": f"not an order: {error}"})
            writer.close()
            return
        task = asyncio.create_task(_carried_out(order, carry, writer))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    try:
        listener = _listen(home.control)
    except OSError as error:
        log.warning("control.not_listening", path=str(home.control), error=error.strerror or str(error))
        yield
        return
    server = await asyncio.start_unix_server(on_connection, sock=listener, limit=LINE_BYTES_MAX)
    try:
        yield
    finally:
        server.close()
        home.control.unlink(missing_ok=True)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _carried_out(order: Order, carry: Carry, writer: asyncio.StreamWriter) -> None:
    try:
        await carry(order, lambda event: _say(writer, event))
        _say(writer, {"event": "done"})
    except (RestartFailed, RotationFailed) as error:
        log.error("order.failed", order=order.order, error=str(error))
        _say(writer, {"event": "failed", "error": str(error)})
    except Exception:
        log.exception("order.crashed", order=order.order)
        _say(writer, {"event": "failed", "error": "internal: the log of meshctl up has it"})
    finally:
        writer.close()


def _say(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    if not writer.is_closing():  # Who asked may have gone.
        writer.write(encode(event) + b"\n")


async def ordered(home: Home, order: Order) -> AsyncIterator[dict[str, Any]]:
    """Give an order to the mesh that runs on this home; yields what it says, up to `done`.

    Raises `MeshGone` if none runs there, `MeshctlError` if it fails.
    """
    if not home.is_locked():
        raise MeshGone(f"no mesh runs on {home.path}: meshctl up starts one; another one is named with --home")
    try:
        with _reachable(home.control) as path:
            reader, writer = await asyncio.open_unix_connection(path, limit=LINE_BYTES_MAX)
    except OSError as error:
        raise MeshctlError(
            f"the mesh on {home.path} takes no orders ({error.strerror or error}): is it of another version?"
        ) from None
    try:
        writer.write(encode(order) + b"\n")
        while line := await reader.readline():
            said: dict[str, Any] = msgspec.json.decode(line)
            if said.get("event") == "failed":
                raise MeshctlError(str(said.get("error")))
            if said.get("event") == "done":
                return
            yield said
        raise MeshctlError("the mesh has ended meanwhile")
    finally:
        writer.close()


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _reachable(path) as short:
            listener.bind(short)
        path.chmod(0o600)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A path of the socket that is short enough for its address (108 bytes), by way of the folder's descriptor."""
    if sys.platform != "linux":
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
