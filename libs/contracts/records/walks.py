"""How far the steward's walks are, in the bucket `walks`."""

from __future__ import annotations

import msgspec

from contracts.fields import Count, Ordinal, Time


class WalkPiece(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences that one steward goes along at present, the first and the last; until then they are its own."""

    from_: Ordinal = msgspec.field(name="from")
    to: Ordinal
    owner: str
    until: Time


class WalkRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A walk along a stream: all up to `cursor` is done, or in one of `pieces`. `again_at`: when it begins anew."""

    cursor: Count = 0
    pieces: list[WalkPiece] = []
    again_at: Time | None = None
