"""A client of a cluster of three servers: which of them is there does not matter."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import ParseResult

from mesh.broker.connection import Connection, connect
from mesh.configuration.settings import load_settings
from tests.support.cluster import Cluster, running_cluster
from tests.support.waiting import until

CONNECTIONS = 4
"""The client tries servers in an order of its own: so often, it has begun with the one that is away."""


async def test_which_node_is_away_makes_no_difference_to_who_starts_or_is_connected(tmp_path: Path) -> None:
    async with running_cluster(tmp_path) as cluster:
        settings = load_settings({"MESH_NATS_URL": cluster.url, "MESH_HOME": str(tmp_path)})
        # It knows of one server by its URL, and hears of the others from that.
        first_alone = load_settings({"MESH_NATS_URL": cluster.nodes[0].url, "MESH_HOME": str(tmp_path)})
        async with connect(first_alone, "early") as early:
            config = {"name": "T", "subjects": ["t.>"], "num_replicas": 3, "storage": "file"}
            await early.requests.api("STREAM.CREATE.T", config)
            await cluster.nodes[0].kill()
            await until(lambda: early.is_connected and port_of(early.client.connected_url) != cluster.nodes[0].port)
            await cluster.until_led("T")
            for _ in range(CONNECTIONS):
                async with connect(settings, "late") as late:
                    await late.requests.publish("t.1", b"")
            await move_on(cluster, early)


async def move_on(cluster: Cluster, connection: Connection) -> None:
    """Let the node that it is at come to an end, after the one that was away is back."""
    await cluster.nodes[0].start()
    await cluster.until_serving()
    port = port_of(connection.client.connected_url)
    await next(node for node in cluster.nodes if node.port == port).kill()
    await until(lambda: connection.is_connected and port_of(connection.client.connected_url) != port)
    await cluster.until_led("T")
    await connection.requests.publish("t.2", b"")


def port_of(url: ParseResult | None) -> int | None:
    return url.port if url is not None else None
