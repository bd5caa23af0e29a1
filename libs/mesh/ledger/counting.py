"""Counting what journals say: each event once, in the order of EVENTS, by one process at a time.

The record `ledger` in the bucket `walks` is a lease, and a journal of its own: a batch is written there before it is
counted, and the cursor after that. So whoever takes over, whenever that is, finds what was under way, asks the counters
which of them have had it, and counts the rest. A lease may be taken from a process that lives: what that one still
sends is of the same batch, and so a duplicate.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final, NamedTuple

import msgspec
import structlog

from contracts.codec import decode, encode
from contracts.errors import InvalidPayload
from contracts.identifiers import new_id
from contracts.records.usage import Counter, counter_of
from contracts.records.walks import CountedBatch, LedgerRecord
from contracts.streams import EVENTS, LEDGER_KEY, WALKS_BUCKET
from mesh.broker import key_value
from mesh.broker.direct_get import last_sequence, read_next
from mesh.broker.milestones import MilestoneReader
from mesh.broker.requests import Requests
from mesh.broker.scanning import ALL
from mesh.clock import lease_clock, now
from mesh.errors import BrokerUnavailable
from mesh.ledger import counters
from mesh.ledger.entries import increments_of

log = structlog.get_logger("mesh.ledger.counting")

LEASE_SECONDS: Final = 10.0
"""How long another waits for one that is gone. It is renewed at a third of that."""
BATCH_BYTES_MAX: Final = 256 * 1024
"""Of the increments of a batch, as its record has them: one page of events adds to some thousand counters at most, but
a model's name may be long."""


class _Batch(NamedTuple):
    to: int
    increments: dict[Counter, int]
    more: bool


