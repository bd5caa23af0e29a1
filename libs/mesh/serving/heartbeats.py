"""Heartbeats: what a worker or runner says of itself, in the bucket `workers`, for operators alone."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from contracts import VERSION, subjects
from contracts.codec import encode
from contracts.errors import TaskmeshError
from contracts.records.status import WorkerRecord
from contracts.streams import WORKERS_BUCKET
from mesh.background import background, first_of
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.loop_health import LoopHealth
from mesh.serving.service import Service

log = structlog.get_logger("mesh.serving.heartbeats")

HEARTBEAT_SECONDS = 30.0
"""A third of the bucket's TTL: two may be lost before a worker is gone from the list."""
GOODBYE_SECONDS_MAX = 1.0
"""A stop does not wait for a broker that is away: the record goes by itself."""


@asynccontextmanager
async def heartbeats(
    service: Service,
    running: Callable[[], int],
    *,
    pools: tuple[str, ...] = (),
    tools: Callable[[], tuple[str, ...]] = tuple,
    mcp_servers: Callable[[], dict[str, str | None]] = dict,
    changed: asyncio.Event | None = None,
) -> AsyncIterator[None]:
    """Write this process's record at once and every 30 s beside the body, and delete it at the end.

    `running` says how many steps are in hand, `tools` which tools are served at present, `mcp_servers` which servers
    are away, and why. It is written at once when `changed` is set. One that fails is only said: no work hangs on it.
    """
    started_at = now()
    key = subjects.worker_key(service.worker)

    def record() -> WorkerRecord:
        return WorkerRecord(
            worker=service.worker,
            service=service.name,
            version=VERSION,
            pid=os.getpid(),
            host=platform.node() or sys.platform,
            pools=pools,
            tools=tools(),
            mcp_servers=mcp_servers(),
            concurrency=service.settings.worker_concurrency,
            running=running(),
            started_at=started_at,
            time=now(),
        )

    try:
        async with background(_beat(service.requests, key, record, changed or asyncio.Event())):
            yield
    finally:
        await _say_goodbye(service, key)


async def _beat(requests: Requests, key: str, record: Callable[[], WorkerRecord], changed: asyncio.Event) -> None:
    health = LoopHealth(log, "heartbeat.not_written")
    while True:
        try:
            changed.clear()
            await key_value.put(requests, WORKERS_BUCKET.name, key, encode(record()))
            health.succeeded()
        except TaskmeshError as error:
            health.failed(error)
        await first_of(changed, seconds=HEARTBEAT_SECONDS)


async def _say_goodbye(service: Service, key: str) -> None:
    try:
        if service.connection.is_connected:
            await key_value.delete(service.requests, WORKERS_BUCKET.name, key, GOODBYE_SECONDS_MAX)
    except TaskmeshError as error:
        log.info("heartbeat.not_deleted", error=str(error))
