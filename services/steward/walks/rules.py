"""Who has which piece of a walk: taking, keeping and giving back. Pure.

A piece is a lease that saves work. It keeps nobody from doing anything: what is done in it may be done twice.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from msgspec.structs import replace

from contracts.records.walks import WalkPiece, WalkRecord

PIECES_MAX = 64
"""Pieces at once: as many stewards, or pieces that were left."""


def orphans(walk: WalkRecord, at: datetime) -> list[WalkPiece]:
    """Pieces whose owners are gone, or have left them, the first ones first."""
    return [piece for piece in walk.pieces if piece.until <= at]


def taken(walk: WalkRecord, piece: WalkPiece, owner: str, until: datetime) -> tuple[WalkRecord, WalkPiece]:
    """The walk once somebody has that piece, an orphan of it or a new one behind its cursor."""
    mine = replace(piece, owner=owner, until=until)
    others = [each for each in walk.pieces if each.from_ != piece.from_]
    return replace(walk, cursor=max(walk.cursor, piece.to), pieces=_sorted([*others, mine])), mine


def owns(walk: WalkRecord, piece: WalkPiece) -> bool:
    """Whether a piece is still its owner's."""
    return any((each.from_, each.owner) == (piece.from_, piece.owner) for each in walk.pieces)


def given_back(
    walk: WalkRecord, piece: WalkPiece, done_to: int, at: datetime, *, met_young: bool = False
) -> WalkRecord:
    """The walk once its owner has gone along a piece up to `done_to`, where the messages end, or are too young.

    One of which something is left is an orphan, as a whole: by its beginning others know what was packed of it. Of the
    last one what is left lies ahead, whether it is there or has still to come.
    """
    others = [each for each in walk.pieces if each.from_ != piece.from_]
    if done_to >= piece.to:
        return replace(walk, pieces=others)
    if walk.cursor == piece.to:
        return replace(walk, cursor=max(done_to, piece.from_ - 1), pieces=others)
    return left(walk, piece, at) if met_young else replace(walk, pieces=others)


def left(walk: WalkRecord, piece: WalkPiece, at: datetime) -> WalkRecord:
    """The walk once the owner of a piece goes without having come to its end: another may take it at once."""
    others = [each for each in walk.pieces if each.from_ != piece.from_]
    return replace(walk, pieces=_sorted([*others, replace(piece, until=at)]))


def dissolved(walk: WalkRecord, orphan: WalkPiece, at: datetime) -> WalkRecord:
    """The walk without an orphan in which nothing is left. The last one reaches into what is still to come."""
    return given_back(walk, orphan, orphan.from_ - 1 if walk.cursor == orphan.to else orphan.to, at)


def begun_anew(walk: WalkRecord, at: datetime, every: timedelta) -> WalkRecord | None:
    """The walk from the beginning on, if it is time for that: what was passed over is looked at again."""
    if walk.again_at is None:
        return replace(walk, again_at=at + every)
    if at < walk.again_at or any(piece.until > at for piece in walk.pieces):
        return None
    return WalkRecord(again_at=at + every)


def _sorted(pieces: list[WalkPiece]) -> list[WalkPiece]:
    return sorted(pieces, key=lambda each: each.from_)
