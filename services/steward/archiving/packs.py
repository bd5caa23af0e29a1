"""Packs that are old enough go, and with each what lies elsewhere of its tasks: dead letters, and large results."""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog

from contracts import headers, subjects
from contracts.errors import InvalidPayload
from contracts.records.archive import PackDirectory
from contracts.streams import ARCHIVE, DEAD_LETTERS
from mesh import faults
from mesh.archive import pack
from mesh.broker.direct_get import Stored, read_page
from mesh.broker.requests import Requests
from mesh.telemetry import metrics
from steward.archiving.packer import in_flight, purge
from steward.walks.walking import Walking

log = structlog.get_logger("steward.archiving")

WALK = "packs"
PIECE_SEQUENCES = 16
"""Of ARCHIVE, taken at once, and gone along in one round."""
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

    async def round(self, at: datetime) -> bool:
        """Drop what is due of one piece; whether more may be. Raises `TaskmeshError`."""
        cutoff, future = at - self._age, at + FUTURE
        piece = await self._walking.take(at, lambda after, to: self._first_due(after, to, cutoff, future))
        if piece is None:
            return False
        cursor = piece.from_ - 1
        while cursor < piece.to:
            stored = await self._next(cursor)
            if stored is None or stored.sequence > piece.to:
                cursor = piece.to if stored is not None else cursor
                break
            if not await self._is_done_with(stored, cutoff, future):
                break
            cursor = stored.sequence
        await self._walking.give_back(piece, cursor, at)
        return True

    async def _next(self, after: int) -> Stored | None:
        page = await read_page(self._requests, ARCHIVE.name, ">", after, 1)
        return page.messages[0] if page.messages else None

    async def _first_due(self, after: int, to: int | None, cutoff: datetime, future: datetime) -> int | None:
        stored = await self._next(after)
        if stored is None or (to is not None and stored.sequence > to):
            return None
        return None if self._is_young(stored, cutoff, future) else stored.sequence

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
            await purge(self._requests, DEAD_LETTERS.name, subject)
            faults.reach("after-purge", "dead_letters")

        await in_flight(letters, drop)


def _directory(stored: Stored) -> PackDirectory | None:
    """What a pack holds; None of a part of a large task, which its pack comes behind, and of what can't be read."""
    at = stored.headers.get(headers.PACK_DIRECTORY)
    if at is None:
        return None
    try:
        return pack.read_directory(stored.payload, int(at))
    except (InvalidPayload, ValueError) as error:
        log.error("retention.unreadable", stream=ARCHIVE.name, sequence=stored.sequence, error=str(error))
        return None
