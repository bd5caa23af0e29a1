"""Counting what journals say: each event once, in the order of EVENTS, by one process at a time.

The record `ledger` in the bucket `walks` is a lease, and a journal of its own: a batch is written there before it is
counted, and the cursor after that. So whoever takes over, whenever that is, finds what was under way, asks the counters
which of them have had it, and counts the rest. A lease may be taken from a process that lives: what that one still
sends is of the same batch, and so a duplicate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import msgspec
import structlog

from contracts.codec import decode, encode
from contracts.errors import InvalidName, InvalidPayload
from contracts.fields import Time
from contracts.identifiers import new_id
from contracts.records.usage import Counter
from contracts.records.walks import CountedBatch, LedgerRecord
from contracts.streams import EVENTS, LEDGER_KEY, WALKS_BUCKET
from mesh import faults
from mesh.broker import key_value
from mesh.broker.direct_get import last_from_leader, read_next
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
"""Of the increments of a batch, as its record has them: one page of events adds to some thousand counters at most."""
BATCH_SHARE: Final = 2
"""A batch has half of a message's room at the most: a small broker takes messages of 64 KiB."""
COUNTED_AT_A_TIME: Final = 128
"""Counters between two looks at the lease: a second to a broker that is 100 ms away."""
_DIGITS: Final = 24
"""What an increment takes in a record beside its counter's subject."""


class LeaseLost(BrokerUnavailable):
    """Another process counts now."""


class _Batch(NamedTuple):
    to: int
    increments: dict[str, int]
    more: bool


class _State(msgspec.Struct):
    messages: int
    first_ts: Time
    last_seq: int


