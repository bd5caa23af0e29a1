"""A leaf and its hub: two real nats-servers with a link between them, each with a JetStream domain of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from tests.support.broker import Broker, free_port
from tests.support.waiting import until

HUB, LEAF = "hub", "edge"
"""The names of the servers, and of their domains."""


class Pair(NamedTuple):
    """Both servers. One account is linked, which both share."""

    hub: Broker
    leaf: Broker

    async def until_linked(self) -> None:
        """Wait until the leaf has its link to the hub."""
        await until(lambda: is_linked(self.leaf))


async def is_linked(leaf: Broker) -> bool:
    """Whether a server has a link, by its own monitoring."""
    async with httpx.AsyncClient() as client:
        told = (await client.get(f"http://127.0.0.1:{leaf.monitoring_port}/leafz")).raise_for_status().json()
    return int(told["leafnodes"]) > 0


@asynccontextmanager
async def leaf_and_hub(folder: Path) -> AsyncIterator[Pair]:
    """A hub, and a leaf that is linked to it; both are stopped at the end."""
    port = free_port()
    listens = f"server_name: {HUB}\nleafnodes {{ listen: 127.0.0.1:{port} }}"
    remotes = f"server_name: {LEAF}\nleafnodes {{ reconnect: 1, remotes: [ {{ url: nats-leaf://127.0.0.1:{port} }} ] }}"
    pair = Pair(
        Broker(folder / HUB, extra=listens, domain=HUB),
        Broker(folder / LEAF, extra=remotes, domain=LEAF),
    )
    try:
        await pair.hub.start()
        await pair.leaf.start()
        await pair.until_linked()
        yield pair
    finally:
        await pair.leaf.stop()
        await pair.hub.stop()
