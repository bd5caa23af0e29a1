"""`python -m steward`"""

from __future__ import annotations

from mesh.background import background
from mesh.provisioning import declared
from mesh.service import Service, run
from steward.control import ControlLoop
from steward.lanes import LaneKeeper
from steward.provisioning import check_provisioning
from steward.retention import Retention


async def main(service: Service) -> None:
    """Carry out commands, purge what is due, keep lanes and provisioning, until told to stop."""
    settings = service.settings
    lanes = LaneKeeper(service.connection, settings.pools)
    control = ControlLoop(service.connection, settings, service.worker)
    retention = Retention(service.requests, settings)
    wanted = declared(settings)
    async with background(control.run(), retention.run(), lanes.run(), check_provisioning(service.requests, wanted)):
        await service.ready()
        await service.stopping.wait()


if __name__ == "__main__":
    run("steward", main)
