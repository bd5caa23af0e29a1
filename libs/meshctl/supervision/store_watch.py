"""Tells whoever asks on `storage.room` how much room the embedded broker's store has.

The broker does not tell how full its disk is, and only a process on its machine can see. That is `meshctl up`, which
runs it. It answers over core NATS: an answer takes no room, and so comes from a broker whose disk is full, too.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import structlog
from nats.aio.msg import Msg

from contracts.codec import encode
from contracts.records.storage import StoreRoom
from contracts.subjects import STORE_ROOM
from mesh.broker.connection import connect
from mesh.broker.embedded import SUPERVISOR
from mesh.configuration.settings import Settings
from mesh.loop_health import LoopHealth
from meshctl.supervision.store_room import measure

log = structlog.get_logger("meshctl.store_watch")

LOOK_SECONDS: Final = 1.0
"""How old an answer is at most: at 100 MB a second the tenth of a disk of 2 GiB is gone in two."""
LOOK_SHARE_MAX: Final = 0.02
"""The part of the time that is spent looking: a store of many thousand files is looked at less often."""


async def watch_store(settings: Settings, store: Path, room: StoreRoom, serving: asyncio.Event) -> None:
    """Answer for this store until cancelled; `room` is what it had at the start. `serving` is set once it does."""
    latest = room
    health = LoopHealth(log, "store.unreadable")

    async def answer(message: Msg) -> None:
        await message.respond(encode(latest))

    async with connect(settings, "meshctl", SUPERVISOR) as connection:
        await connection.client.subscribe(STORE_ROOM, cb=answer)
        await connection.client.flush()
        serving.set()
        while True:
            began_at = time.monotonic()
            try:
                latest = await asyncio.to_thread(measure, store, room.share_bytes)
                health.succeeded()
            except OSError as error:
                health.failed(error)
            took_seconds = time.monotonic() - began_at
            await asyncio.sleep(max(LOOK_SECONDS, took_seconds / LOOK_SHARE_MAX))
