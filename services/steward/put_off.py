"""What workers have put off: it is brought back once its tenant may go on. And records of valves that have ended go."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Final

import structlog

from contracts import subjects
from contracts.codec import decode
from contracts.errors import TaskmeshError
from contracts.records.valves import TenantLimits, Valve
from contracts.streams import VALVES_BUCKET
from contracts.valve_keys import LIMITS, VALVES_PREFIX, parse_valve_key
from mesh.background import first_of, repeatedly
from mesh.broker.requests import Requests
from mesh.broker.scanning import Scan
from mesh.clock import now
from mesh.loop_health import LoopHealth
from mesh.valves.parking import Returns
from mesh.valves.watched import Valves

log = structlog.get_logger("steward.put_off")

UNHEARD_SECONDS: Final = 30.0
"""How often it is looked for if nothing is heard: an announcement may be lost. Costs one request."""
AGAIN_SECONDS: Final = 1.0
"""When to go on where a queue was full, or the broker away."""
TIDY_SECONDS: Final = 600.0
KEPT: Final = timedelta(hours=1)
"""How long a record is kept that has ended, or was deleted: nobody reads it any more."""


class PutOff:
    """Brings back, and tidies, until cancelled."""

    def __init__(self, requests: Requests, valves: Valves) -> None:
        self._requests = requests
        self._valves = valves
        self._returns = Returns(requests, valves)
        self._wake = asyncio.Event()
        valves.on_changed(self._on_changed)

    async def run(self) -> None:
        """Bring back what may go on, as soon as it may."""
        await self._requests.on_announced(subjects.BACKLOG_GREW, lambda _: self._wake.set())
        health = LoopHealth(log, "put_off.unavailable")
        while True:
            self._wake.clear()
            pause_seconds = UNHEARD_SECONDS
            try:
                moved = await self._returns.round()
                health.succeeded()
                if moved:
                    log.info("turns.brought_back", turns=moved)
            except TaskmeshError as error:
                health.failed(error)
                pause_seconds = AGAIN_SECONDS
            await first_of(self._wake, seconds=pause_seconds)

    async def tidy(self) -> None:
        """Take away records that have ended, now and then."""
        await repeatedly(self._tidy, TIDY_SECONDS, LoopHealth(log, "valves.untidy"))

    async def _tidy(self) -> None:
        scan, after, more = Scan(self._requests, VALVES_BUCKET.stream_name), 0, True
        before = now() - KEPT
        while more:
            messages, more = await scan.page(after)
            for message in messages:
                after = message.sequence
                key = message.subject.removeprefix(VALVES_PREFIX)
                if message.stored_at <= before and not _holds_after(key, message.payload, before):
                    # Only what was seen: somebody may be writing there.
                    await self._requests.purge(VALVES_BUCKET.stream_name, message.subject, below=message.sequence + 1)

    def _on_changed(self) -> None:
        self._returns.begin_anew()
        self._wake.set()


def _holds_after(key: str, payload: bytes, at: datetime) -> bool:
    """Whether a record held later than at a time. What this version can't read is left where it is."""
    if not payload:
        return False
    try:
        kind, _ = parse_valve_key(key)
        record = decode(payload, TenantLimits) if kind == LIMITS else decode(payload, Valve)
    except TaskmeshError:
        return True
    return record.until is None or record.until > at
