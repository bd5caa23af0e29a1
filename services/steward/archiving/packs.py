"""Packs that are old enough go, and with each what lies elsewhere of its tasks: dead letters, and large results."""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog

from contracts import subjects
from contracts.errors import InvalidPayload
from contracts.records.archive import PackDirectory
from contracts.records.tools import RESULTS_BUCKET
from contracts.streams import ARCHIVE, DEAD_LETTERS
from mesh import faults
from mesh.archive.lookup import directory_of
from mesh.archive.writing import in_flight
from mesh.broker.direct_get import Stored, read_page
from mesh.broker.object_store import purge_objects
from mesh.broker.requests import Requests
from mesh.telemetry import metrics
from steward.walks.walking import First, Walking

log = structlog.get_logger("steward.archiving")

WALK = "packs"
PIECE_SEQUENCES = 16
"""Of ARCHIVE, taken at once, and gone along in one round."""
LOOK_EVERY = timedelta(minutes=1)
LOOK_SHARE = 0.1
"""A look reads a pack, so that nobody looks more often while nothing is due; of a short age no part of it is lost."""
FUTURE = timedelta(minutes=5)
"""What ended so far ahead did so while the broker's clock was wrong: it must not keep those behind it."""


def may_go(ended_until: datetime, cutoff: datetime) -> bool:
    """Whether a pack may go, by when the last of its tasks ended."""
    return ended_until <= cutoff


class Packs:
    """Drops packs whose tasks have all ended long enough ago."""

    def __init__(self, requests: Requests, age: timedelta, owner: str) -> None:
        self._requests = requests
        self._age = age
        self._walking = Walking(requests, WALK, owner, PIECE_SEQUENCES)
        self._looked_at: datetime | None = None
        """When nothing was due."""

    async def round(self, at: datetime) -> bool:
        """Drop what is due of one piece; whether more may be. Raises `TaskmeshError`."""
        rest = min(LOOK_EVERY, self._age * LOOK_SHARE)
        if self._looked_at is not None and timedelta() < at - self._looked_at < rest:
            return False
        cutoff, future = at - self._age, at + FUTURE
        piece = await self._walking.take(at, lambda after: self._first_behind(after, cutoff, future))
        self._looked_at = at if piece is None else None
        if piece is None:
            return False
        cursor, met_young = piece.from_ - 1, False
        while cursor < piece.to:
            stored = await self._next(cursor)
            if stored is None or stored.sequence > piece.to:
                cursor = piece.to if stored is not None else cursor
                break
            met_young = not await self._is_done_with(stored, cutoff, future)
            if met_young:
                break
            cursor = stored.sequence
        await self._walking.give_back(piece, cursor, at, met_young=met_young)
        return True

    async def _next(self, after: int) -> Stored | None:
        page = await read_page(self._requests, ARCHIVE.name, ">", after, 1)
        return page.messages[0] if page.messages else None

    async def _first_behind(self, after: int, cutoff: datetime, future: datetime) -> First | None:
        stored = await self._next(after)
        return None if stored is None else First(stored.sequence, not self._is_young(stored, cutoff, future))

    def _is_young(self, stored: Stored, cutoff: datetime, future: datetime) -> bool:
        directory = _directory(stored)
        ended_until = directory.ended_until if directory is not None else stored.stored_at
        return cutoff < ended_until <= future

    async def _is_done_with(self, stored: Stored, cutoff: datetime, future: datetime) -> bool:
        """Drop a pack, if it is old enough, or pass over it; False if it is too young."""
        if self._is_young(stored, cutoff, future):
            return False
        directory = _directory(stored)
        ended_until = directory.ended_until if directory is not None else stored.stored_at
        if not may_go(ended_until, cutoff):
            return True
        if directory is not None:
            await self._drop_what_belongs_to_it(directory)
            metrics.kept("dropped", len(directory.tasks))
            log.info("pack.dropped", pack=stored.sequence, tasks=len(directory.tasks), ended_until=str(ended_until))
        faults.reach("before-drop", "archive")
        await self._requests.delete_message(ARCHIVE.name, stored.sequence)
        faults.reach("after-drop", "archive")
        return True

    async def _drop_what_belongs_to_it(self, directory: PackDirectory) -> None:
        letters = [
            subjects.dead_letter(each.record.tenant, each.record.id) for each in directory.tasks if each.dead_letters
        ]

        async def drop(subject: str) -> None:
            await self._requests.purge(DEAD_LETTERS.name, subject)
            faults.reach("after-purge", "dead_letters")

        await in_flight(letters, drop)
        await purge_objects(self._requests, RESULTS_BUCKET, [name for each in directory.tasks for name in each.objects])


def _directory(stored: Stored) -> PackDirectory | None:
    """What a pack holds; None of a part of a large task, which its pack comes behind, and of what can't be read."""
    try:
        return directory_of(stored)
    except InvalidPayload as error:
        log.error("retention.unreadable", stream=ARCHIVE.name, sequence=stored.sequence, error=str(error))
        return None