class _Events(msgspec.Struct):
    """The stream that is counted, as its leader tells of it."""

    created: Time
    state: _State

    def spoken_of(self, record: LedgerRecord, noted_at: datetime) -> LedgerRecord:
        """A record that was written then, with sequences of this stream."""
        has_older = self.state.messages > 0 and self.state.first_ts < self.created  # It was restored.
        is_anew = self.created > noted_at and not has_older
        # A power cut may have taken its end: what comes has the sequences of that.
        last = 0 if is_anew else self.state.last_seq
        batch = record.batch and msgspec.structs.replace(record.batch, to=min(record.batch.to, last))
        return msgspec.structs.replace(record, cursor=min(record.cursor, last), batch=batch)


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
        record_of = f"$KV.{WALKS_BUCKET.name}.{LEDGER_KEY}"
        stored = await last_from_leader(self._requests, WALKS_BUCKET.stream_name, record_of)
        record = decode(stored.payload, LedgerRecord) if stored is not None and stored.payload else LedgerRecord()
        is_anothers = record.owner not in ("", self._owner) and record.until is not None and record.until > now()
        if is_anothers and not steal:
            return False
        self._record = record
        self._revision = stored.sequence if stored is not None else 0
        if stored is not None:
            events = decode(encode(await self._requests.api(f"STREAM.INFO.{EVENTS.name}")), _Events)
            self._record = events.spoken_of(record, stored.stored_at)
            if self._record.cursor != record.cursor:
                log.warning("usage.cursor_moved", before=record.cursor, cursor=self._record.cursor)
        return await self._write()

    async def count(self) -> bool:
        """Count what comes next; whether more may be there. Only after `take`. If there is nothing it writes nothing.

        Raises `BrokerError`, `BrokerUnavailable`, `LeaseLost` if another counts: then `take` first.
        """
        if self._revision is None:
            raise LeaseLost("another process counts")
        try:
            return await self._count()
        except Exception:
            # Whether what was sent is stored nobody knows. One that is cancelled may still leave.
            self._revision = None
            raise

    async def keep(self) -> None:
        """Stay the one that counts, while something else is done. Raises `BrokerUnavailable`, `LeaseLost`."""
        await self._renew(LEASE_SECONDS / 3)

    async def make_sure(self) -> None:
        """Nobody else has counted since `take`. Raises `BrokerUnavailable`, `LeaseLost`."""
        await self._renew()

    async def correct(self, increments: dict[Counter, int]) -> None:
        """Add these, which no event adds: what counters lack, or have too much. Raises as `count`."""
        for some in _batches(counters.by_subject(increments), self._batch_bytes_max):
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
        if not batch.more and self._record != self._written:
            # How far that is is said at once: packing waits for it.
            await self._renew()
        return batch.more

    @property
    def _batch_bytes_max(self) -> int:
        return min(BATCH_BYTES_MAX, self._requests.payload_bytes_max // BATCH_SHARE)

    async def _next(self) -> _Batch:
        """As many of the next events as make a batch."""
        at = self.cursor
        if await read_next(self._requests, EVENTS.name, ALL, at) is None:
            return _Batch(at, {}, more=False)
        page = await self._reader.read(at)
        increments: dict[str, int] = {}
        size = 0
        for stored in page.messages:
            try:
                added = counters.by_subject(increments_of(stored.payload))
            except (InvalidPayload, InvalidName) as error:
                # It is for people to look at, and must not keep the others.
                log.error("usage.unreadable", subject=stored.subject, sequence=stored.sequence, error=str(error))
                added = {}
            size += sum(len(subject) + _DIGITS for subject in added if subject not in increments)
            if increments and size > self._batch_bytes_max:
                return _Batch(at, increments, more=True)
            at = stored.sequence
            for subject, increment in added.items():
                increments[subject] = increments.get(subject, 0) + increment
        return _Batch(page.looked_to, increments, page.more)

    async def _add(self, to: int, increments: dict[str, int]) -> None:
        """Write a batch down, and count it."""
        batch = CountedBatch(to=to, batch=new_id(), increments=increments)
        self._record = msgspec.structs.replace(self._record, batch=batch)
        await self._renew()
        faults.reach("before-count", "ledger")
        for some in _parts(increments):
            await self.keep()
            await counters.add(self._requests, some, batch.batch, self._may)
        faults.reach("after-count", "ledger")
        self._record = msgspec.structs.replace(self._record, cursor=to, batch=None)

    async def _finish(self, batch: CountedBatch) -> None:
        """Count what is not counted yet of a batch that somebody has begun with, maybe of another version."""
        missing_in_all = 0
        for some in _parts(batch.increments):
            await self.keep()
            counted = await counters.counted_in(self._requests, some, batch.batch)
            missing = {subject: increment for subject, increment in some.items() if subject not in counted}
            await counters.add(self._requests, missing, batch.batch, self._may)
            missing_in_all += len(missing)
        log.info("usage.batch_finished", batch=batch.batch, counters=len(batch.increments), missing=missing_in_all)
        self._record = msgspec.structs.replace(self._record, cursor=batch.to, batch=None)
        await self._renew()

    def _may(self) -> bool:
        return lease_clock() < self._lease_until

    async def _renew(self, left_seconds: float | None = None) -> None:
        """Write the record; with `left_seconds` only if the lease has been running for longer."""
        if left_seconds is not None and lease_clock() < self._lease_until - LEASE_SECONDS + left_seconds:
            return
        if not await self._write():
            raise LeaseLost("another process counts now")

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


def _batches(increments: Mapping[str, int], bytes_max: int) -> Iterator[dict[str, int]]:
    """As many of them at a time as make a batch."""
    some: dict[str, int] = {}
    size = 0
    for subject, increment in increments.items():
        size += len(subject) + _DIGITS
        if some and size > bytes_max:
            yield some
            some, size = {}, len(subject) + _DIGITS
        some[subject] = increment
    if some:
        yield some


def _parts(increments: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """So many of them at a time as are counted between two looks at the lease."""
    items = list(increments.items())
    for at in range(0, len(items), COUNTED_AT_A_TIME):
        yield dict(items[at : at + COUNTED_AT_A_TIME])
