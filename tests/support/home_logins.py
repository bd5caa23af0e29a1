"""The logins in a home of `meshctl up`, and what the broker says to them."""

from __future__ import annotations

import nats.errors
from nats.aio.client import Client

from mesh.broker.embedded import LOGINS, login_path, read_login
from mesh.configuration.broker_urls import BrokerLogin
from tests.support.up import Up


def logins_of(mesh: Up) -> dict[str, BrokerLogin]:
    """Each login as its file has it, by role."""
    found = {role: read_login(login_path(mesh.home, role)) for role in LOGINS}
    return {role: login for role, login in found.items() if login is not None}


async def said_by_broker(mesh: Up, login: BrokerLogin) -> str:
    """What the broker says to a client with a login, which does not try again; nothing: it lets it in."""
    client = Client()
    try:
        await client.connect(
            mesh.ready["nats_url"],
            user=login.user,
            password=login.password,
            token=login.token,
            allow_reconnect=False,
        )
    except nats.errors.Error as error:
        return str(error)
    finally:
        await client.close()
    return ""
