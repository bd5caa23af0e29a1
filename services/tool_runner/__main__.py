"""`python -m tool_runner`"""

from __future__ import annotations

from contracts.streams import tool_consumer
from mesh.heartbeats import heartbeats
from mesh.service import Service, run
from mesh.work import LaneSpec, WorkLoop
from tool_runner.handler import CallHandler
from tool_runner.tools import TOOLS

BATCH_MAX = 8


async def main(service: Service) -> None:
    """Run tool calls until told to stop."""
    lanes = [LaneSpec("TOOLS", tool_consumer(name), BATCH_MAX) for name in TOOLS]
    loop = WorkLoop(service.connection, service.settings, lanes, CallHandler(TOOLS), service.worker)
    async with heartbeats(service, lambda: loop.steps_running, tools=tuple(TOOLS)):
        await service.ready()
        await loop.run(service.stopping)


if __name__ == "__main__":
    run("tool_runner", main)
