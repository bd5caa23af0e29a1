"""Rotating the embedded broker's logins while the mesh works: both are valid until nobody uses the old ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client

from contracts.codec import encode
from mesh.broker.nats_client import CLOSE_SECONDS_MAX
from mesh.configuration.broker_urls import BrokerLogin
from meshctl.supervision import broker_logins
from meshctl.supervision.broker_logins import User
from meshctl.supervision.embedded_broker import Broker
from meshctl.supervision.home import Home
from meshctl.supervision.rolling import Told

log = structlog.get_logger("meshctl.supervision.rotation")

GRACE_SECONDS: Final = 30.0
"""How long the old logins are still good, if somebody goes on using them: processes of the mesh take two."""
TAKEN_SECONDS_MAX: Final = 10.0
"""How long nats-server may take to read its configuration again."""
LOOK_SECONDS: Final = 0.2
CONNECTIONS_MAX: Final = 10_000
_CONNECTIONS: Final = "$SYS.REQ.SERVER.PING.CONNZ"


class RotationFailed(Exception):
    """The broker does not take the new logins, or they can't be written down. The old ones hold."""


class Seen(NamedTuple):
    """A connection to the broker: what it calls itself, and as whom it has logged in."""

    name: str
    user: str


async def rotate(broker: Broker, home: Home, told: Told, grace_seconds: float) -> None:
    """Replace every login. Returns once the old ones are refused; `told` is told of each step.

    Who has not taken a new one after `grace_seconds` is thrown out. Raises `RotationFailed`.
    """
    old = list(broker.users)
    new = broker_logins.successors(old)
    broker.let_in([*old, *new])
    if not await _until_answer(broker, new[0].login, is_taken=True):
        broker.let_in(old)
        raise RotationFailed(f"{broker.name} does not take new logins: its log says why")
    broker.users = list(old)
    for place, user in enumerate(new):
        try:
            broker_logins.keep(home, user)
        except OSError as error:
            # Some have theirs by now: the broker takes both, and the next rotation goes on from what the files have.
            reason = error.strerror or str(error)
            raise RotationFailed(
                f"can't write {home.logins}: {reason}; old and new logins hold: run it again"
            ) from None
        broker.users[place] = user
    told({"event": "logins.written", "logins": [user.role for user in new]})
    left = await _until_unused(broker, old, grace_seconds)
    broker.let_in(new)
    await _until_answer(broker, old[0].login, is_taken=False)
    for each in left:
        told({"event": "login.cut_off", "name": each.name, "user": each.user})
    log.info("logins.rotated", cut_off=[f"{each.name} ({each.user})" for each in left])
    told({"event": "logins.rotated", "cut_off": len(left)})


async def _until_answer(broker: Broker, login: BrokerLogin, *, is_taken: bool) -> bool:
    """Wait until the server takes a login, or takes it no more; False if that does not happen in time."""
    give_up_at = time.monotonic() + TAKEN_SECONDS_MAX
    while time.monotonic() < give_up_at:
        with suppress(nats.errors.Error, OSError, TimeoutError):
            if await _takes(broker, login) is is_taken:
                return True
        await asyncio.sleep(LOOK_SECONDS)
    return False


async def _takes(broker: Broker, login: BrokerLogin) -> bool:
    client = Client()
    try:
        await _log_in(client, broker, login)
    except nats.errors.Error as error:
        if "authorization violation" in str(error).lower():
            return False
        raise
    finally:
        await _close(client)
    return True


async def _until_unused(broker: Broker, old: Sequence[User], seconds: float) -> list[Seen]:
    """Wait until nobody is connected by an old login; who still is after so long."""
    give_up_at = time.monotonic() + seconds
    names = {user.login.user for user in old}
    while True:
        left: list[Seen] | None = None
        with suppress(nats.errors.Error, OSError, TimeoutError, msgspec.MsgspecError, KeyError):
            left = [each for each in await _connections(broker) if each.user in names]
        if left == [] or time.monotonic() > give_up_at:
            return left or []
        await asyncio.sleep(LOOK_SECONDS)


async def _connections(broker: Broker) -> list[Seen]:
    """Who is connected now, by the server's own account."""
    client = Client()
    try:
        await _log_in(client, broker, broker.watcher)
        answer = await client.request(_CONNECTIONS, encode({"auth": True, "limit": CONNECTIONS_MAX}), timeout=5)
    finally:
        await _close(client)
    told: dict[str, Any] = msgspec.json.decode(answer.data)
    return [
        Seen(str(each.get("name", "")), str(each.get("authorized_user", ""))) for each in told["data"]["connections"]
    ]


async def _log_in(client: Client, broker: Broker, login: BrokerLogin) -> None:
    await client.connect(
        broker.url,
        user=login.user,
        password=login.password,
        name="taskmesh-rotation",
        allow_reconnect=False,
        max_reconnect_attempts=1,
        connect_timeout=2,
        error_cb=_unheard,
    )


async def _close(client: Client) -> None:
    with suppress(nats.errors.Error, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS_MAX):
            await client.close()


async def _unheard(_: Exception) -> None:
    """What there is to say is raised."""