class Counting:
    """Counts for one process. `owner`: its name."""

    def __init__(self, requests: Requests, owner: str) -> None:
        self._requests = requests
        self._owner = owner
        self._record = LedgerRecord()
        self._revision: int | None = None
        """Of the record as it was written last; None: it is not this process's to write."""
        self._lease_until = 0.0
        self._written = LedgerRecord()
        self._reader = MilestoneReader(requests)

    @property
    def cursor(self) -> int:
        """Up to which sequence of EVENTS all is counted."""
        return self._record.cursor

    async def take(self, *, steal: bool = False) -> bool:
        """Begin, or go on, to be the one that counts; False while another is. `steal`: take it from that one.

        Raises `BrokerError`, `BrokerUnavailable`, `InvalidPayload`.
        """
        if self._revision is not None:
            return True
        entry = await key_value.get_from_leader(self._requests, WALKS_BUCKET.name, LEDGER_KEY)
        record = decode(entry.value, LedgerRecord) if entry is not None and entry.value else LedgerRecord()
        is_anothers = record.owner not in ("", self._owner) and record.until is not None and record.until > now()
        if is_anothers and not steal:
            return False
        self._record = record
        self._revision = entry.revision if entry is not None else 0
        if record.cursor > await last_sequence(self._requests, EVENTS.name):
            # The stream was made anew, without what was in it.
            log.warning("usage.begins_anew", cursor=record.cursor)
            self._record = msgspec.structs.replace(record, cursor=0)
        return await self._write()

    async def count(self) -> bool:
        """Count what comes next; whether more may be there. Only after `take`.

        Raises `BrokerError`, `BrokerUnavailable`: then `take` first.
        """
        if self._revision is None:
            raise BrokerUnavailable("another process counts")
        try:
            return await self._count()
        except Exception:
            # Whether what was sent is stored nobody knows. One that is cancelled may still leave.
            self._revision = None
            raise

    async def keep(self) -> None:
        """Stay the one that counts, while something else is done. Raises `BrokerUnavailable` if another is."""
        await self._renew(LEASE_SECONDS / 3)

    async def correct(self, increments: dict[Counter, int]) -> None:
        """Add these, which no event adds: what counters lack, or have too much. Raises as `count`."""
        items = list(increments.items())
        while items:
            some: dict[Counter, int] = {}
            while items and _size(some) < BATCH_BYTES_MAX:
                counter, increment = items.pop()
                some[counter] = increment
            await self._add(self.cursor, some)
        await self._renew()

    async def leave(self) -> None:
        """Let others count at once. Raises `BrokerError`, `BrokerUnavailable`."""
        revision, self._revision = self._revision, None
        if revision is not None and self._record.batch is None:
            self._record = msgspec.structs.replace(self._record, owner="", until=None)
            await key_value.compare_and_set(
                self._requests, WALKS_BUCKET.name, LEDGER_KEY, encode(self._record), revision
            )

    async def _count(self) -> bool:
        if self._record.batch is not None:
            await self._finish(self._record.batch)
        batch = await self._next()
        if batch.increments:
            await self._add(batch.to, batch.increments)
        else:
            self._record = msgspec.structs.replace(self._record, cursor=batch.to)
        if not batch.more:
            # How far that is is said at once: packing waits for it.
            is_said = self._written.cursor == self.cursor and self._written.batch is None
            await self._renew(LEASE_SECONDS / 3 if is_said else None)
        return batch.more

    async def _next(self) -> _Batch:
        """As many of the next events as make a batch."""
        at = self.cursor
        if await read_next(self._requests, EVENTS.name, ALL, at) is None:
            return _Batch(at, {}, more=False)
        page = await self._reader.read(at)
        increments: dict[Counter, int] = {}
        size = 0
        for stored in page.messages:
            try:
                added = increments_of(stored.payload)
            except InvalidPayload as error:
                # It is for people to look at, and must not keep the others.
                log.error("usage.unreadable", subject=stored.subject, sequence=stored.sequence, error=str(error))
                added = {}
            size += _size(added)
            if increments and size > BATCH_BYTES_MAX:
                return _Batch(at, increments, more=True)
            at = stored.sequence
            for counter, increment in added.items():
                increments[counter] = increments.get(counter, 0) + increment
        return _Batch(page.looked_to, increments, page.more)

    async def _add(self, to: int, increments: dict[Counter, int]) -> None:
        """Write a batch down, and count it."""
        by_subject = {counter.subject: increment for counter, increment in increments.items()}
        batch = CountedBatch(to=to, batch=new_id(), increments=by_subject)
        self._record = msgspec.structs.replace(self._record, batch=batch)
        await self._renew()
        await counters.add(self._requests, increments, batch.batch, self._may)
        self._record = msgspec.structs.replace(self._record, cursor=to, batch=None)

    async def _finish(self, batch: CountedBatch) -> None:
        """Count what is not counted yet of a batch that somebody has begun with."""
        increments = {counter_of(subject): increment for subject, increment in batch.increments.items()}
        counted = await counters.counted_in(self._requests, increments, batch.batch)
        missing = {counter: increment for counter, increment in increments.items() if counter not in counted}
        await counters.add(self._requests, missing, batch.batch, self._may)
        log.info("usage.batch_finished", batch=batch.batch, counters=len(increments), missing=len(missing))
        self._record = msgspec.structs.replace(self._record, cursor=batch.to, batch=None)
        await self._renew()

    def _may(self) -> bool:
        return lease_clock() < self._lease_until

    async def _renew(self, left_seconds: float | None = None) -> None:
        """Write the record; with `left_seconds` only if the lease has been running for longer."""
        if left_seconds is not None and lease_clock() < self._lease_until - LEASE_SECONDS + left_seconds:
            return
        if not await self._write():
            raise BrokerUnavailable("another process counts now")

    async def _write(self) -> bool:
        """Write the record, as this process's; False, and it is no more, if another has written it."""
        until = now() + timedelta(seconds=LEASE_SECONDS)
        record = msgspec.structs.replace(self._record, owner=self._owner, until=until)
        began_at, revision, self._revision = lease_clock(), self._revision, None
        if revision is None:
            return False
        self._revision = await key_value.compare_and_put(
            self._requests, WALKS_BUCKET.name, LEDGER_KEY, encode(record), revision
        )
        if self._revision is None:
            return False
        self._record = self._written = record
        self._lease_until = began_at + LEASE_SECONDS
        return True


async def counted_up_to(requests: Requests) -> int | None:
    """Up to which sequence of EVENTS all is counted; None where nobody has begun. Raises `BrokerUnavailable`."""
    entry = await key_value.get(requests, WALKS_BUCKET.name, LEDGER_KEY)
    return decode(entry.value, LedgerRecord).cursor if entry is not None and entry.value else None


def _size(increments: dict[Counter, int]) -> int:
    """About how many bytes they take in a record."""
    return sum(len(counter.place.model) * 3 + 160 for counter in increments)
