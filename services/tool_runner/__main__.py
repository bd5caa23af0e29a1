"""`python -m tool_runner`"""

from __future__ import annotations

from mesh.serving.heartbeats import heartbeats
from mesh.serving.service import Service, run
from tool_runner.serving import Serving


async def main(service: Service) -> None:
    """Run tool calls until told to stop."""
    serving = Serving(service)
    service.reloading.add(lambda _: None, serving.take)
    async with heartbeats(
        service,
        lambda: serving.calls_running,
        concurrency=service.settings.worker_concurrency,
        tools=lambda: serving.names,
        mcp_servers=lambda: serving.servers,
        changed=serving.servers_changed,
    ):
        await serving.run(service.ready)


if __name__ == "__main__":
    run("tool_runner", main)
