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
from mesh.clock import now

RENEW_SECONDS: Final = 1.0
TAKEOVER_SECONDS: Final = 5.0
"""A holder that has written nothing for so long is gone, or hangs: five renewals."""


class MoverLease:
    """The lease, as one steward sees it. Nothing is written while no lane is ordered."""

    def __init__(self, requests: Requests, steward: str) -> None:
        self._requests = requests
        self._steward = steward
        self._revision = 0
        """That of the record that this steward has written, or seen, last."""
        self._seen_at = float("-inf")
        self._written_at = float("-inf")
        self._lanes: frozenset[tuple[str, str]] = frozenset()
        self.is_held = False

    async def hold(self, lanes: tuple[LaneBacklog, ...]) -> bool:
        """Take the lease, or keep it, for these lanes. False while another has it. Raises `BrokerUnavailable`."""
        named = frozenset((lane.pool, lane.priority) for lane in lanes)
        if self.is_held:
            if named == self._lanes and _time() - self._written_at < RENEW_SECONDS:
                return True
        elif not await self._is_free():
            return False
        return await self._write(lanes, named)

    async def release(self) -> None:
        """Say that no lane is ordered. Raises `BrokerUnavailable`."""
        if self.is_held:
            await self._write((), frozenset())
            self.is_held = False

    async def _is_free(self) -> bool:
        entry = await key_value.get_from_leader(self._requests, LANES_BUCKET.name, BACKLOG_KEY)
        if entry is None:
            self._revision = 0
            return True
        if entry.revision != self._revision:
            self._revision, self._seen_at = entry.revision, _time()
        self._requests.backlog_lanes.take(entry)
        record = _read(entry)
        if record is None or not record.lanes or record.mover == self._steward:
            return True
        return _time() - self._seen_at >= TAKEOVER_SECONDS

    async def _write(self, lanes: tuple[LaneBacklog, ...], named: frozenset[tuple[str, str]]) -> bool:
        value = encode(BacklogRecord(mover=self._steward, time=now(), lanes=lanes))
        self.is_held = False  # Unless the broker says so.
        revision = await key_value.compare_and_put(
            self._requests, LANES_BUCKET.name, BACKLOG_KEY, value, self._revision
        )
        if revision is None:
            return False
        self._revision, self._written_at, self._lanes, self.is_held = revision, _time(), named, True
        self._requests.backlog_lanes.take(KeyValueEntry(value, revision))
        return True


def _read(entry: KeyValueEntry) -> BacklogRecord | None:
    try:
        return decode(entry.value, BacklogRecord) if entry.value else None
    except InvalidPayload:
        return None


def _time() -> float:
    return asyncio.get_running_loop().time()
