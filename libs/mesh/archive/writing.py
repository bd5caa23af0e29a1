"""Writing packs: a pack is stored over the last one that is known on its subject, and its tasks are found there after.

Who is not the only one to write on a subject finds out by the fence, and makes up for what the other has left: so each
task is packed once, whoever dies where.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import structlog

from contracts import headers, subjects
from contracts.codec import encode
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.records.archive import PackEntry, PackLocation
from contracts.streams import ARCHIVE, ARCHIVE_BUCKET
from mesh import faults
from mesh.archive import pack
from mesh.archive.lookup import directory_of, places
from mesh.archive.pack import Packable
from mesh.broker import key_value
from mesh.broker.direct_get import last_from_leader
from mesh.broker.key_value import KeyValueEntry
from mesh.broker.requests import WRONG_LAST_SEQUENCE, Requests
from mesh.errors import BrokerError, BrokerUnavailable

log = structlog.get_logger("mesh.archive")

IN_FLIGHT_MAX = 32
"""Requests at once: enough that a broker some milliseconds away is kept busy, too few to crowd others out."""
PLACE_TRIES_MAX = 50
"""Writers of one key of `archive` at the same time; one gets in each time."""

T = TypeVar("T")


class Outdated(TaskmeshError):
    """Somebody else has written on the subject: what was known of the archive is old."""


class _Line(NamedTuple):
    """A task, as it stands in a pack."""

    task: Packable
    line: bytes


class _Member(NamedTuple):
    """Tasks that are compressed together. `summaries_bytes`: about what a directory has of them."""

    tasks: list[_Line]
    compressed: bytes
    summaries_bytes: int
    is_large: bool
    """Whether it is one task that needs messages of its own."""


class PackWriter:
    """Writes packs on one subject of ARCHIVE."""

    def __init__(self, requests: Requests, subject: str) -> None:
        self._requests = requests
        self._subject = subject
        self._last: int | None = None
        """Sequence of the last message on it, 0 for none; None while that is not known."""

    async def write(self, tasks: Iterable[Packable], known: Mapping[str, KeyValueEntry]) -> int:
        """Store packs of these tasks; returns their size in bytes.

        `known`: what the keys of the bucket had a moment ago. Raises `Outdated`, and then some of them may be stored:
        look into the archive again. Raises `BrokerUnavailable`, `BrokerError`.
        """
        await self.take_over()
        lines = (_Line(task, pack.line(task)) for task in tasks)
        size = 0
        fitting = self._requests.fitting
        for members in _packs(_members(lines, fitting), fitting):
            size += await self._publish(members, known)
        return size

    async def _publish(self, members: Sequence[_Member], known: Mapping[str, KeyValueEntry]) -> int:
        """Store a pack, and write down where its tasks lie; returns its size in bytes. Raises `Outdated`."""
        payload: list[bytes] = []
        entries: list[PackEntry] = []
        offset = total = 0
        for each in members:
            compressed = each.compressed
            total += len(compressed)
            if each.is_large:
                part_bytes = self._requests.fitting(pack.PART_BYTES_MAX)
                at = range(0, len(compressed), part_bytes)
                parts = [await self._send_part(compressed[start : start + part_bytes]) for start in at]
                entries.append(pack.entry(each.tasks[0].task, 0, 0, parts))
            else:
                entries += [pack.entry(one.task, offset, len(compressed)) for one in each.tasks]
                payload.append(compressed)
                offset += len(compressed)
        directory = pack.directory(entries)
        faults.reach("before-pack", "archive")
        sequence = await self._send(b"".join([*payload, directory]), offset)
        faults.reach("after-pack", "archive")
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
                self._last, last = None, self._last
                raise Outdated(f"{self._subject} has gone on behind {last}") from None
            raise
        self._last = ack.seq
        return ack.seq

    async def take_over(self) -> None:
        """Make up for what the one who packed here last may have left: a pack whose tasks nobody finds.

        Once, and again after `Outdated`. Raises `BrokerUnavailable`, `BrokerError`.
        """
        if self._last is not None:
            return
        last = await last_from_leader(self._requests, ARCHIVE.name, self._subject)
        try:
            directory = directory_of(last) if last is not None else None
        except InvalidPayload as error:
            # None of ours. Its tasks, if it has any, are still where they were.
            log.error("archive.unreadable", subject=self._subject, error=str(error))
            directory = None
        if last is not None and directory is not None:
            await self._write_places(last.sequence, directory.tasks, {})
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


_Fitting = Callable[[int], int]
"""Makes a bound one of the broker's at hand (`Requests.fitting`)."""


def _members(lines: Iterable[_Line], fitting: _Fitting) -> Iterator[_Member]:
    """Tasks that are compressed together."""
    lines_bytes_max = fitting(pack.MEMBER_LINES_BYTES_MAX)
    tasks: list[_Line] = []
    size = 0
    for each in lines:
        if tasks and (size + len(each.line) > lines_bytes_max or len(tasks) == pack.MEMBER_TASKS_MAX):
            yield _member(tasks, fitting)
            tasks, size = [], 0
        tasks.append(each)
        size += len(each.line)
    if tasks:
        yield _member(tasks, fitting)


def _member(tasks: list[_Line], fitting: _Fitting) -> _Member:
    summaries_bytes = sum(len(encode(pack.summary(each.task.record))) for each in tasks)
    compressed = pack.member([each.line for each in tasks])
    return _Member(tasks, compressed, summaries_bytes, is_large=len(compressed) > fitting(pack.MEMBER_BYTES_MAX))


def _packs(members: Iterable[_Member], fitting: _Fitting) -> Iterator[list[_Member]]:
    """Members by packs."""
    members_bytes_max, summaries_bytes_max = map(fitting, (pack.PACK_MEMBERS_BYTES_MAX, pack.PACK_SUMMARIES_BYTES_MAX))
    together: list[_Member] = []
    tasks = members_bytes = summaries_bytes = 0
    for each in members:
        size = 0 if each.is_large else len(each.compressed)
        if together and (
            tasks + len(each.tasks) > pack.PACK_TASKS_MAX
            or members_bytes + size > members_bytes_max
            or summaries_bytes + each.summaries_bytes > summaries_bytes_max
        ):
            yield together
            together, tasks, members_bytes, summaries_bytes = [], 0, 0, 0
        together.append(each)
        tasks += len(each.tasks)
        members_bytes += size
        summaries_bytes += each.summaries_bytes
    if together:
        yield together
