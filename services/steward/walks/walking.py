"""Taking pieces of a walk from the bucket `walks`, and giving them back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog

from contracts.codec import decode, encode
from contracts.errors import InvalidPayload
from contracts.records.walks import WalkPiece, WalkRecord
from contracts.streams import WALKS_BUCKET
from mesh import faults
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.errors import BrokerUnavailable
from steward.walks import rules

log = structlog.get_logger("steward.walks")

LEASE = timedelta(seconds=45)
"""How long a piece is a steward's after it has said so. It says so again before each batch, and rests between them."""
AGAIN_EVERY = timedelta(hours=24)
"""A walk that has come to its end begins anew after that, for the sake of what it has passed over."""
TRIES_MAX = 20
"""Stewards that write the same record at the same time; one gets in each time."""


class First(NamedTuple):
    """The first message behind a cursor, and whether it is worth to begin with it now."""

    sequence: int
    is_due: bool


FirstBehind = Callable[[int], Awaitable[First | None]]
"""The first message behind a cursor; None if there is none."""


class Walking:
    """One walk, as one steward goes along it. `piece_sequences`: how much is taken at once."""

    def __init__(self, requests: Requests, name: str, owner: str, piece_sequences: int) -> None:
        self._requests = requests
        self._name = name
        self._owner = owner
        self._piece_sequences = piece_sequences

    async def take(self, at: datetime, first_behind: FirstBehind) -> WalkPiece | None:
        """A piece that nobody has, in which something is due; None if there is none. Raises `BrokerUnavailable`."""
        for _ in range(TRIES_MAX):
            walk, revision = await self._read()
            # What somebody has left goes first, and under its own beginning: who begins elsewhere in it is not told by
            # the fence of what its former owner has packed there, or still packs.
            left, piece = await self._left_by_others(walk, at, first_behind)
            anew = rules.begun_anew(left, at, AGAIN_EVERY) if piece is None else None
            if anew is not None:
                await self._write(anew, revision)
                continue
            piece = piece or await self._new(left, at, first_behind)
            if piece is None:
                if left != walk:
                    await self._write(left, revision)  # So that nobody looks into them again.
                return None
            after, mine = rules.taken(left, piece, self._owner, at + LEASE)
            if await self._write(after, revision):
                return mine
        return None

    async def undone_from(self) -> int:
        """The first sequence that nobody has gone past. Raises `BrokerUnavailable`."""
        walk, _ = await self._read()
        return min([walk.cursor + 1, *(piece.from_ for piece in walk.pieces)])

    async def keep(self, piece: WalkPiece, at: datetime) -> bool:
        """Say that a piece is still in work; False if another steward has it. Raises `BrokerUnavailable`."""
        return await self._change(
            lambda walk: rules.taken(walk, piece, self._owner, at + LEASE)[0] if rules.owns(walk, piece) else None
        )

    async def give_back(self, piece: WalkPiece, done_to: int, at: datetime, *, met_young: bool) -> None:
        """Say how far a piece is done: to its end, to that of the messages, or to the first one that is too young.

        Raises `BrokerUnavailable`.
        """
        await self._change(
            lambda walk: (
                rules.given_back(walk, piece, done_to, at, met_young=met_young) if rules.owns(walk, piece) else None
            )
        )

    async def leave(self, piece: WalkPiece, at: datetime) -> None:
        """Say that this steward goes, wherever it is in a piece. Raises `BrokerUnavailable`."""
        await self._change(lambda walk: rules.left(walk, piece, at) if rules.owns(walk, piece) else None)

    async def _left_by_others(
        self, walk: WalkRecord, at: datetime, first_behind: FirstBehind
    ) -> tuple[WalkRecord, WalkPiece | None]:
        """A piece whose owner is gone, if something in it is due; the walk without those in which nothing is left."""
        for orphan in rules.orphans(walk, at):
            first = await first_behind(orphan.from_ - 1)
            if first is None or first.sequence > orphan.to:
                walk = rules.dissolved(walk, orphan, at)
            elif first.is_due:
                return walk, orphan
        return walk, None

    async def _new(self, walk: WalkRecord, at: datetime, first_behind: FirstBehind) -> WalkPiece | None:
        first = await first_behind(walk.cursor) if len(walk.pieces) < rules.PIECES_MAX else None
        if first is None or not first.is_due:
            return None
        to = first.sequence + self._piece_sequences - 1
        return WalkPiece(from_=first.sequence, to=to, owner=self._owner, until=at)

    async def _change(self, change: Callable[[WalkRecord], WalkRecord | None]) -> bool:
        for _ in range(TRIES_MAX):
            walk, revision = await self._read()
            after = change(walk)
            if after is None:
                return False
            if await self._write(after, revision):
                return True
        raise BrokerUnavailable(f"the walk {self._name} can't be written: others are faster each time")

    async def _read(self) -> tuple[WalkRecord, int]:
        entry = await key_value.get(self._requests, WALKS_BUCKET.name, self._name)
        if entry is None or not entry.value:
            return WalkRecord(), entry.revision if entry is not None else 0
        try:
            return decode(entry.value, WalkRecord), entry.revision
        except InvalidPayload as error:
            # It only saves work: whatever stands there, the walk begins anew.
            log.warning("walk.unreadable", walk=self._name, error=str(error))
            return WalkRecord(), entry.revision

    async def _write(self, walk: WalkRecord, revision: int) -> bool:
        faults.reach("before-walk", self._name)
        written = await key_value.compare_and_set(self._requests, WALKS_BUCKET.name, self._name, encode(walk), revision)
        faults.reach("after-walk", self._name)
        return written
