"""What the stream edge tells a client beside the journal: a gap, a snapshot that stands for it, and previews."""

from __future__ import annotations

import msgspec

from contracts.fields import Count, Id, Ordinal, Tenant


class StreamGap(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="stream.gap"):
    """Sent by the stream edge alone, never stored: events that the client has not seen can't be delivered.

    `from` is the cursor that the client had. `to` is the last sequence that the snapshot after this covers; it is
    lower than `from` if the stream was recreated.
    """

    task: Id
    tenant: Tenant
    from_sequence: Count = msgspec.field(name="from")
    to_sequence: Count = msgspec.field(name="to")


class SnapshotTurn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A turn's text so far."""

    turn: Ordinal
    text: str
    reasoning: str | None = None
    completed: bool


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="snapshot"):
    """Sent by the stream edge after a gap, never stored: the state up to and with event `n`."""

    task: Id
    tenant: Tenant
    n: Count
    status: str
    turns: list[SnapshotTurn]


class OutputPreview(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output.preview"):
    """Sent to who asks for previews, never stored: what a model has said since event `n`, while nothing can be stored.

    `text` is all of it, and stands in for that of the preview before. It is gone with the next event that is stored:
    that may hold the same text, more of it, or none, where its worker has died.
    """

    task: Id
    tenant: Tenant
    n: Count
    turn: Ordinal
    text: str
