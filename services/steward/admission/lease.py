"""The lease of the mover: one steward moves messages at a time, and says which lanes are ordered.

Two at once do no harm, since a move is idempotent; they would only go by two orders. So the lease is a record that its
holder writes again by compare and set, and that another takes once it has stayed as it is for a while, by that one's
own clock: nobody compares clocks.
"""

from __future__ import annotations

import asyncio
from typing import Final

from contracts.codec import decode, encode
from contracts.errors import InvalidPayload
from contracts.records.backlog import BacklogRecord, LaneBacklog
from contracts.streams import LANES_BUCKET
from contracts.subjects import BACKLOG_KEY
from mesh.broker import key_value
from mesh.broker.key_value import KeyValueEntry
from mesh.broker.requests import Requests
from mesh.clock import lease_clock, now

RENEW_SECONDS: Final = 1.0
TAKEOVER_SECONDS: Final = 5.0
"""A holder that has written nothing for so long is gone, or hangs: five renewals."""
NOBODY: Final = ""
"""The mover of a record whose writer has stopped: whoever looks next takes the lease."""


class MoverLease:
    """The lease, as one steward sees it. Nothing is written while no lane is ordered."""

    def __init__(self, requests: Requests, steward: str) -> None:
        self._requests = requests
        self._steward = steward
        self._revision = 0
        """That of the record that this steward has written, or seen, last."""
        self._seen_at = float("-inf")
        self._written_at = float("-inf")
        self._told: tuple[LaneBacklog, ...] = ()
        self._used_percent = 0
        self._writing = asyncio.Lock()
        self.is_held = False

    async def hold(self, lanes: tuple[LaneBacklog, ...], used_percent: int = 0) -> bool:
        """Take the lease, or keep it, for these lanes. False while another has it. Raises `BrokerUnavailable`."""
        async with self._writing:
            if self.is_held:
                is_recent = lease_clock() - self._written_at < RENEW_SECONDS
                if is_recent and _ordered(lanes) == _ordered(self._told):
                    return True
            elif not await self._is_free():
                return False
            return await self._write(self._steward, lanes, used_percent)

    async def keep(self) -> bool:
        """Keep the lease in the middle of a round, which may take long. False if another has it. Raises as `hold`."""
        return self.is_held and await self.hold(self._told, self._used_percent)

    async def release(self) -> None:
        """Say that no lane is ordered. Raises `BrokerUnavailable`."""
        await self._end(self._steward, ())

    async def hand_over(self) -> None:
        """Leave the lanes to whoever looks next, and need not wait for this lease to grow old. Raises as `release`."""
        await self._end(NOBODY, self._told)

    async def _end(self, mover: str, lanes: tuple[LaneBacklog, ...]) -> None:
        async with self._writing:
            if self.is_held:
                await self._write(mover, lanes, self._used_percent)
                self.is_held = False

    async def _is_free(self) -> bool:
        entry = await key_value.get_from_leader(self._requests, LANES_BUCKET.name, BACKLOG_KEY)
        if entry is None:
            self._revision = 0
            return True
        if entry.revision != self._revision:
            self._revision, self._seen_at = entry.revision, lease_clock()
        self._requests.backlog_lanes.take(entry)
        record = _read(entry)
        if record is None or not record.lanes or record.mover in (NOBODY, self._steward):
            return True
        return lease_clock() - self._seen_at >= TAKEOVER_SECONDS

    async def _write(self, mover: str, lanes: tuple[LaneBacklog, ...], used_percent: int) -> bool:
        value = encode(BacklogRecord(mover=mover, time=now(), lanes=lanes, used_percent=used_percent))
        self.is_held = False  # Unless the broker says so.
        revision = await key_value.compare_and_put(
            self._requests, LANES_BUCKET.name, BACKLOG_KEY, value, self._revision
        )
        if revision is None:
            return False
        self._revision, self._written_at, self.is_held = revision, lease_clock(), True
        self._told, self._used_percent = lanes, used_percent
        self._requests.backlog_lanes.take(KeyValueEntry(value, revision))
        return True


def _ordered(lanes: tuple[LaneBacklog, ...]) -> set[tuple[str, str]]:
    return {(lane.pool, lane.priority) for lane in lanes if not lane.held}


def _read(entry: KeyValueEntry) -> BacklogRecord | None:
    try:
        return decode(entry.value, BacklogRecord) if entry.value else None
    except InvalidPayload:
        return None
