"""Packing a few tasks: a pack is stored, its tasks are found there, and then nothing of them is left elsewhere.

In that order, so that whoever dies in between leaves each task in one place, or in both. Any of it may be done twice:
what is in the archive already is only purged, and of two that pack one piece of a walk the fence lets one in.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import structlog

from contracts import headers, subjects
from contracts.codec import decode, encode
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.journal.events import decode_event
from contracts.records.archive import PackEntry, PackLocation
from contracts.records.status import ENDED, TaskRecord
from contracts.streams import ARCHIVE, ARCHIVE_BUCKET, EVENTS, TASKS_BUCKET
from mesh import faults
from mesh.archive import pack
from mesh.archive.lookup import places
from mesh.archive.pack import Milestone, Packable
from mesh.broker import key_value
from mesh.broker.direct_get import Stored, last_from_leader, read_page, sequence_from_leader
from mesh.broker.key_value import KeyValueEntry
from mesh.broker.requests import WRONG_LAST_SEQUENCE, Requests
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.task.fold import fold
from mesh.task.records import record as record_of
from mesh.task.state import TaskState
from steward.archiving.gathering import Ended, has_dead_letters, objects_of

log = structlog.get_logger("steward.archiving")

IN_FLIGHT_MAX = 32
"""Requests at once: enough that a broker some milliseconds away is kept busy, too few to crowd others out."""
PAGE_MILESTONES_MAX = 1024
"""Of a journal that is read by itself; the bytes of a page are bounded as any other's."""
PLACE_TRIES_MAX = 50
"""Stewards that write one key of `archive` at the same time; one gets in each time."""

T = TypeVar("T")


class Outdated(TaskmeshError):
    """Another steward packs the same piece: what was known of it is old."""


@dataclass(slots=True)
class Packed:
    """What a batch came to."""

    tasks: int = 0
    already: int = 0
    """Found in the archive: whoever packed them died before they were purged."""
    unreadable: int = 0
    payload_bytes: int = 0


class _Line(NamedTuple):
    """A task, as it stands in a pack."""

    task: Packable
    line: bytes


class _Member(NamedTuple):
    """Tasks that are compressed together. `summaries_bytes`: about what a directory has of them."""

    tasks: list[_Line]
    compressed: bytes
    summaries_bytes: int

    @property
    def is_large(self) -> bool:
        """Whether it is one task that needs messages of its own."""
        return len(self.compressed) > pack.MEMBER_BYTES_MAX


