"""Holding the counters against the journals, those in EVENTS and those that are packed, to the token.

Nobody counts meanwhile: what is compared stands still, up to one sequence of EVENTS. A day can be held against journals
while all that ended since then is kept, which is as long as `MESH_RETENTION_DAYS` says. A month is held against its
days.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

import structlog

from contracts.errors import InvalidPayload
from contracts.records.usage import Counter, days_of, month_of
from contracts.subjects import task_key
from mesh.archive.contents import Unreadable, packed_tasks
from mesh.archive.lookup import milestones
from mesh.broker.direct_get import last_sequence
from mesh.broker.milestones import MilestoneReader
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.ledger import counters
from mesh.ledger.counting import Counting
from mesh.ledger.entries import increments_of

log = structlog.get_logger("mesh.ledger.audit")

MARGIN: Final = timedelta(days=1)
"""A pack goes as a whole, and a day begins somewhere in it."""


class Difference(NamedTuple):
    """A counter that is not what it should be: what journals say, of a month its days, and what it has."""

    counter: Counter
    should_be: int
    is_: int


class Audit(NamedTuple):
    """What a comparison came to. `since`: the first day that was held against journals; `turns`: how many these had.

    `unreadable`: packed tasks and events that are in no sum.
    """

    since: date
    until: date
    turns: int
    differences: list[Difference]
    unreadable: int


class _Journals:
    """What journals say of the days from one on."""

    def __init__(self, first_day: str) -> None:
        self._first_day = first_day
        self.counted: dict[Counter, int] = {}
        self.unreadable = 0

    def add(self, payload: bytes) -> None:
        """Add what an event says."""
        try:
            increments = increments_of(payload)
        except InvalidPayload:
            self.unreadable += 1
            return
        for counter, increment in increments.items():
            if counter.place.period >= self._first_day and counter.place.period != month_of(counter.place.period):
                self.counted[counter] = self.counted.get(counter, 0) + increment


async def audit(requests: Requests, counting: Counting, retention: timedelta) -> Audit:
    """Compare. `counting` is taken, and stays so: while it is, others wait.

    Raises `BrokerError`, `BrokerUnavailable`, `InvalidPayload`.
    """
    target = await last_sequence(requests, "EVENTS")
    while await counting.count() and counting.cursor < target:
        pass
    began_at = now()
    first, last = (began_at - retention + MARGIN).date(), began_at.date()
    days = days_of(first, last)
    if not days:
        return Audit(first, last, 0, [], 0)  # What ended may be gone within a day.
    journals = await _journals(requests, counting, days[0], began_at)
    # What was written with a clock that is ahead lies in a day of its own.
    days = sorted({*days, *(counter.place.period for counter in journals.counted)})
    months = sorted({month_of(day) for day in days})
    is_ = await counters.read(requests, None, days)
    differences = compared(journals.counted, is_)
    before = [day for month in months for day in _days_of_month(month) if day not in days]
    of_days = await counters.read(requests, None, before) | is_ | {each.counter: each.should_be for each in differences}
    differences += compared(by_month(of_days), await counters.read(requests, None, months))
    turns = sum(value for counter, value in journals.counted.items() if counter.what == "turns")
    return Audit(first, last, turns, differences, journals.unreadable)


def compared(should_be: Mapping[Counter, int], is_: Mapping[Counter, int]) -> list[Difference]:
    """The counters that differ, in their order."""
    found = (Difference(each, should_be.get(each, 0), is_.get(each, 0)) for each in sorted({*should_be, *is_}))
    return [each for each in found if each.should_be != each.is_]


def by_month(of_days: Mapping[Counter, int]) -> dict[Counter, int]:
    """What the counters of months should be, by those of days."""
    sums: dict[Counter, int] = {}
    for (place, what), value in of_days.items():
        counter = Counter(place._replace(period=month_of(place.period)), what)
        sums[counter] = sums.get(counter, 0) + value
    return sums


def corrections(differences: list[Difference]) -> dict[Counter, int]:
    """What to add to each counter so that it is what it should be."""
    return {each.counter: each.should_be - each.is_ for each in differences}


async def _journals(requests: Requests, counting: Counting, first_day: str, began_at: datetime) -> _Journals:
    journals = _Journals(first_day)
    seen: dict[str, int] = {}
    reader, at, more = MilestoneReader(requests), 0, True
    while more:
        page = await reader.read(at)
        for stored in page.messages:
            if stored.sequence > counting.cursor:
                more = False
                break
            journals.add(stored.payload)
            # A task may be packed, and purged here, while this goes on: then its pack has what is missing.
            seen[stored.subject.removeprefix("events.").removesuffix(".log")] = stored.sequence
        at = page.looked_to
        more = more and page.more and at < counting.cursor
        await counting.keep()
    first_at = datetime.combine(date.fromisoformat(first_day), datetime.min.time(), UTC)
    async for task in packed_tasks(requests, lambda entry: entry.ended_at >= first_at):
        await counting.keep()
        if isinstance(task, Unreadable):
            log.warning("usage.unreadable", sequence=task.sequence, error=task.error)
            journals.unreadable += 1
            continue
        seen_to = seen.get(task_key(task.tenant, task.task), 0)
        for stored in milestones(task):
            # One that was imported has the sequences of another mesh, and is older than this.
            if stored.sequence > seen_to and stored.stored_at <= began_at:
                journals.add(stored.payload)
    return journals


def _days_of_month(month: str) -> list[str]:
    first = date.fromisoformat(f"{month}-01")
    following = (first + timedelta(days=32)).replace(day=1)
    return days_of(first, following - timedelta(days=1))
