"""What waits in BACKLOG, by lane: read beside the work, whenever the stewards say something new."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from contracts import subjects
from contracts.errors import TaskmeshError
from contracts.streams import LANES_BUCKET
from mesh.broker.requests import Requests
from mesh.loop_health import LoopHealth

log = structlog.get_logger("inference_worker.capacity.backlog_watch")

READ_SECONDS_MIN = 1.0
"""The stewards write once a second, while there is any lane that they order."""


async def watch_backlog(requests: Requests, pools: Sequence[str]) -> None:
    """Keep `requests.backlog_lanes` as it is now, until cancelled. A worker of one pool has nothing to share out."""
    changed = asyncio.Event()
    if len(pools) > 1:
        changed.set()
        await requests.on_announced(f"$KV.{LANES_BUCKET.name}.{subjects.BACKLOG_KEY}", lambda _: changed.set())
    health = LoopHealth(log, "backlog.not_read")
    while True:
        await changed.wait()
        changed.clear()
        try:
            await requests.backlog_lanes.refresh()
            health.succeeded()
        except TaskmeshError as error:
            health.failed(error)
        await asyncio.sleep(READ_SECONDS_MIN)
