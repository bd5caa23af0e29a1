"""What a pack is made of: gzip members with a few tasks each, and last one with its directory. Pure.

`gunzip` reads the whole as lines of JSON, one for each task. A reader of one task reads the member alone in which it
is, found by its location; one of lists reads the directory alone, found by the header `Mesh-Pack-Directory`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import msgspec

from contracts.codec import decode, encode
from contracts.errors import ErrorInfo, InvalidPayload
from contracts.journal.events import ToolCompleted, decode_event, decode_head
from contracts.records.archive import PackDirectory, PackedEvent, PackedTask, PackEntry, PackLocation
from contracts.records.status import TaskRecord
from contracts.records.tools import RESULTS_BUCKET
from mesh.broker.direct_get import Stored

PACK_TASKS_MAX = 512
PACK_MEMBERS_BYTES_MAX = 512 * 1024
PACK_SUMMARIES_BYTES_MAX = 256 * 1024
"""What one pack may hold: its tasks as compressed, and what its directory has of them, which may not compress at all.
With one more task of each it still fits a message."""
MEMBER_TASKS_MAX = 16
MEMBER_LINES_BYTES_MAX = 64 * 1024
"""What is compressed together: more compresses hardly better, and all of it is read for one task of it."""
MEMBER_BYTES_MAX = 256 * 1024
"""A compressed task that is larger lies in messages of its own."""
PART_BYTES_MAX = 768 * 1024
"""Of one such message."""
ERROR_CHARACTERS_MAX = 500
"""What a directory keeps of an error's message; the rest, and its detail, is in the task."""
LINES_BYTES_MAX = 256 * 1024 * 1024
"""Of a member, when it is read. A journal has 64 MiB of milestones, and what ends it."""
_GZIP = 16 + zlib.MAX_WBITS
_LEVEL = 6


class Milestone(NamedTuple):
    """An event as EVENTS had it."""

    sequence: int
    stored_at: datetime
    payload: bytes


@dataclass(frozen=True, slots=True)
class Packable:
    """A task that may be packed: ended, with all milestones of its journal."""

    record: TaskRecord
    milestones: Sequence[Milestone]
    objects: tuple[str, ...] = ()
    dead_letters: bool = False

    @property
    def ended_at(self) -> datetime:
        """When the broker stored its end."""
        return self.milestones[-1].stored_at


def milestone_of(stored: Stored) -> Milestone:
    """An event as it lies in EVENTS, without all that the broker says about it."""
    return Milestone(stored.sequence, stored.stored_at, stored.payload)


def packable(record: TaskRecord, milestones: Sequence[Milestone]) -> Packable:
    """A task with what its journal refers to elsewhere. Raises `InvalidPayload` for what can't be read of it."""
    return Packable(record, milestones, tuple(_objects_of(milestones)), _has_dead_letters(milestones))


def _objects_of(milestones: Sequence[Milestone]) -> Iterator[str]:
    for each in milestones:
        if b'"object"' in each.payload:
            event = decode_event(each.payload)
            if isinstance(event, ToolCompleted) and event.object is not None and event.object.bucket == RESULTS_BUCKET:
                yield event.object.name


def _has_dead_letters(milestones: Sequence[Milestone]) -> bool:
    return any(
        b'"task.dead_lettered"' in each.payload and decode_head(each.payload).type == "task.dead_lettered"
        for each in milestones
    )


def packed_task(record: TaskRecord, milestones: Sequence[Milestone]) -> PackedTask:
    """A task as a pack has it, and an export."""
    events = [
        PackedEvent(sequence=each.sequence, stored_at=each.stored_at, event=msgspec.Raw(one_line(each.payload)))
        for each in milestones
    ]
    return PackedTask(tenant=record.tenant, task=record.id, record=record, events=events)


def line(task: Packable) -> bytes:
    """A task, as a line of its pack without the line's end."""
    return encode(packed_task(task.record, task.milestones))


def member(lines: Sequence[bytes]) -> bytes:
    """Lines, compressed."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return b"".join([packer.compress(b"\n".join([*lines, b""])), packer.flush()])


def one_line(payload: bytes) -> bytes:
    """JSON without line breaks. A raw one can only be white space between its tokens."""
    return payload.translate(_NO_BREAKS) if b"\n" in payload or b"\r" in payload else payload


_NO_BREAKS = bytes.maketrans(b"\r\n", b"  ")


def entry(task: Packable, offset: int, size: int, parts: Sequence[int] = ()) -> PackEntry:
    """What the directory says of a task."""
    return PackEntry(
        record=summary(task.record),
        ended_at=task.ended_at,
        offset=offset,
        size=size,
        parts=list(parts),
        objects=list(task.objects),
        dead_letters=task.dead_letters,
    )


def summary(record: TaskRecord) -> TaskRecord:
    """A record without what may be long: its output, what waits for people, and most of an error."""
    error = record.error
    if error is not None:
        error = ErrorInfo(error.code, error.message[:ERROR_CHARACTERS_MAX])
    return msgspec.structs.replace(record, output=None, approvals=None, questions=None, error=error, links=None)


def directory(entries: Sequence[PackEntry]) -> bytes:
    """The directory of a pack, compressed."""
    ends = [each.ended_at for each in entries]
    return member([encode(PackDirectory(ended_from=min(ends), ended_until=max(ends), tasks=list(entries)))])


def read_directory(payload: bytes, offset: int) -> PackDirectory:
    """The directory of a pack. Raises `InvalidPayload`."""
    return decode(_lines(payload[offset:]), PackDirectory)


def read_task(compressed: bytes, tenant: str, task: str) -> PackedTask:
    """A task, from its gzip member. Raises `InvalidPayload`."""
    named = task.encode()
    for each in _lines(compressed).split(b"\n"):
        # Few lines say its id: those of tasks that have to do with it.
        if named in each:
            packed = decode(each, PackedTask)
            if (packed.tenant, packed.task) == (tenant, task):
                return packed
    raise InvalidPayload(f"task {task} is not where it should be packed")


def read_tasks(compressed: bytes) -> list[PackedTask]:
    """All tasks of a gzip member. Raises `InvalidPayload`."""
    return [decode(each, PackedTask) for each in _lines(compressed).split(b"\n") if each]


def location(pack: int, found: PackEntry) -> PackLocation:
    """Where a task of a pack's directory lies. `pack`: the pack's sequence in ARCHIVE."""
    return PackLocation(pack, found.offset, found.size, found.parts)


def _lines(compressed: bytes) -> bytes:
    """The lines of one gzip member."""
    unpacker = zlib.decompressobj(_GZIP)
    try:
        lines = unpacker.decompress(compressed, LINES_BYTES_MAX)
    except zlib.error as error:
        raise InvalidPayload(f"not gzip: {error}") from None
    if not unpacker.eof:
        raise InvalidPayload("not a whole gzip member, or one that is too long")
    return lines
