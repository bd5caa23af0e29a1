"""How far the steward's walks are, and its ledger, in the bucket `walks`."""

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


class CountedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What is being counted at once, by the subjects of its counters. `to`: the sequence of its last event."""

    to: Count
    batch: str
    increments: dict[str, int]


class LedgerRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far EVENTS is counted: all up to `cursor` is, and `batch` may be in part. Until then it is its owner's."""

    cursor: Count = 0
    owner: str = ""
    until: Time | None = None
    batch: CountedBatch | None = None
