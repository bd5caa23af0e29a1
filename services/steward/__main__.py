"""`python -m steward`"""

from __future__ import annotations

from mesh.background import background
from mesh.provisioning import declared
from mesh.service import Service, run
from steward.lanes import LaneKeeper
from steward.provisioning import check_provisioning


async def main(service: Service) -> None:
    """Keep lanes and provisioning until told to stop."""
    settings = service.settings
    lanes = LaneKeeper(service.connection, settings.pools)
    wanted = declared(settings)
    async with background(lanes.run(), check_provisioning(service.requests, wanted)):
        await service.ready()
        await service.stopping.wait()


if __name__ == "__main__":
    run("steward", main)
