"""Holding the counters against the journals, those in EVENTS and those that are packed, to the token.

Nobody counts meanwhile: what is compared stands still, up to one sequence of EVENTS. A day can be held against journals
while all that ended since then is kept, which is as long as `MESH_RETENTION_DAYS` says, and while its counters are. A
month is held against its days, while it has them all. Replicas may be behind: the leader has the last word.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

import structlog

from contracts import subjects
from contracts.errors import InvalidPayload
from contracts.records.usage import Counter, days_of, is_month, month_of
from contracts.streams import EVENTS
from mesh.archive.contents import Unreadable, packed_tasks
from mesh.archive.lookup import milestones
from mesh.broker.direct_get import first_from_leader, last_sequence
from mesh.broker.milestones import MilestoneReader
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.ledger import counters
from mesh.ledger.counting import Counting
from mesh.ledger.entries import increments_of

log = structlog.get_logger("mesh.ledger.audit")

MARGIN: Final = timedelta(days=1)
"""A pack goes as a whole, and a day begins somewhere in it."""
DAYS_HELD: Final = timedelta(days=counters.DAYS_KEPT - 1)
"""Stewards let go of what is older, each when it comes to it."""
COUNTERS_AT_A_TIME: Final = 512
"""Asked for at the leader between two looks at the lease."""


class Difference(NamedTuple):
    """A counter that is not what it should be: what journals say, of a month its days, and what it has."""

    counter: Counter
    should_be: int
    is_: int


class Audit(NamedTuple):
    """What a comparison came to. `since`: the first day that was held against journals; `turns`: how many these had.

    It is after `until` where no day could be. `unreadable`: packed tasks and events that are in no sum.
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
            if counter.place.period >= self._first_day and not is_month(counter.place.period):
                self.counted[counter] = self.counted.get(counter, 0) + increment


async def audit(requests: Requests, counting: Counting, retention: timedelta) -> Audit:
    """Compare. `counting` is taken, and stays so: while it is, others wait.

    Raises `BrokerError`, `BrokerUnavailable`, `InvalidPayload`.
    """
    target = await last_sequence(requests, EVENTS.name)
    while await counting.count() and counting.cursor < target:
        pass
    began_at = now()
    first, last = (began_at - min(retention, DAYS_HELD) + MARGIN).date(), began_at.date()
    if first > last:
        return Audit(first, last, 0, [], 0)  # What ended may be gone within a day.
    # A clock may have been ahead, or have been believed to be.
    days = {*days_of(first, last + MARGIN)}
    journals = await _journals(requests, counting, first.isoformat(), began_at)
    days |= {counter.place.period for counter in journals.counted}
    differences = compared(journals.counted, await _read(requests, counting, days))
    months = {month for month in map(month_of, days) if _days_of_month(month)[0] >= (last - DAYS_HELD).isoformat()}
    before = {day for month in months for day in _days_of_month(month)} - days
    of_months = by_month(await _read(requests, counting, before) | journals.counted, months)
    differences += compared(of_months, await _read(requests, counting, months))
    differences = await _confirmed(requests, counting, differences)
    await counting.make_sure()
    turns = sum(value for counter, value in journals.counted.items() if counter.what == "turns")
    return Audit(first, last, turns, differences, journals.unreadable)


def compared(should_be: Mapping[Counter, int], is_: Mapping[Counter, int]) -> list[Difference]:
    """The counters that differ, in their order."""
    found = (Difference(each, should_be.get(each, 0), is_.get(each, 0)) for each in sorted({*should_be, *is_}))
    return [each for each in found if each.should_be != each.is_]


def by_month(of_days: Mapping[Counter, int], months: Collection[str]) -> dict[Counter, int]:
    """What the counters of these months should be, by those of days."""
    sums: dict[Counter, int] = {}
    for (place, what), value in of_days.items():
        counter = Counter(place._replace(period=month_of(place.period)), what)
        if counter.place.period in months:
            sums[counter] = sums.get(counter, 0) + value
    return sums


def corrections(differences: list[Difference]) -> dict[Counter, int]:
    """What to add to each counter so that it is what it should be."""
    return {each.counter: each.should_be - each.is_ for each in differences}


async def _journals(requests: Requests, counting: Counting, first_day: str, began_at: datetime) -> _Journals:
    journals = _Journals(first_day)
    seen: dict[str, int] = {}
    reader, at = MilestoneReader(requests), 0
    while at < counting.cursor:
        page = await reader.read(at)
        found, at = page.messages, page.looked_to
        if not page.more:
            # That there is no more is one replica's word.
            following = await first_from_leader(requests, EVENTS.name, subjects.EVENTS_LOG, at)
            found = [*found, following] if following is not None else found
            at = following.sequence if following is not None else counting.cursor
        for stored in found:
            if stored.sequence > counting.cursor:
                break
            journals.add(stored.payload)
            # A task may be packed, and purged here, while this goes on: then its pack has what is missing.
            seen[stored.subject.removeprefix("events.").removesuffix(".log")] = stored.sequence
        await counting.keep()
    first_at = datetime.combine(date.fromisoformat(first_day), datetime.min.time(), UTC)
    async for task in packed_tasks(requests, lambda entry: entry.ended_at >= first_at):
        await counting.keep()
        if isinstance(task, Unreadable):
            log.warning("usage.unreadable", sequence=task.sequence, error=task.error)
            journals.unreadable += 1
            continue
        seen_to = seen.get(subjects.task_key(task.tenant, task.task), 0)
        for stored in milestones(task):
            # One that was imported has the sequences of another mesh, and is older than this.
            if stored.sequence > seen_to and stored.stored_at <= began_at:
                journals.add(stored.payload)
    return journals


async def _read(requests: Requests, counting: Counting, periods: Collection[str]) -> dict[Counter, int]:
    """The counters of these periods, while nobody counts."""
    values: dict[Counter, int] = {}
    left = sorted(periods)
    while left:
        some, left = left[: counters.PERIODS_AT_ONCE_MAX], left[counters.PERIODS_AT_ONCE_MAX :]
        values |= await counters.read(requests, None, some)
        await counting.keep()
    return values


async def _confirmed(requests: Requests, counting: Counting, found: list[Difference]) -> list[Difference]:
    """Those that the leader sees as well: what was counted last may not be at each replica yet."""
    confirmed: list[Difference] = []
    for at in range(0, len(found), COUNTERS_AT_A_TIME):
        some = found[at : at + COUNTERS_AT_A_TIME]
        is_ = await counters.read_from_leader(requests, [each.counter for each in some])
        told = (each._replace(is_=is_[each.counter]) for each in some)
        confirmed += [each for each in told if each.should_be != each.is_]
        await counting.keep()
    return confirmed


def _days_of_month(month: str) -> list[str]:
    first = date.fromisoformat(f"{month}-01")
    return days_of(first, first.replace(day=monthrange(first.year, first.month)[1]))
