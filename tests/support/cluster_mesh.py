"""A mesh on a cluster: three real nats-servers with three replicas of everything, and real services around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mesh.broker.connection import connect
from mesh.broker.provisioning import apply, find_declared
from mesh.broker.replication import until_current
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable
from tests.support.cluster import Cluster
from tests.support.processes import Mesh
from tests.support.waiting import until

REPLICAS = 3


class ClusterMesh(Mesh):
    """The services, and their cluster."""

    def __init__(self, folder: Path, cluster: Cluster, variables: dict[str, str]) -> None:
        super().__init__(folder, cluster.nodes[0], {"MESH_NATS_URL": cluster.url, **variables})
        self.cluster = cluster


@asynccontextmanager
async def cluster_mesh(folder: Path, *services: str, extra: str = "", **variables: str) -> AsyncIterator[ClusterMesh]:
    """A cluster with all streams, each of three replicas, and these services. `extra`: more lines for each server."""
    cluster = Cluster(folder / "cluster", REPLICAS, extra=extra)
    mesh = ClusterMesh(folder, cluster, variables)
    try:
        await cluster.start()
        async with connect(mesh.settings, "test") as connection:
            await provision(connection.requests, mesh.settings)
        for service in services:
            await mesh.start(service)
        yield mesh
    finally:
        await asyncio.gather(*(process.stop() for process in mesh.processes if process._popen is not None))
        await cluster.stop()


async def provision(requests: Requests, settings: Settings) -> None:
    """Create all streams as `meshctl streams apply` does, and wait until each copy has all there is."""
    wanted = await find_declared(requests, settings)

    async def applied() -> bool:
        try:
            await apply(requests, wanted, update=True)
        except BrokerUnavailable:
            return False  # A stream of three copies may take a busy machine longer than an answer may; it goes on.
        return True

    await until(applied, 60)
    late = await until_current(requests, [stream.name for stream in wanted.streams])
    assert not late, late
