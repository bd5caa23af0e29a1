"""`python -m stream_edge`"""

from __future__ import annotations

from contracts.records.status import HealthCheck
from mesh.access.doors import opened_door
from mesh.access.entrance import behind
from mesh.access.link_keys import LinkSigning
from mesh.access.modes import check_mode
from mesh.journal.following import Following
from mesh.serving.browsers import Access, guarded, hosts_of
from mesh.serving.heartbeats import heartbeats
from mesh.serving.http import serve
from mesh.serving.listening import address_of, bind
from mesh.serving.service import Service, probe_mesh, run
from stream_edge.app import Edge, create_app


async def main(service: Service) -> None:
    """Serve streams until told to stop."""
    settings = service.settings
    check_mode(settings, settings.edge_address, "MESH_EDGE_ADDRESS")
    listener = bind(settings.edge_address, "MESH_EDGE_ADDRESS")
    edge = Edge(Following(service.connection), settings.edge_streams_max, service.stopping)

    async def probe() -> list[HealthCheck]:
        return await probe_mesh(service)

    address = address_of(listener)
    hosts = hosts_of(address, settings.allowed_hosts, [settings.edge_public_url])
    service.http = str(address)
    service.wellness.ready_by(probe)
    async with (
        opened_door(service, address, "MESH_EDGE_ADDRESS") as door,
        heartbeats(service, lambda: edge.streams, concurrency=settings.edge_streams_max),
    ):
        entered = behind(door, create_app(edge, probe), service, LinkSigning(service.requests))
        app = guarded(entered, Access(hosts, settings.edge_cors_origins))
        await serve(app, listener, service.stopping, service.ready(), service.tls(address))


if __name__ == "__main__":
    run("stream_edge", main)
