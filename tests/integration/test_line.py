"""The line to a server of a cluster is left when that server is about to stop, or gives no answer any more."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from mesh.broker.connection import Connection, connect
from mesh.configuration.settings import load_settings
from mesh.errors import BrokerUnavailable
from tests.support.broker import Broker
from tests.support.cluster import Cluster, Node, running_cluster
from tests.support.waiting import until

pytestmark = pytest.mark.integration

LEFT_SECONDS = 5.0
"""The client by itself is thrown out after 10 to 30 s, and finds a dead line after 40 to 60."""


def node_of(cluster: Cluster, connection: Connection) -> Node:
    url = connection.client.connected_url
    assert url is not None
    return next(node for node in cluster.nodes if node.port == url.port)


def is_elsewhere(cluster: Cluster, connection: Connection, before: Node) -> bool:
    return connection.is_connected and node_of(cluster, connection) is not before


async def test_a_client_leaves_a_server_that_is_about_to_stop_or_stands_still(tmp_path: Path) -> None:
    async with running_cluster(tmp_path) as cluster:
        # It is told of one server, and hears of the others from that.
        settings = load_settings({"MESH_NATS_URL": cluster.nodes[0].url, "MESH_HOME": str(tmp_path)})
        async with connect(settings, "test") as connection:
            left: list[str] = []
            connection.on_reconnected(lambda: left.append("once"))
            stopping = node_of(cluster, connection)
            stopping.signal(signal.SIGUSR2)
            await until(lambda: is_elsewhere(cluster, connection, stopping), LEFT_SECONDS)
            assert stopping.is_running
            await connection.requests.api("INFO")
            await stopping.kill()
            await stopping.start()
            await cluster.until_serving()

            still = node_of(cluster, connection)
            still.signal(signal.SIGSTOP)
            await until(lambda: is_elsewhere(cluster, connection, still), LEFT_SECONDS)
            await connection.answers()
            still.signal(signal.SIGCONT)
            assert left == ["once", "once"]


async def test_a_server_without_another_is_not_left(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    await broker.start()
    assert broker.process is not None
    try:
        settings = load_settings({"MESH_NATS_URL": broker.url, "MESH_HOME": str(tmp_path)})
        async with connect(settings, "test") as connection:
            await connection.line.on_lame_duck()
            broker.process.send_signal(signal.SIGSTOP)
            stat = Path(f"/proc/{broker.process.pid}/stat")
            # The signal may come after the answer.
            await until(lambda: stat.read_text().rpartition(") ")[2].startswith("T"))
            # Not "the connection broke", as it would be among others by then.
            with pytest.raises(BrokerUnavailable, match="no answer in time"):
                await connection.requests.api("INFO", timeout_seconds=LEFT_SECONDS)
            broker.process.send_signal(signal.SIGCONT)
            await connection.requests.api("INFO")
    finally:
        broker.process.send_signal(signal.SIGCONT)
        await broker.stop()
