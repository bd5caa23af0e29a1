"""The streams that the index is made of, and how their messages are read into it. In the thread of the index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from contracts import subjects
from contracts.codec import decode
from contracts.errors import InvalidName, InvalidPayload
from contracts.records.archive import PackEntry
from contracts.records.status import TaskRecord
from contracts.streams import ARCHIVE, DEAD_LETTERS, TASKS_BUCKET
from ingress.listing.index import HotRecord, Index
from ingress.listing.letter_records import listed
from mesh.archive.lookup import directory_of
from mesh.archive.pack import PACK_TASKS_MAX
from mesh.broker.direct_get import Stored

log = structlog.get_logger("ingress.listing.sources")

_KEY_PREFIX = f"$KV.{TASKS_BUCKET.name}."


@dataclass(frozen=True, slots=True)
class Source:
    """A stream of the index. `put`: write some of its messages, given when the stream was made."""

    stream: str
    put: Callable[[Index, str, Sequence[Stored]], None]
    page_messages_max: int
    page_bytes_max: int
    rows_in_message: int
    """About how many rows come of a message: how far the index is, is told in these."""


def put_records(index: Index, created: str, messages: Sequence[Stored]) -> None:
    """Messages of KV_tasks: status records, and what marks them as deleted."""
    records: list[HotRecord] = []
    for message in messages:
        try:
            tenant, task = subjects.parse_task_key(message.subject.removeprefix(_KEY_PREFIX))
            record = decode(message.payload, TaskRecord) if message.payload else None
            if record is not None and (record.tenant, record.id) != (tenant, task):
                raise InvalidPayload(f"it is the record of {record.tenant}.{record.id}")
        except (InvalidName, InvalidPayload) as error:
            # Another version has written it, or anybody: it must not hide the others.
            log.warning("listing.unreadable", subject=message.subject, error=str(error))
            continue
        records.append(HotRecord(message.sequence, tenant, task, record))
    index.put_hot(TASKS_BUCKET.stream_name, created, records, messages[-1].sequence)


def put_packs(index: Index, created: str, messages: Sequence[Stored]) -> None:
    """Messages of ARCHIVE: packs, and parts of large tasks."""
    for message in messages:
        index.put_pack(ARCHIVE.name, created, message.sequence, _entries(message))


def put_letters(index: Index, created: str, messages: Sequence[Stored]) -> None:
    """Messages of DEAD_LETTERS."""
    letters = [(message.sequence, listed(message)) for message in messages]
    index.put_letters(DEAD_LETTERS.name, created, letters)


def _entries(message: Stored) -> list[PackEntry]:
    """The directory of a pack; empty for a part, and for what can't be read."""
    try:
        directory = directory_of(message)
    except InvalidPayload as error:
        log.error("listing.unreadable", subject=message.subject, sequence=message.sequence, error=str(error))
        return []
    return directory.tasks if directory is not None else []


TASKS_SOURCE = Source(
    stream=TASKS_BUCKET.stream_name,
    put=put_records,
    # A record has an output of up to 512 KiB in it, and about 1 KiB mostly.
    page_messages_max=128,
    page_bytes_max=256 * 1024,
    rows_in_message=1,
)
ARCHIVE_SOURCE = Source(
    stream=ARCHIVE.name,
    put=put_packs,
    page_messages_max=2,
    page_bytes_max=256 * 1024,
    rows_in_message=PACK_TASKS_MAX,
)
LETTERS_SOURCE = Source(
    stream=DEAD_LETTERS.name,
    put=put_letters,
    page_messages_max=128,
    page_bytes_max=256 * 1024,
    rows_in_message=1,
)
SOURCES = (TASKS_SOURCE, ARCHIVE_SOURCE, LETTERS_SOURCE)
"""In the order in which they are read: a record goes after its task is packed, so what has left the first stream before
it was read is in the second one when that is read."""
