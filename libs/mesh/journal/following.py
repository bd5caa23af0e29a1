"""Following a task: its stored events, then its live ones, as one contiguous stream.

The broker republishes every stored event with its sequence. A follower subscribes there first, then reads the
journal from its cursor, and joins the two by sequence. What it hands on is always a contiguous piece of the
journal: a hole in `n`, an overflow of its buffer or a lost connection sends it back to the journal; what the
journal no longer has is said aloud, by `stream.gap` and `snapshot`. It keeps no consumer at the broker, and a
slow reader costs at most its buffer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts import headers, subjects
from contracts.codec import encode
from contracts.errors import TaskmeshError
from contracts.journal import edge_events
from contracts.journal.events import TERMINAL_TYPES, decode_head
from mesh.archive.lookup import journal_of
from mesh.background import is_seen
from mesh.broker.connection import Connection
from mesh.broker.direct_get import (
    Stored,
    find_sequence,
    first_traceparent,
    journal_exists,
    last_sequence,
    read_page,
)
from mesh.errors import BrokerUnavailable
from mesh.journal.journal import Journal
from mesh.journal.live_buffer import Live, LiveBuffer, read_preview
from mesh.journal.reading import JournalTail, PackedTail, Place, TailPage, read_last
from mesh.task.records import snapshot_turns

log = structlog.get_logger("mesh.journal.following")

PAGE_EVENTS_MAX = 128
READS_MAX = 64
"""Journal pages read at once by one process, so that a storm of reconnects queues here and not at the broker."""
PAGE_BYTES_MAX = 128 * 1024
BROKER_RETRY_SECONDS = 0.25
LOOK_SECONDS_MIN = 1.0
"""How long after an event the journal is looked into; if nothing is there, after twice as long, and so on. What a
stream's leader had stored when it died, and not yet told, nobody is told."""
STALE_RETRY_SECONDS = 0.02
STALE_READS_UNTIL_PACKED = 5
"""Reads in vain until the archive is looked into."""
STALE_READS_MAX = 250
"""Reads in vain of what was seen live: anybody may publish on a live subject, and what is made up never comes."""


class Followed(NamedTuple):
    """What a reader gets. `sequence` is the cursor after it; None where the cursor stays (`stream.gap`)."""

    sequence: int | None
    type: str
    payload: bytes

    @property
    def is_end(self) -> bool:
        """Whether the task has ended with this event."""
        return self.type in TERMINAL_TYPES


class TaskNotFound(TaskmeshError):
    """The tenant has no such task, as far as the stream's leader knows."""

    code = "not-found"


@dataclass(slots=True)
class _Subject:
    """A subscription that all followers of one task in this process share."""

    buffers: set[LiveBuffer]
    subscribed: asyncio.Task[Subscription] = field(init=False)
    """No follower's own: it goes on, whoever of them leaves."""