class Packer:
    """Packs tasks of one piece of the walk, which began at sequence `piece` of EVENTS."""

    def __init__(self, requests: Requests, piece: int) -> None:
        self._requests = requests
        self._subject = subjects.archive(piece)
        self._last: int | None = None
        """Sequence of the last message on its subject, 0 for none; None while that is not known."""

    async def pack(self, batch: Sequence[Ended]) -> Packed:
        """Move tasks into the archive. Raises `BrokerUnavailable`, `BrokerError`; all of it may then be done again."""
        while True:
            done = Packed()
            try:
                if self._last is None:
                    await self._take_over()
                stored = await self._store(batch, done)
                break
            except Outdated as error:
                log.info("archive.outdated", reason=str(error))
                self._last = None
        await in_flight(stored, lambda each: self._purge(each.tenant, each.task, each.end.sequence))
        return done

    async def _store(self, batch: Sequence[Ended], done: Packed) -> list[Ended]:
        """Put those into the archive that are not there; returns all that are there then. Raises `Outdated`."""
        keys = dict.fromkeys(subjects.archive_key(each.tenant, each.task) for each in batch)
        known = await key_value.get_many(self._requests, ARCHIVE_BUCKET.name, list(keys))
        archived = await self._archived(batch, known)
        records = await key_value.get_many(self._requests, TASKS_BUCKET.name, [_name(each) for each in batch])
        lines: list[_Line] = []
        stored: list[Ended] = []
        for ended in batch:
            if _name(ended) not in archived:
                try:
                    milestones = ended.milestones or await self._read_journal(ended)
                    task = _packable(ended, milestones, records.get(_name(ended)))
                    lines.append(_Line(task, pack.line(task)))
                except InvalidPayload as error:
                    # It is for people to look at, and must not keep the others.
                    done.unreadable += 1
                    log.error("retention.unreadable", task=ended.task, tenant=ended.tenant, error=str(error))
                    continue
            stored.append(ended)
        done.tasks, done.already = len(lines), len(stored) - len(lines)
        for members in _packs(_members(lines)):
            done.payload_bytes += await self._publish(members, known)
        return stored

    async def _publish(self, members: Sequence[_Member], known: Mapping[str, KeyValueEntry]) -> int:
        """Store a pack, and write down where its tasks lie; returns its size in bytes. Raises `Outdated`."""
        payload: list[bytes] = []
        entries: list[PackEntry] = []
        offset = total = 0
        for each in members:
            compressed = each.compressed
            total += len(compressed)
            if each.is_large:
                at = range(0, len(compressed), pack.PART_BYTES_MAX)
                parts = [await self._send_part(compressed[start : start + pack.PART_BYTES_MAX]) for start in at]
                entries.append(pack.entry(each.tasks[0].task, 0, 0, parts))
            else:
                entries += [pack.entry(one.task, offset, len(compressed)) for one in each.tasks]
                payload.append(compressed)
                offset += len(compressed)
        directory = pack.directory(entries)
        faults.reach("before-pack", "archive")
        sequence = await self._send(b"".join([*payload, directory]), offset)
        faults.reach("after-pack", "archive")
        if not faults.ARCHIVE_ORDER_ON:
            await in_flight(entries, lambda each: self._purge(each.record.tenant, each.record.id, each.record.sequence))
        await self._write_places(sequence, entries, known)
        faults.reach("after-places", "archive")
        return total + len(directory)

    async def _send_part(self, payload: bytes) -> int:
        sequence = await self._send(payload)
        faults.reach("after-part", "archive")
        return sequence

    async def _send(self, payload: bytes, directory_at: int | None = None) -> int:
        message_headers = {headers.EXPECTED_LAST_SUBJECT_SEQUENCE: str(self._last)} if faults.FENCE_ON else {}
        if directory_at is not None:
            message_headers[headers.PACK_DIRECTORY] = str(directory_at)
        try:
            ack = await self._requests.publish(self._subject, payload, message_headers)
        except BrokerError as error:
            if error.number in WRONG_LAST_SEQUENCE:
                raise Outdated(f"{self._subject} has gone on behind {self._last}") from None
            raise
        self._last = ack.seq
        return ack.seq

    async def _take_over(self) -> None:
        """Make up for what the one who packed here last may have left: a pack whose tasks nobody finds."""
        last = await last_from_leader(self._requests, ARCHIVE.name, self._subject)
        if last is not None and (at := last.headers.get(headers.PACK_DIRECTORY)) is not None:
            await self._write_places(last.sequence, pack.read_directory(last.payload, int(at)).tasks, {})
        self._last = last.sequence if last is not None else 0

    async def _write_places(
        self, sequence: int, entries: Iterable[PackEntry], known: Mapping[str, KeyValueEntry]
    ) -> None:
        """Write down where the tasks of a pack lie. `known`: what the keys had a moment ago."""
        by_key: dict[str, dict[str, PackLocation]] = defaultdict(dict)
        for each in entries:
            tenant, task = each.record.tenant, each.record.id
            by_key[subjects.archive_key(tenant, task)][subjects.task_key(tenant, task)] = pack.location(sequence, each)
        state = (await self._requests.api(f"STREAM.INFO.{ARCHIVE.name}"))["state"]

        async def write(key: str) -> None:
            await self._write_key(key, by_key[key], known.get(key), int(state["first_seq"]))

        await in_flight(by_key, write)

    async def _write_key(
        self, key: str, found: dict[str, PackLocation], known: KeyValueEntry | None, first_sequence: int
    ) -> None:
        for _ in range(PLACE_TRIES_MAX):
            before = places(known.value) if known is not None and known.value else {}
            kept = {name: place for name, place in before.items() if place.sequence >= first_sequence}
            after = kept | found
            if after == before:
                return
            revision = known.revision if known is not None else 0
            if await key_value.compare_and_set(self._requests, ARCHIVE_BUCKET.name, key, encode(after), revision):
                faults.reach("after-place", "archive")
                return
            known = await key_value.get(self._requests, ARCHIVE_BUCKET.name, key)
        raise BrokerUnavailable(f"key {key} of {ARCHIVE_BUCKET.name} can't be written: others are faster each time")

    async def _archived(self, batch: Sequence[Ended], known: Mapping[str, KeyValueEntry]) -> set[str]:
        """Names of those whose journals, up to these ends, are in the archive."""
        by_pack: dict[int, list[Ended]] = defaultdict(list)
        for each in batch:
            entry = known.get(subjects.archive_key(each.tenant, each.task))
            place = places(entry.value).get(_name(each)) if entry is not None and entry.value else None
            if place is not None:
                by_pack[place.sequence].append(each)
        archived: set[str] = set()
        for sequence, found in by_pack.items():
            # A place may be left of a task that was dropped long ago, and whose id has come again.
            stored = await sequence_from_leader(self._requests, ARCHIVE.name, sequence)
            at = stored.headers.get(headers.PACK_DIRECTORY) if stored is not None else None
            if stored is not None and at is not None:
                records = (each.record for each in pack.read_directory(stored.payload, int(at)).tasks)
                ends = {subjects.task_key(each.tenant, each.id): each.sequence for each in records}
                archived |= {_name(each) for each in found if ends.get(_name(each)) == each.end.sequence}
        return archived

    async def _read_journal(self, ended: Ended) -> tuple[Milestone, ...]:
        """The milestones of a journal that had begun before the piece of the walk."""
        subject = subjects.journal_log(ended.tenant, ended.task)
        info = await self._requests.api(f"STREAM.INFO.{EVENTS.name}", {"subjects_filter": subject})
        # No more than there are: the server would search for it up to the stream's end.
        left = int((info["state"].get("subjects") or {}).get(subject, 0))
        found: list[Stored] = []
        while left > 0:
            after = found[-1].sequence if found else 0
            page = await read_page(self._requests, EVENTS.name, subject, after, min(left, PAGE_MILESTONES_MAX))
            if not page.messages:
                break
            found += page.messages
            left -= len(page.messages)
        return tuple(
            Milestone(each.sequence, each.stored_at, each.payload)
            for each in found
            if each.sequence <= ended.end.sequence
        )

    async def _purge(self, tenant: str, task: str, end: int) -> None:
        """Take a task away that is in the archive. Its journal goes last: the walk finds by it what was left."""
        key = f"$KV.{TASKS_BUCKET.name}.{subjects.task_key(tenant, task)}"
        await purge(self._requests, TASKS_BUCKET.stream_name, key)
        faults.reach("after-purge", "record")
        await purge(self._requests, EVENTS.name, subjects.journal(tenant, task), end + 1)
        faults.reach("after-purge", "journal")


