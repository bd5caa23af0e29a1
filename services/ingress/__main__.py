"""`python -m ingress`"""

from __future__ import annotations

from contracts.records.status import HealthCheck
from ingress.app import Ingress, create_app
from ingress.crowding import Crowding
from ingress.figures import figure_rounds
from ingress.fleet_watch import FleetWatch
from ingress.lane_statistics import Lanes
from ingress.pool_availability import Providers
from ingress.storage import Storage
from mesh.access.doors import opened_door
from mesh.access.entrance import behind
from mesh.access.modes import check_mode
from mesh.background import background
from mesh.journal.following import Following
from mesh.journal.submission import Submission
from mesh.serving.browsers import Access, guarded, hosts_of
from mesh.serving.heartbeats import heartbeats
from mesh.serving.http import serve
from mesh.serving.listening import address_of, bind
from mesh.serving.service import Service, probe_mesh, run, silent_streams


async def main(service: Service) -> None:
    """Accept tasks until told to stop."""
    settings = service.settings
    check_mode(settings, settings.ingress_address, "MESH_INGRESS_ADDRESS")
    listener = bind(settings.ingress_address, "MESH_INGRESS_ADDRESS")
    fleet = FleetWatch(service.connection, settings.pools)
    lanes = Lanes(service.requests, settings.pools, fleet)
    crowding = Crowding(service.requests, lanes)
    configuration, valves = settings.configuration, service.valves
    submission = Submission(
        service.requests,
        configuration.pools,
        configuration.tenants,
        crowding,
        valves.limits_of,
        lambda tenant: valves.is_paused(tenant=tenant),
    )
    storage = Storage(service.requests, settings.high_water_percent, settings.filling_percent)
    providers = Providers(service.requests, configuration, lanes, valves)
    following = Following(service.connection)
    ingress = Ingress(settings, service.requests, submission, following, lanes, storage, providers, service.stopping)

    service.reloading.add(lambda _: None, ingress.take)

    async def probe() -> list[HealthCheck]:
        return fleet.marked(storage.marked(await probe_mesh(service)))

    address = address_of(listener)
    hosts = hosts_of(address, settings.allowed_hosts, [settings.ingress_public_url])
    service.http = str(address)
    service.wellness.ready_by(probe)
    service.wellness.add_look(lambda: [*silent_streams(service.connection), *storage.marked([]), *fleet.dead()])
    await valves.open()
    async with (
        opened_door(service, address, "MESH_INGRESS_ADDRESS") as door,
        heartbeats(service),
        ingress.lists.open(),
        background(fleet.run(), lanes.run(), crowding.run(), storage.run(), providers.run(), ingress.budgets.run()),
        background(valves.run(), *figure_rounds(ingress.lists)),
    ):
        app = guarded(
            behind(door, create_app(ingress, probe), service, ingress.signing),
            Access(hosts, settings.ingress_cors_origins, "GET, POST, PUT, DELETE"),
        )
        await serve(app, listener, service.stopping, service.ready(), service.tls(address))
    await ingress.budgets.close()
    await submission.close()


if __name__ == "__main__":
    run("ingress", main)
