"""Records of valves, and of limits for a while, that have ended: they are taken away."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import structlog

from contracts.errors import TaskmeshError
from contracts.records.valves import decode_valve
from contracts.streams import VALVES_BUCKET
from contracts.valve_keys import VALVES_PREFIX
from mesh.background import repeatedly
from mesh.broker.requests import Requests
from mesh.broker.scanning import Scan
from mesh.clock import now
from mesh.loop_health import LoopHealth

log = structlog.get_logger("steward.valve_records")

TIDY_SECONDS: Final = 600.0
KEPT: Final = timedelta(hours=1)
"""How long a record is kept that has ended, or was deleted: nobody reads it any more."""


class ValveRecords:
    """The records of the bucket."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def run(self) -> None:
        """Take away those that have ended, now and then, until cancelled."""
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


def _holds_after(key: str, payload: bytes, at: datetime) -> bool:
    """Whether a record held later than at a time. What this version can't read is left where it is."""
    if not payload:
        return False
    try:
        record = decode_valve(key, payload)
    except TaskmeshError:
        return True
    return record.until is None or record.until > at