async def purge(requests: Requests, stream: str, subject_filter: str, below: int | None = None) -> None:
    """Purge a subject; `below`: only what has a lower sequence. Nothing to purge is as good.

    Raises `BrokerUnavailable`, `BrokerError`.
    """
    body: dict[str, object] = {"filter": subject_filter}
    if below is not None:
        body["seq"] = below
    await requests.api(f"STREAM.PURGE.{stream}", body)


async def in_flight(each: Iterable[T], do: Callable[[T], Awaitable[None]]) -> None:
    """Do something for each, a few at a time. Raises what the first of them raises that fails."""
    left = iter(each)

    async def one_after_the_other() -> None:
        for item in left:
            await do(item)

    tasks = [asyncio.create_task(one_after_the_other()) for _ in range(IN_FLIGHT_MAX)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _name(ended: Ended) -> str:
    return subjects.task_key(ended.tenant, ended.task)


def _packable(ended: Ended, milestones: tuple[Milestone, ...], entry: KeyValueEntry | None) -> Packable:
    """A task as it is packed. Raises `InvalidPayload`."""
    if not milestones or milestones[-1].sequence != ended.end.sequence:
        raise InvalidPayload("its journal can't be read whole")
    return Packable(_record(ended, milestones, entry), milestones, objects_of(milestones), has_dead_letters(milestones))


def _record(ended: Ended, milestones: tuple[Milestone, ...], entry: KeyValueEntry | None) -> TaskRecord:
    """Its record as it was projected, if it says all; else as the journal has it."""
    if entry is not None and entry.value:
        try:
            projected = decode(entry.value, TaskRecord)
        except InvalidPayload:
            projected = None
        if projected is not None and projected.status in ENDED and projected.sequence == ended.end.sequence:
            return projected
    state = TaskState(ended.tenant, ended.task)
    for each in milestones:
        fold(state, each.sequence, decode_event(each.payload), holes_allowed=True, payload_bytes=len(each.payload))
    return record_of(state)


def _members(lines: Iterable[_Line]) -> Iterator[_Member]:
    """Tasks that are compressed together."""
    tasks: list[_Line] = []
    size = 0
    for each in lines:
        if tasks and (size + len(each.line) > pack.MEMBER_LINES_BYTES_MAX or len(tasks) == pack.MEMBER_TASKS_MAX):
            yield _member(tasks)
            tasks, size = [], 0
        tasks.append(each)
        size += len(each.line)
    if tasks:
        yield _member(tasks)


def _member(tasks: list[_Line]) -> _Member:
    summaries_bytes = sum(len(encode(pack.summary(each.task.record))) for each in tasks)
    return _Member(tasks, pack.member([each.line for each in tasks]), summaries_bytes)


def _packs(members: Iterable[_Member]) -> Iterator[list[_Member]]:
    """Members by packs."""
    together: list[_Member] = []
    tasks = members_bytes = summaries_bytes = 0
    for each in members:
        size = 0 if each.is_large else len(each.compressed)
        if together and (
            tasks + len(each.tasks) > pack.PACK_TASKS_MAX
            or members_bytes + size > pack.PACK_MEMBERS_BYTES_MAX
            or summaries_bytes + each.summaries_bytes > pack.PACK_SUMMARIES_BYTES_MAX
        ):
            yield together
            together, tasks, members_bytes, summaries_bytes = [], 0, 0, 0
        together.append(each)
        tasks += len(each.tasks)
        members_bytes += size
        summaries_bytes += each.summaries_bytes
    if together:
        yield together
