"""A mesh on a cluster: three real nats-servers with three replicas of everything, and real services around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mesh.broker.connection import connect
from mesh.broker.provisioning import apply, declared
from mesh.broker.requests import Requests
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
            await apply(connection.requests, declared(mesh.settings), update=False)
            await replicate(connection.requests)
        for service in services:
            await mesh.start(service)
        yield mesh
    finally:
        await asyncio.gather(*(process.stop() for process in mesh.processes if process._popen is not None))
        await cluster.stop()


async def replicate(requests: Requests, replicas: int = REPLICAS) -> None:
    """Give each stream so many replicas, and wait until all of them have all there is."""
    names: list[str] = (await requests.api("STREAM.NAMES"))["streams"]
    for name in names:
        config = (await requests.api(f"STREAM.INFO.{name}"))["config"]
        if config["num_replicas"] != replicas:
            await requests.api(f"STREAM.UPDATE.{name}", {**config, "num_replicas": replicas})

    async def current(name: str) -> bool:
        cluster = (await requests.api(f"STREAM.INFO.{name}")).get("cluster") or {}
        others = cluster.get("replicas") or []
        return bool(cluster.get("leader")) and len(others) == replicas - 1 and all(each["current"] for each in others)

    for name in names:
        await until(lambda name=name: current(name))  # type: ignore[misc]  # mypy can't infer it
