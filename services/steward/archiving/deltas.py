"""The walk that takes deltas away: those of turns that were completed a day ago, whatever their tasks do meanwhile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from contracts import subjects
from contracts.errors import TaskmeshError
from contracts.journal import events
from contracts.journal.events import decode_event
from contracts.streams import EVENTS
from mesh import faults
from mesh.archive.writing import in_flight
from mesh.broker.direct_get import Stored, read_next
from mesh.broker.milestones import MilestoneReader
from mesh.broker.requests import Requests
from mesh.broker.scanning import ALL
from mesh.telemetry import metrics
from steward.walks.ages import Ages, ages
from steward.walks.walking import First, Walking

log = structlog.get_logger("steward.archiving")

WALK = "deltas"
PIECE_SEQUENCES = 4_096
"""Of EVENTS, taken at once, and gone along in one round: each completed turn costs a purge."""
BEHIND_PACKING = timedelta(hours=1)
"""Where deltas go no sooner than ended tasks are packed, the walk stays so far behind. What ends is packed by then,
with its deltas, and the walk meets what goes on: right beside packing it reads all milestones again, and costs as much.
"""


@dataclass(slots=True)
class DeltasDue:
    """What a piece of the walk came to."""

    cursor: int
    """Sequence of the last milestone that was looked at, and is done with."""
    below: dict[str, int] = field(default_factory=dict)
    """For each `.delta` subject the sequence below which it may be purged."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Subject and error of what was passed over."""
    met_young: bool = False
    """Whether it ended at a milestone that is too young."""


def add_due(due: DeltasDue, milestones: Iterable[Stored], seen: Ages, *, of_ended: bool) -> None:
    """Add which deltas may go by the next milestones of all journals: those of turns whose end is old enough.

    `of_ended`: also where the task has ended since, and is not about to be packed anyway. What is from the future, and
    what can't be read, is passed over: it must not keep the others.
    """
    for stored in milestones:
        if seen.is_young(stored.stored_at):
            due.met_young = True
            return
        due.cursor = stored.sequence
        if seen.is_from_the_future(stored.stored_at):
            continue
        try:
            journal = subjects.parse_journal(stored.subject)
            event = decode_event(stored.payload)
        except TaskmeshError as error:
            due.unreadable.append((stored.subject, str(error)))
            continue
        delta = subjects.journal_delta(journal.tenant, journal.task)
        if isinstance(event, events.TurnCompleted):
            due.below[delta] = stored.sequence
        elif isinstance(event, events.TerminalEvent) and not of_ended:
            due.below.pop(delta, None)


class Deltas:
    """Purges deltas that are old enough, a piece of the walk at a time."""

    def __init__(self, requests: Requests, age: timedelta, pack_age: timedelta, owner: str) -> None:
        self._requests = requests
        # What is packed by then loses its deltas with that.
        self._of_ended = age < pack_age
        self._age = age if self._of_ended else age + min(BEHIND_PACKING, pack_age)
        self._milestones = MilestoneReader(requests)
        self._walking = Walking(requests, WALK, owner, PIECE_SEQUENCES)

    async def round(self, at: datetime) -> bool:
        """Purge what is due of one piece; whether more may be. Raises `TaskmeshError`."""
        seen = ages(at, self._age)
        piece = await self._walking.take(at, lambda after: self._first_behind(after, seen))
        if piece is None:
            return False
        due = DeltasDue(piece.from_ - 1)
        is_over = False
        while not is_over:
            page = await self._milestones.read(due.cursor)
            here = [stored for stored in page.messages if stored.sequence <= piece.to]
            add_due(due, here, seen, of_ended=self._of_ended)
            is_over = due.met_young or not page.more
            if not due.met_young:
                due.cursor = min(page.looked_to, piece.to)
                is_over = is_over or page.looked_to >= piece.to
        await in_flight(due.below.items(), self._purge)
        metrics.kept("deltas", len(due.below))
        for subject, error in due.unreadable:
            log.error("retention.unreadable", subject=subject, error=error)
        await self._walking.give_back(piece, due.cursor, at, met_young=due.met_young)
        return True

    async def lag(self, at: datetime) -> timedelta:
        """How long the oldest event that was not looked at has been due. Raises `TaskmeshError`."""
        first = await read_next(self._requests, EVENTS.name, ALL, await self._walking.undone_from() - 1)
        return ages(at, self._age).overdue(first.stored_at) if first is not None else timedelta()

    async def _first_behind(self, after: int, seen: Ages) -> First | None:
        """The first event behind a cursor, and whether it is due, or passed over."""
        first = await read_next(self._requests, EVENTS.name, ALL, after)
        return None if first is None else First(first.sequence, not seen.is_young(first.stored_at))

    async def _purge(self, due: tuple[str, int]) -> None:
        subject, below = due
        await self._requests.purge(EVENTS.name, subject, below)
        faults.reach("after-purge", "deltas")
