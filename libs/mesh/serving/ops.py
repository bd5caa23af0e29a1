"""Where a process serves its operators: `/health/live`, `/health/ready` and `/metrics`, on an address of its own.

It is there from the start of the process, also while it waits for its broker, to its end, also while it drains. Only
where `MESH_OPS_ADDRESS` is set is any of this imported.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from litestar import Litestar, Response, get

from mesh.configuration.settings import Address, Settings
from mesh.serving.browsers import Access, guarded, hosts_of
from mesh.serving.http import EXCEPTION_HANDLERS, health_routes, serve
from mesh.serving.listening import address_of, bind
from mesh.serving.wellness import Wellness
from mesh.telemetry import prometheus

if TYPE_CHECKING:
    from mesh.serving.tls import Certificate

EXPOSITION_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format."""


@asynccontextmanager
async def operators(
    settings: Settings, service: str, wellness: Wellness, certificate: Certificate | None = None
) -> AsyncIterator[Address]:
    """Serve operators during the body. Yields where; raises `SettingsError` if that can't be listened on."""
    assert settings.ops_address is not None  # noqa: S101 - whoever calls has looked
    listener = bind(settings.ops_address, "MESH_OPS_ADDRESS")
    address = address_of(listener)
    app = guarded(_create_app(service, wellness), Access(hosts_of(address, settings.allowed_hosts, ())))
    ending, started = asyncio.Event(), asyncio.Event()

    async def on_started() -> None:
        started.set()

    # No task group: what ends a start with one line would leave it as a group of errors.
    tls = certificate.at(address, settings.tls_hsts_days) if certificate is not None else None
    serving = asyncio.create_task(serve(app, listener, ending, on_started(), tls))
    try:
        starting = asyncio.create_task(started.wait())
        await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        if serving.done():
            await serving  # Which raises: it has not come to serve.
        yield address
    finally:
        ending.set()
        await serving


def _create_app(service: str, wellness: Wellness) -> Litestar:
    @get("/metrics", include_in_schema=False)
    async def metrics() -> Response[bytes]:
        text = await asyncio.to_thread(prometheus.exposition)
        return Response(text, media_type=EXPOSITION_TYPE, headers={"Cache-Control": "no-store"})

    return Litestar(
        route_handlers=[metrics, *health_routes(service, wellness.readiness)],  # type: ignore[list-item]  # handlers of mixed kinds
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
