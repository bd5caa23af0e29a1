"""Packed tasks: what a pack in ARCHIVE holds, and where the bucket `archive` says that a task lies."""

from __future__ import annotations

import msgspec

from contracts.fields import Count, Id, Ordinal, Tenant, Time
from contracts.records.status import TaskRecord


class PackedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A milestone as it lay in EVENTS: its sequence there, when the broker stored it, and the event as stored."""

    sequence: Ordinal
    stored_at: Time
    event: msgspec.Raw


class PackedTask(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a pack: a task with its record and all milestones of its journal, in their order."""

    tenant: Tenant
    task: Id
    record: TaskRecord
    events: list[PackedEvent]


class PackLocation(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Where a task lies: `[sequence, offset, size]`, or `[sequence, 0, 0, [part, …]]` for one in messages of its own.

    `sequence` is that of its pack in ARCHIVE; its line is in the gzip member of `size` bytes of the payload from
    `offset` on, beside a few others. For a task that is too large that member is the payloads of the messages at
    `parts`, joined.
    """

    sequence: Ordinal
    offset: Count
    size: Count
    parts: list[Ordinal] = []


class PackEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task in the directory of its pack.

    `record` is its record without `output`, and with an error cut short. `ended_at`: when the broker stored its
    terminal event. `offset`, `size` and `parts` as in a location. `objects` are names in the object store bucket
    `results`; `dead_letters`, whether DEAD_LETTERS may have records of it.
    """

    record: TaskRecord
    ended_at: Time
    offset: Count
    size: Count
    parts: list[Ordinal] = []
    objects: list[str] = []
    dead_letters: bool = False


class PackDirectory(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of a pack: its tasks, and the first and last time at which one of them ended, by the broker."""

    ended_from: Time
    ended_until: Time
    tasks: list[PackEntry]