class Following:
    """All followers of a process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._requests = connection.requests
        self._subjects: dict[str, _Subject] = {}
        self._reads = asyncio.Semaphore(READS_MAX)
        connection.on_reconnected(self._on_reconnected)

    async def open(self, tenant: str, task: str, after: int, *, previews: bool = False) -> Follower | None:
        """Follow a task from behind sequence `after` (0: from its first event); with `output.preview` if asked for.

        None if the cursor is at or behind the end: there is nothing more to come. Raises `TaskNotFound`,
        `BrokerUnavailable`, `InvalidName`.
        """
        subject = subjects.live(tenant, task)
        buffer = LiveBuffer(previews=previews)
        await self._subscribe(subject, buffer)
        follower = Follower(self, tenant, task, subject, buffer)
        try:
            if await follower._start(after):
                return follower
        except BaseException:
            await follower.close()
            raise
        await follower.close()
        return None

    async def page(self, tail: JournalTail | PackedTail) -> TailPage:
        """Read a page of a journal, not too many at once."""
        async with self._reads:
            return await tail.page()

    async def first_milestone(self, tenant: str, task: str, after: int) -> Stored | None:
        """Read the first milestone of a journal behind a sequence, not too many at once."""
        async with self._reads:
            page = await read_page(self._requests, "EVENTS", subjects.journal_log(tenant, task), after, messages_max=1)
        return page.messages[0] if page.messages else None

    async def last(self, tenant: str, task: str) -> list[Stored]:
        """Read the last event of each part of a journal, the very last at the end, not too many at once."""
        async with self._reads:
            return await read_last(self._requests, tenant, task)

    async def traceparent(self, tenant: str, task: str) -> str | None:
        """The trace that a task was submitted in; None if its journal tells none. Raises `BrokerUnavailable`."""
        async with self._reads:
            return await first_traceparent(self._requests, tenant, task)

    async def _subscribe(self, subject: str, buffer: LiveBuffer) -> None:
        """Join the followers of a task. Its history may only be read once the subscription is there."""
        entry = self._subjects.get(subject)
        if entry is None:
            entry = self._subjects[subject] = _Subject(set())
            entry.subscribed = asyncio.create_task(self._begin(subject, entry))
            entry.subscribed.add_done_callback(is_seen)
        entry.buffers.add(buffer)
        try:
            # Of all that wait for it: one who leaves must not take it from the others.
            await asyncio.shield(entry.subscribed)
        except BaseException:
            await self._unsubscribe(subject, buffer)
            raise

    async def _begin(self, subject: str, entry: _Subject) -> Subscription:
        buffers = entry.buffers

        def on_message(message: Msg) -> None:
            _, _, tenant, task, part = message.subject.split(".")
            if part == subjects.PREVIEW:
                preview = read_preview(tenant, task, message.data)
                if preview is not None:
                    for each in buffers:
                        each.put_preview(preview)
                return
            try:
                head = decode_head(message.data)
                sequence = int((message.headers or {})[headers.SEQUENCE])
            except (TaskmeshError, KeyError, ValueError):
                # Not a republished event: anybody may publish on a subject. The journal is the truth.
                return
            live = Live(sequence, head.n, head.type, message.data)
            for each in buffers:
                each.put(live)

        try:
            subscription = await self._connection.client.listen(subject, on_message)
        except BaseException as error:
            # Who comes from now on tries it anew.
            if self._subjects.get(subject) is entry:
                del self._subjects[subject]
            if isinstance(error, Exception):
                raise BrokerUnavailable(f"can't subscribe: {error}") from error
            raise
        if not buffers:
            await subscription.unsubscribe()  # All have left meanwhile.
        return subscription

    async def _unsubscribe(self, subject: str, buffer: LiveBuffer) -> None:
        entry = self._subjects.get(subject)
        if entry is None or buffer not in entry.buffers:
            return
        entry.buffers.discard(buffer)
        if not entry.buffers:
            del self._subjects[subject]
            if entry.subscribed.done() and not entry.subscribed.exception():
                await entry.subscribed.result().unsubscribe()

    def _on_reconnected(self) -> None:
        # What was republished while the connection was away is lost here; the journal has it.
        for entry in self._subjects.values():
            for buffer in entry.buffers:
                buffer.overflow()


class Follower:
    """One reader's way through a journal. Close it, or use `batches` to its end."""

    def __init__(self, following: Following, tenant: str, task: str, subject: str, buffer: LiveBuffer) -> None:
        self.tenant = tenant
        self.task = task
        self._following = following
        self._requests = following._requests
        self._filter = subjects.journal(tenant, task)
        self._subject = subject
        self._buffer = buffer
        self._cursor = 0
        self._next_n = 0
        self._lasts: list[Stored] = []
        """The journal's last events as they were when this was opened."""
        self._packed: list[Stored] = []
        """Its milestones, once it is packed: nothing of it is in EVENTS any more."""
        self._must_reach = -1
        """n of an event that was seen live behind a hole."""
        self._look_seconds = LOOK_SECONDS_MIN
        self._gap = False
        self._ended = False

    async def close(self) -> None:
        """Give the subscription back."""
        await self._following._unsubscribe(self._subject, self._buffer)

    async def _start(self, after: int) -> bool:
        """Find out where `after` lies. False if there is nothing behind it any more."""
        self._cursor = after
        self._lasts = await self._following.last(self.tenant, self.task)
        last = self._lasts[-1] if self._lasts else None
        if last is None and not await journal_exists(self._requests, self.tenant, self.task):
            if not await self._is_packed():
                raise TaskNotFound(f"there is no task {self.task}")
            self._lasts = self._packed[-1:]
            last = self._packed[-1]
        if after == 0:
            return True
        at_cursor = last if last and last.sequence == after else await self._at(after)
        if at_cursor is not None and self._is_ours(at_cursor):
            head = decode_head(at_cursor.payload)
            self._next_n = head.n + 1
            return head.type not in TERMINAL_TYPES
        # The cursor is no event of this journal: another's, purged, of a stream that was recreated, or made up.
        if last is not None and last.sequence < after and decode_head(last.payload).type in TERMINAL_TYPES:
            # Beyond the end of the stream: it was recreated, and the reader must know.
            self._gap = after > await last_sequence(self._requests, "EVENTS")
            return self._gap
        first = await self._first_milestone(after)
        self._gap = first is None or decode_head(first.payload).n != 0
        return True

    async def _is_packed(self) -> bool:
        """Whether the task is in the archive; from then on its history comes from there."""
        self._packed = await journal_of(self._requests, self.tenant, self.task)
        return bool(self._packed)

    async def _at(self, sequence: int) -> Stored | None:
        """The event at a sequence, of whatever task."""
        if self._packed:
            return next((each for each in self._packed if each.sequence == sequence), None)
        # The reader may have it from a replica that is ahead of the one that answers here.
        return await find_sequence(self._requests, "EVENTS", sequence)

    async def _first_milestone(self, after: int) -> Stored | None:
        """The first milestone behind a cursor. A journal begins with one."""
        if self._packed:
            return next((each for each in self._packed if each.sequence > after), None)
        return await self._following.first_milestone(self.tenant, self.task, after)

    def _is_ours(self, message: Stored) -> bool:
        return message.subject.rpartition(".")[0] == self._filter.rpartition(".")[0]

    async def batches(self, idle_seconds: float) -> AsyncGenerator[list[Followed], None]:
        """Yield events in order until the task has ended; an empty batch whenever nothing came for a while.

        While the broker is away batches are empty; the reader need not know.
        """
        try:
            while not self._ended:
                try:
                    async for batch in self._from_journal():
                        yield batch
                except BrokerUnavailable as error:
                    log.warning("follow.broker_unavailable", task=self.task, error=str(error))
                    await asyncio.sleep(BROKER_RETRY_SECONDS)
                    yield []
                    continue
                async for batch in self._from_live(idle_seconds):
                    yield batch
        finally:
            await self.close()

    async def _from_journal(self) -> AsyncGenerator[list[Followed], None]:
        """Everything stored behind the cursor, as of now; what comes meanwhile is heard live."""
        self._buffer.reset()
        lasts, self._lasts = self._lasts or await self._following.last(self.tenant, self.task), []
        if not lasts and await self._is_packed():
            lasts = self._packed[-1:]
        last_n = decode_head(lasts[-1].payload).n if lasts else -1
        end_n = max(self._must_reach, last_n)
        # One who follows tokens has read the milestones: so a storm of reconnects reads one subject alone.
        parts = [each.subject for each in lasts if each.sequence > self._cursor] if end_n == last_n else None
        tail: JournalTail | PackedTail | None = None
        stale_reads = 0
        while not self._ended and (self._gap or self._next_n <= end_n):
            if self._gap:
                yield await self._over_the_gap()
                tail = None
                continue
            if tail is None:
                tail = self._tail(parts, events_max=min(PAGE_EVENTS_MAX, end_n - self._next_n + 1))
            page = await self._following.page(tail)
            self._gap = page.hole
            batch = self._up_to_the_end(page.events)
            if batch:
                yield batch
            elif not page.hole:
                # A replica that lags behind the one that knew of more, which will come; unless it was made up. Or the
                # task has been packed since.
                stale_reads += 1
                if stale_reads == STALE_READS_UNTIL_PACKED and await self._is_packed():
                    tail = None
                    continue
                if stale_reads > STALE_READS_MAX:
                    log.warning("follow.nothing_there", task=self.task, n=self._next_n, end=end_n)
                    break
                tail = parts = None
                await asyncio.sleep(STALE_RETRY_SECONDS)
        self._must_reach = -1

    def _tail(self, parts: list[str] | None, events_max: int) -> JournalTail | PackedTail:
        place = Place(self.tenant, self.task, self._cursor, self._next_n)
        if self._packed:
            return PackedTail(self._packed, place, events_max)
        return JournalTail(self._requests, place, parts=parts, events_max=events_max, bytes_max=PAGE_BYTES_MAX)

    def _up_to_the_end(self, messages: list[Stored]) -> list[Followed]:
        """What is handed on of a page: all of it, or up to the task's end."""
        batch: list[Followed] = []
        for message in messages:
            head = decode_head(message.payload)
            batch.append(self._advance(message.sequence, head.n, head.type, message.payload))
            if batch[-1].is_end:
                break
        return batch

    async def _from_live(self, idle_seconds: float) -> AsyncGenerator[list[Followed], None]:
        """Live events as they come; returns when the journal must be read again."""
        while not self._ended:
            taken = await self._buffer.take(min(self._look_seconds, idle_seconds))
            preview = self._buffer.take_preview()
            if preview is not None and preview.n == self._next_n - 1 and not taken:
                yield [Followed(None, "output.preview", preview.payload)]
            if not taken and preview is None:
                # Overflowed, or quiet: core messages carry no promise, so a quiet reader looks into the journal too.
                if not self._buffer.overflowed:
                    self._look_seconds = min(2 * self._look_seconds, idle_seconds)
                    yield []
                return
            self._look_seconds = LOOK_SECONDS_MIN
            batch: list[Followed] = []
            hole = False
            for live in taken:
                if live.sequence <= self._cursor:
                    continue
                if live.n != self._next_n:
                    hole = True
                    self._must_reach = live.n
                    break
                batch.append(self._advance(live.sequence, live.n, live.type, live.payload))
                if batch[-1].is_end:
                    break
            if batch:
                yield batch
            if hole:
                return

    def _advance(self, sequence: int, n: int, event_type: str, payload: bytes) -> Followed:
        self._cursor = sequence
        self._next_n = n + 1
        followed = Followed(sequence, event_type, payload)
        self._ended = followed.is_end
        return followed

    async def _over_the_gap(self) -> list[Followed]:
        """Say what is lost, and what it came to. The end of a task is never part of a snapshot: it follows."""
        journal = await Journal.load(self._requests, self.tenant, self.task)
        state = journal.state
        covered, n = (state.revision, state.next_n - 1) if state.terminal is None else state.before_end
        gap = edge_events.StreamGap(task=self.task, tenant=self.tenant, from_sequence=self._cursor, to_sequence=covered)
        snapshot = edge_events.Snapshot(
            task=self.task, tenant=self.tenant, n=max(n, 0), status=state.status, turns=snapshot_turns(state)
        )
        log.info("follow.gap", task=self.task, after=self._cursor, covered=covered)
        self._cursor, self._next_n, self._gap = covered, n + 1, False
        return [Followed(None, "stream.gap", encode(gap)), Followed(covered, "snapshot", encode(snapshot))]
