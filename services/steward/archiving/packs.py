"""Packs that are old enough go, and with each what lies elsewhere of its tasks: dead letters, and large results."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

import structlog

from contracts import subjects
from contracts.errors import InvalidPayload
from contracts.records.archive import PackDirectory
from contracts.records.tools import RESULTS_BUCKET
from contracts.streams import ARCHIVE, DEAD_LETTERS
from mesh import faults
from mesh.archive.lookup import directory_of
from mesh.archive.writing import in_flight
from mesh.broker.direct_get import Stored, read_next
from mesh.broker.object_store import purge_objects
from mesh.broker.requests import Requests
from mesh.broker.scanning import ALL
from mesh.telemetry import metrics
from steward.walks.ages import Ages, ages
from steward.walks.walking import First, Walking

log = structlog.get_logger("steward.archiving")

WALK = "packs"
PIECE_SEQUENCES = 16
"""Of ARCHIVE, taken at once, and gone along in one round."""
LOOK_EVERY = timedelta(minutes=1)
LOOK_SHARE = 0.1
"""A look reads a pack, so that nobody looks more often while nothing is due; of a short age no part of it is lost."""


class _Pack(NamedTuple):
    """A message of ARCHIVE. `directory`: None of a part of a large task, which its pack comes behind, and of what can't
    be read; these are as old as the broker says."""

    sequence: int
    directory: PackDirectory | None
    ended_until: datetime


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
        seen = ages(at, self._age)
        piece = await self._walking.take(at, lambda after: self._first_behind(after, seen))
        self._looked_at = at if piece is None else None
        if piece is None:
            return False
        cursor, met_young = piece.from_ - 1, False
        while cursor < piece.to and (pack := await self._next(cursor)) is not None:
            cursor = min(pack.sequence, piece.to)
            if pack.sequence > piece.to:
                break
            met_young = seen.is_young(pack.ended_until)
            if met_young:
                cursor = pack.sequence - 1
                break
            if not seen.is_from_the_future(pack.ended_until):
                await self._drop(pack)
        await self._walking.give_back(piece, cursor, at, met_young=met_young)
        return True

    async def lag(self, at: datetime) -> timedelta:
        """How long the oldest pack has been due to go. Raises `TaskmeshError`."""
        pack = await self._next(await self._walking.undone_from() - 1)
        return ages(at, self._age).overdue(pack.ended_until) if pack is not None else timedelta()

    async def _next(self, after: int) -> _Pack | None:
        stored = await read_next(self._requests, ARCHIVE.name, ALL, after)
        if stored is None:
            return None
        directory = _directory(stored)
        return _Pack(stored.sequence, directory, directory.ended_until if directory else stored.stored_at)

    async def _first_behind(self, after: int, seen: Ages) -> First | None:
        pack = await self._next(after)
        return None if pack is None else First(pack.sequence, not seen.is_young(pack.ended_until))

    async def _drop(self, pack: _Pack) -> None:
        if pack.directory is not None:
            tasks = pack.directory.tasks
            await self._drop_what_belongs_to_it(pack.directory)
            metrics.kept("dropped", len(tasks))
            log.info("pack.dropped", pack=pack.sequence, tasks=len(tasks), ended_until=str(pack.ended_until))
        faults.reach("before-drop", "archive")
        await self._requests.delete_message(ARCHIVE.name, pack.sequence)
        faults.reach("after-drop", "archive")

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
    try:
        return directory_of(stored)
    except InvalidPayload as error:
        log.error("retention.unreadable", stream=ARCHIVE.name, sequence=stored.sequence, error=str(error))
        return None
