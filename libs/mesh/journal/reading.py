"""Reading a journal: each of its two subjects by itself, joined by sequence into one contiguous piece.

By a filter over both the server would search among the events of all other tasks (ADR-19). Two reads are two moments,
and on a replicated stream perhaps two replicas: where the pieces do not fit, one of them is older, and the stream's
leader says what comes between. Only what it does not have either is a hole.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from contracts import subjects
from contracts.journal.events import decode_head
from mesh.archive.lookup import journal_of
from mesh.broker.direct_get import PAGE_BYTES_MAX, Stored, first_from_leader, last_of_each, read_page
from mesh.broker.requests import Requests

LONG_PAGE_EVENTS_MAX = 2_048
"""Each page is a round trip, and who reads a long journal may have asked its owner to wait meanwhile. Its bytes are
bounded as any other page's."""
ASKED_OF_LEADER_MAX = 8
"""Events of one page that only the leader has: a replica that lags by more is read again later."""


async def read_milestones(requests: Requests, tenant: str, task: str) -> list[Stored]:
    """All of a journal but its deltas. Raises `BrokerUnavailable`."""
    log = subjects.journal_log(tenant, task)
    messages: list[Stored] = []
    more = True
    while more:
        after = messages[-1].sequence if messages else 0
        page, more = await read_page(requests, "EVENTS", log, after, LONG_PAGE_EVENTS_MAX)
        messages += page
    return messages


async def milestones_of(requests: Requests, tenant: str, task: str) -> list[Stored]:
    """The same, of a task that may be packed. Raises `BrokerUnavailable`, `InvalidPayload`."""
    return await read_milestones(requests, tenant, task) or await journal_of(requests, tenant, task)


async def read_last(requests: Requests, tenant: str, task: str) -> list[Stored]:
    """The last event on each of a journal's subjects, so that the last of all is at the end; none if there is none.

    Raises `BrokerUnavailable`.
    """
    return await last_of_each(
        requests, "EVENTS", subjects.journal_log(tenant, task), subjects.journal_delta(tenant, task)
    )


async def read_last_delta(requests: Requests, tenant: str, task: str) -> Stored | None:
    """The last token or progress of a task; None if there is none. Raises `BrokerUnavailable`."""
    found = await last_of_each(requests, "EVENTS", subjects.journal_delta(tenant, task))
    return found[0] if found else None


class TailPage(NamedTuple):
    """Some events in order, without a gap. `hole`: what would have to follow is not in the journal any more."""

    events: list[Stored]
    hole: bool = False


class Place(NamedTuple):
    """A place in a journal: the sequence of an event, 0 for none, and the n of the one that follows."""

    tenant: str
    task: str
    sequence: int
    next_n: int


class JournalTail:
    """What lies behind a place in a journal, page by page.

    `parts`: the subjects that have anything behind it, as far as is known; both if nothing is. `read`: what one of
    the others has there, read already. A page reads so many events and bytes of each subject at most.
    """

    def __init__(
        self,
        requests: Requests,
        place: Place,
        *,
        parts: Iterable[str] | None = None,
        read: Iterable[Stored] = (),
        events_max: int = LONG_PAGE_EVENTS_MAX,
        bytes_max: int = PAGE_BYTES_MAX,
    ) -> None:
        self._requests = requests
        self._filter = subjects.journal(place.tenant, place.task)
        both = (subjects.journal_log(place.tenant, place.task), subjects.journal_delta(place.tenant, place.task))
        self._after = place.sequence
        self._next_n = place.next_n
        self._parts = {name: _Part(name, self._after) for name in (both if parts is None else parts)}
        for stored in read:
            part = self._parts.setdefault(stored.subject, _Part(stored.subject, self._after, more=False))
            part.waiting.append(stored)
        self._events_max = events_max
        self._bytes_max = bytes_max

    async def page(self) -> TailPage:
        """The next events; none: there are no more, or a replica lags. Raises `BrokerUnavailable`."""
        empty = [part for part in self._parts.values() if part.more and not part.waiting]
        await asyncio.gather(*(self._fill(part) for part in empty))
        events: list[Stored] = []
        asked = 0
        for stored in self._joined():
            n = decode_head(stored.payload).n
            while n != self._next_n and stored.sequence > self._after:
                between = await first_from_leader(self._requests, "EVENTS", self._filter, self._after)
                if between is None or decode_head(between.payload).n != self._next_n:
                    return TailPage(events, hole=True)
                if asked == ASKED_OF_LEADER_MAX:
                    self._parts.clear()
                    return TailPage(events)
                asked += 1
                events.append(self._passed(between))
            if stored.sequence > self._after:  # Else the leader had it already.
                events.append(self._passed(stored))
        return TailPage(events)

    def _passed(self, stored: Stored) -> Stored:
        self._after = stored.sequence
        self._next_n += 1
        return stored

    async def _fill(self, part: _Part) -> None:
        page, part.more = await read_page(
            self._requests, "EVENTS", part.subject, part.cursor, self._events_max, self._bytes_max
        )
        part.waiting.extend(page)
        if page:
            part.cursor = page[-1].sequence

    def _joined(self) -> list[Stored]:
        """What waits of both, in order, up to where one of them has to be read on first."""
        end = min((part.cursor for part in self._parts.values() if part.more), default=None)
        joined: list[Stored] = []
        for part in self._parts.values():
            while part.waiting and (end is None or part.waiting[0].sequence <= end):
                joined.append(part.waiting.popleft())
        return sorted(joined, key=lambda stored: stored.sequence)


class PackedTail:
    """The same of a task that is packed: its milestones are at hand."""

    def __init__(self, milestones: Iterable[Stored], place: Place, events_max: int) -> None:
        self._waiting = deque(each for each in milestones if each.sequence > place.sequence)
        self._next_n = place.next_n
        self._events_max = events_max

    async def page(self) -> TailPage:
        """The next events. A hole is where deltas were."""
        events: list[Stored] = []
        while self._waiting and len(events) < self._events_max:
            if decode_head(self._waiting[0].payload).n != self._next_n:
                return TailPage(events, hole=True)
            events.append(self._waiting.popleft())
            self._next_n += 1
        return TailPage(events)


class _Part:
    """What was read of one subject, and not handed on."""

    def __init__(self, subject: str, after: int, *, more: bool = True) -> None:
        self.subject = subject
        self.cursor = after
        self.more = more
        self.waiting: deque[Stored] = deque()
