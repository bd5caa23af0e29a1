"""Servers of a cluster that a client has heard of, and the name that their certificates must show."""

from __future__ import annotations

from urllib.parse import urlparse

import pytest
from nats.aio.client import Srv

from mesh.broker.credentials import Credentials
from mesh.broker.nats_client import NatsClient
from mesh.configuration.settings import Settings


@pytest.mark.parametrize(
    ("teller", "name"),
    [
        (Srv(urlparse("tls://broker.example:4222")), "broker.example"),
        # nats-py (2.16) would want a certificate of the address, and never connect again.
        (Srv(urlparse("tls://10.0.0.1:4222"), discovered=True, tls_name="broker.example"), "broker.example"),
    ],
    ids=["named in the URL", "heard of itself"],
)
async def test_a_server_heard_of_shows_the_name_that_was_configured(teller: Srv, name: str) -> None:
    client = NatsClient(Credentials(Settings(), "test"))
    client.options["dont_randomize"] = True
    client._current_server, client._server_pool = teller, [teller]
    client._server_info = {"tls_required": True}
    await client._process_info({"connect_urls": ["10.0.0.2:4222"]}, initial_connection=True)
    assert [(server.uri.port, server.tls_name) for server in client._server_pool[1:]] == [(4222, name)]
