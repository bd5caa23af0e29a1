"""Which lanes the stewards order: what is new there goes by BACKLOG. By their record in the bucket `lanes`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.records.backlog import BacklogRecord, LaneBacklog
from contracts.streams import LANES_BUCKET
from contracts.subjects import BACKLOG_KEY, LaneSubject
from mesh.errors import BrokerError, BrokerUnavailable

if TYPE_CHECKING:
    from mesh.broker.key_value import KeyValueEntry
    from mesh.broker.requests import Requests

FRESH_SECONDS: Final = 1.0
"""How long what was read counts for who looks."""
TOLD_SECONDS: Final = 0.05
"""For so long stewards who were told of a lane and tenant are not told again."""
TOLD_MAX: Final = 10_000
OLD_SECONDS: Final = 10.0
"""A record that stays as it is for so long is that of a steward which is gone, and no other has come: who waited in
BACKLOG for one would wait for ever, while workers idle."""


class BacklogLanes:
    """The record as it was read last. One that could not be read says nothing."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._looked_at = self._changed_at = float("-inf")
        self._revision = 0
        self._record: BacklogRecord | None = None
        self._told: dict[tuple[str, str], LaneBacklog] = {}
        self._lanes: frozenset[tuple[str, str]] = frozenset()
        self._told_at: dict[LaneSubject, float] = {}

    @property
    def record(self) -> BacklogRecord | None:
        """What the stewards say; None if there is none, or it is old."""
        return self._record if _time() - self._changed_at < OLD_SECONDS else None

    def has(self, pool: str, priority: str) -> bool:
        """Whether a lane is ordered by the stewards, as far as is known."""
        return bool(self._lanes) and (pool, priority) in self._lanes and self.record is not None

    def is_news(self, lane: LaneSubject) -> bool:
        """Whether stewards are to be told that something has come there: in a flood not of each piece of it.

        Whoever was told looks at it again before `TOLD_SECONDS` have passed, or soon after.
        """
        at = _time()
        if at - self._told_at.get(lane, float("-inf")) < TOLD_SECONDS:
            return False
        if len(self._told_at) >= TOLD_MAX:
            self._told_at.clear()
        self._told_at[lane] = at
        return True

    @property
    def used_percent(self) -> int:
        """How much of BACKLOG was taken a moment ago."""
        return self.record.used_percent if self.record is not None else 0

    def waiting_of(self, pool: str, priority: str, tenant: str) -> int:
        """How many messages of a tenant waited in a lane a moment ago; 0 of one that has few beside many others."""
        lane = self.told(pool, priority)
        return 0 if lane is None else lane.tenants.get(tenant, 0)

    def told(self, pool: str, priority: str) -> LaneBacklog | None:
        """What the stewards say of a lane of which something waits, held or not; None of any other. Costs a look-up."""
        lane = self._told.get((pool, priority)) if self._told else None
        return lane if lane is not None and self.record is not None else None

    async def look(self, pool: str, priority: str) -> bool:
        """The same, of a moment ago: it reads the record if that was not done lately. Never fails."""
        if _time() - self._looked_at >= FRESH_SECONDS:
            self._looked_at = _time()
            # Who has no right to read it, or can't at present, goes by TASKS.
            with contextlib.suppress(BrokerError, BrokerUnavailable):
                await self.refresh()
        return self.has(pool, priority)

    async def refresh(self) -> None:
        """Read the record. Raises `BrokerUnavailable`."""
        from mesh.broker import key_value  # noqa: PLC0415 - it stands on requests, which have this

        self._looked_at = _time()
        self.take(await key_value.get(self._requests, LANES_BUCKET.name, BACKLOG_KEY))

    def take(self, entry: KeyValueEntry | None) -> None:
        """Go by what was read."""
        if entry is None or entry.value is None or entry.revision == self._revision:
            return
        self._revision, self._changed_at = entry.revision, _time()
        try:
            self._record = decode(entry.value, BacklogRecord)
        except InvalidPayload:
            self._record = None  # Another version's.
        lanes = self._record.lanes if self._record is not None else ()
        self._told = {(lane.pool, lane.priority): lane for lane in lanes}
        self._lanes = frozenset((lane.pool, lane.priority) for lane in lanes if not lane.held)


def _time() -> float:
    return asyncio.get_running_loop().time()
