"""Servers that run the configurations of deploy/nats as they are, but for addresses and folders of this machine."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.broker import Broker, free_port
from tests.support.cluster import Cluster, Node
from tests.support.leaf import is_linked
from tests.support.processes import ROOT
from tests.support.waiting import until

PASSWORDS = {"MESH_PASSWORD": "mesh-secret", "ADMIN_PASSWORD": "admin-secret", "ROUTE_PASSWORD": "route-secret"}
EDGE_PASSWORD = "edge-secret"


def configuration(name: str, replaced: Mapping[str, str]) -> str:
    """A file of deploy/nats with these texts replaced, each of which has to be there."""
    text = (ROOT / "deploy" / "nats" / name).read_text()
    for old, new in replaced.items():
        assert old in text, f"{name} has no {old}"
        text = text.replace(old, new)
    return text


def with_login(url: str, user: str = "mesh", password: str = PASSWORDS["MESH_PASSWORD"]) -> str:
    """The URL of a server, or of several, with a login."""
    return url.replace("nats://", f"nats://{user}:{password}@")


class DeployedNode(Node):
    """A node that runs deploy/nats/cluster.conf."""

    def __init__(self, folder: Path, ports: list[int], number: int) -> None:
        super().__init__(folder, f"nats-{number + 1}", "taskmesh", ports, number, "")
        routes = ", ".join(f"nats-route://route:{PASSWORDS['ROUTE_PASSWORD']}@127.0.0.1:{port}" for port in ports)
        addresses = {
            "0.0.0.0:4222": f"127.0.0.1:{self.port}",
            "0.0.0.0:6222": f"127.0.0.1:{ports[number]}",
            "127.0.0.1:8222": f"127.0.0.1:{self.monitoring_port}",
            "/var/lib/nats": str(self.store),
            "107374182400": "34359738368",
        }
        self._config.write_text(configuration("cluster.conf", addresses))
        self.environment = {**os.environ, **PASSWORDS, "NODE": self.name, "ROUTES": f"[{routes}]"}


@asynccontextmanager
async def deployed_cluster(folder: Path) -> AsyncIterator[Cluster]:
    """Three nodes that run deploy/nats/cluster.conf; they are stopped at the end."""
    cluster = Cluster(folder)
    ports = [node.route_port for node in cluster.nodes]
    cluster.nodes = [DeployedNode(folder / f"nats-{number + 1}", ports, number) for number in range(len(ports))]
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()


class Edge(NamedTuple):
    """A hub and a box at the edge, as deploy/nats has them."""

    hub: Broker
    leaf: Broker

    async def until_linked(self) -> None:
        """Wait until the leaf has its link to the hub."""
        await until(lambda: is_linked(self.leaf))


@asynccontextmanager
async def deployed_edge(folder: Path) -> AsyncIterator[Edge]:
    """Servers that run deploy/nats/hub.conf and leaf.conf; they are stopped at the end."""
    edge = Edge(Broker(folder / "hub"), Broker(folder / "leaf"))
    link = free_port()
    for name, server, listens in (("hub.conf", edge.hub, "0.0.0.0:4222"), ("leaf.conf", edge.leaf, "127.0.0.1:4222")):
        size = "107374182400" if server is edge.hub else "21474836480"
        replaced = {
            listens: f"127.0.0.1:{server.port}",
            "/var/lib/nats": str(server.store),
            size: "34359738368",
        }
        if server is edge.hub:
            replaced["0.0.0.0:7422"] = f"127.0.0.1:{link}"
        else:
            replaced['reconnect: "2s"'] = 'reconnect: "0.2s"'
        monitored = f"\nhttp: 127.0.0.1:{server.monitoring_port}\n"
        server._config.write_text(configuration(name, replaced) + monitored)
        server.environment = {
            **os.environ,
            **PASSWORDS,
            "EDGE_PASSWORD": EDGE_PASSWORD,
            "HUB_URL": f"nats-leaf://edge-1:{EDGE_PASSWORD}@127.0.0.1:{link}",
        }
    try:
        await edge.hub.start()
        await edge.leaf.start()
        await edge.until_linked()
        yield edge
    finally:
        await edge.leaf.stop()
        await edge.hub.stop()
