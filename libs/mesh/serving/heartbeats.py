"""Heartbeats: what each process says of itself, in the bucket `workers`, for operators alone."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
import structlog

from contracts import VERSION, subjects
from contracts.build import BUILD
from contracts.codec import encode
from contracts.errors import TaskmeshError
from contracts.records.status import HealthCheck, PoolCapacity, WorkerRecord
from contracts.streams import WORKERS_BUCKET
from mesh.background import background, first_of
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.clock import MESH_CLOCK, now
from mesh.loop_health import LoopHealth
from mesh.serving.service import Service

log = structlog.get_logger("mesh.serving.heartbeats")

HEARTBEAT_SECONDS = 30.0
"""A third of the bucket's TTL: two may be lost before a worker is gone from the list."""
LOOK_SECONDS = 1.0
"""How often it is looked whether there is something new to say. Nothing is sent for that."""
CLOCK_STEP_SECONDS = 0.5
"""A clock that has moved by so much against the broker's is something new."""
PLACES_CHANGE_PART = 0.2
"""Places that have changed by more than this are something new."""
GOODBYE_SECONDS_MAX = 1.0
"""A stop does not wait for a broker that is away: the record goes by itself."""


class PlacesTold(NamedTuple):
    """How many places each pool has, and what its servers bear: as in `WorkerRecord`."""

    places: dict[str, int]
    capacity: dict[str, PoolCapacity]


@asynccontextmanager
async def heartbeats(
    service: Service,
    running: Callable[[], int] = lambda: 0,
    *,
    concurrency: int | None = None,
    pools: tuple[str, ...] = (),
    tools: Callable[[], tuple[str, ...]] = tuple,
    mcp_servers: Callable[[], dict[str, str | None]] = dict,
    places: Callable[[], PlacesTold] = lambda: PlacesTold({}, {}),
    changed: asyncio.Event | None = None,
) -> AsyncIterator[None]:
    """Write this process's record at once and every 30 s beside the body, and delete it at the end.

    `running` says how many steps are in hand, of `concurrency` at most, and `places` how many of those each pool gets;
    `tools` which tools are served at present, `mcp_servers` which servers are away, and why. It is written at once when
    `changed` is set, and within a second when something in it has changed but `running`. One that fails is only said:
    no work hangs on it.
    """
    service.running = running
    started_at = now()
    key = subjects.worker_key(service.worker)

    def record() -> WorkerRecord:
        told = places()
        return WorkerRecord(
            worker=service.worker,
            service=service.name,
            version=VERSION,
            pid=os.getpid(),
            host=platform.node() or sys.platform,
            pools=pools,
            tools=tools(),
            mcp_servers=mcp_servers(),
            concurrency=concurrency,
            places=told.places,
            capacity=told.capacity,
            running=running(),
            started_at=started_at,
            time=now(),
            build=BUILD,
            configuration=service.configuration,
            clock_ahead_seconds=round(MESH_CLOCK.own_clock_ahead_seconds(), 3) if MESH_CLOCK.is_learnt else None,
            checks=service.wellness.ailments(),
            draining=service.wellness.is_draining,
            http=service.http or service.ops,
        )

    try:
        async with background(_beat(service.requests, key, record, changed or asyncio.Event())):
            yield
    finally:
        await _say_goodbye(service, key)


async def _beat(requests: Requests, key: str, record: Callable[[], WorkerRecord], changed: asyncio.Event) -> None:
    health = LoopHealth(log, "heartbeat.not_written")
    while True:
        told = record()
        try:
            changed.clear()
            await key_value.put(requests, WORKERS_BUCKET.name, key, encode(told))
            health.succeeded()
        except TaskmeshError as error:
            health.failed(error)
        await _until_news(told, record, changed)


async def _until_news(told: WorkerRecord, record: Callable[[], WorkerRecord], changed: asyncio.Event) -> None:
    """Wait until the record is due again, or says something else than `told`."""
    due_at = asyncio.get_running_loop().time() + HEARTBEAT_SECONDS
    while not changed.is_set() and not _is_news(record(), told):
        left_seconds = due_at - asyncio.get_running_loop().time()
        if left_seconds <= 0:
            return
        await first_of(changed, seconds=min(LOOK_SECONDS, left_seconds))


def _is_news(record: WorkerRecord, told: WorkerRecord) -> bool:
    step = abs((record.clock_ahead_seconds or 0.0) - (told.clock_ahead_seconds or 0.0))
    return (
        step >= CLOCK_STEP_SECONDS
        or _what_matters(record) != _what_matters(told)
        or _has_moved(record.places, told.places)
        or _has_moved(_limits(record), _limits(told))
    )


def _limits(record: WorkerRecord) -> dict[str, int]:
    return {pool: capacity.limit for pool, capacity in record.capacity.items()}


def _has_moved(places: dict[str, int], told: dict[str, int]) -> bool:
    """Whether places have changed by enough to be told at once: they follow servers all the time."""
    return places.keys() != told.keys() or any(
        abs(count - told[pool]) > PLACES_CHANGE_PART * max(told[pool], 1) for pool, count in places.items()
    )


def _what_matters(record: WorkerRecord) -> WorkerRecord:
    """Without what changes all the time: how many steps run, the times, for how long a loop has failed, and places."""
    names = [HealthCheck(name=check.name, ok=check.ok) for check in record.checks]
    return msgspec.structs.replace(
        record, running=0, clock_ahead_seconds=None, time=record.started_at, checks=names, places={}, capacity={}
    )


async def _say_goodbye(service: Service, key: str) -> None:
    try:
        if service.connection.is_connected:
            await key_value.delete(service.requests, WORKERS_BUCKET.name, key, GOODBYE_SECONDS_MAX)
    except TaskmeshError as error:
        log.info("heartbeat.not_deleted", error=str(error))
