"""Where a process serves its operators: `/health/live`, `/health/ready` and `/metrics`, on an address of its own.

It is there from the start of the process, also while it waits for its broker, to its end, also while it drains. Only
where `MESH_OPS_ADDRESS` is set is any of this imported.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar, Response, get

from mesh.configuration.settings import Address, Settings
from mesh.serving.browsers import Access, guarded, hosts_of
from mesh.serving.http import EXCEPTION_HANDLERS, RequestRefused, address_of, bind, health_routes, serve
from mesh.serving.wellness import Wellness

EXPOSITION_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format."""


@asynccontextmanager
async def operators(settings: Settings, service: str, wellness: Wellness) -> AsyncIterator[Address]:
    """Serve operators during the body. Yields where; raises `SettingsError` if that can't be listened on."""
    assert settings.ops_address is not None  # noqa: S101 - whoever calls has looked
    listener = bind(settings.ops_address, "MESH_OPS_ADDRESS")
    address = address_of(listener)
    app = guarded(_create_app(service, wellness), Access(hosts_of(address, settings.allowed_hosts, ())))
    ending, started = asyncio.Event(), asyncio.Event()

    async def on_started() -> None:
        started.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(serve(app, listener, ending, on_started()))
        await started.wait()
        try:
            yield address
        finally:
            ending.set()


def _create_app(service: str, wellness: Wellness) -> Litestar:
    @get("/metrics", include_in_schema=False)
    async def metrics() -> Response[bytes]:
        return Response(_exposition(), media_type=EXPOSITION_TYPE, headers={"Cache-Control": "no-store"})

    return Litestar(
        route_handlers=[metrics, *health_routes(service, wellness.readiness)],  # type: ignore[list-item]  # handlers of mixed kinds
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_config=None,
        logging_config=None,
        debug=False,
    )


def _exposition() -> bytes:
    try:
        prometheus = importlib.import_module("mesh.telemetry.prometheus")
    except ImportError:
        raise RequestRefused("not-found", "this process has no metrics") from None
    exposition: bytes = prometheus.exposition()
    return exposition
