"""Packing a few tasks: a pack is stored, its tasks are found there, and then nothing of them is left elsewhere.

In that order, so that whoever dies in between leaves each task in one place, or in both. Any of it may be done twice:
what is in the archive already is only purged, and of two that pack one piece of a walk the fence lets one in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from contracts import subjects
from contracts.codec import decode
from contracts.errors import InvalidPayload, TaskmeshError
from contracts.journal.events import decode_event
from contracts.records.status import ENDED, TaskRecord
from contracts.streams import ARCHIVE, ARCHIVE_BUCKET, EVENTS, TASKS_BUCKET
from mesh import faults
from mesh.archive.lookup import directory_of, places
from mesh.archive.pack import Milestone, Packable, milestone_of, packable
from mesh.archive.writing import Outdated, PackWriter, in_flight
from mesh.broker import key_value
from mesh.broker.direct_get import sequence_from_leader
from mesh.broker.key_value import KeyValueEntry
from mesh.broker.requests import Requests
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.journal.reading import read_milestones
from mesh.task.fold import fold
from mesh.task.records import record as record_of
from mesh.task.state import TaskState
from steward.archiving.gathering import Ended

log = structlog.get_logger("steward.archiving")


@dataclass(slots=True)
class Packed:
    """What a batch came to."""

    tasks: int = 0
    already: int = 0
    """Found in the archive: whoever packed them died before they were purged."""
    unreadable: int = 0
    payload_bytes: int = 0


class _Stored(NamedTuple):
    """A task that is in the archive. `revision`: of its record in the bucket, as it was looked at; 0 without one."""

    ended: Ended
    revision: int


class Packer:
    """Packs tasks of one piece of the walk, which began at sequence `piece` of EVENTS."""

    def __init__(self, requests: Requests, piece: int) -> None:
        self._requests = requests
        self._writer = PackWriter(requests, subjects.archive(piece))

    async def pack(self, batch: Sequence[Ended]) -> Packed:
        """Move tasks into the archive. Raises `BrokerUnavailable`, `BrokerError`; all of it may then be done again."""
        while True:
            done = Packed()
            try:
                await self._writer.take_over()
                stored = await self._store(batch, done)
                break
            except Outdated as error:
                log.info("archive.outdated", reason=str(error))
        await in_flight(stored, self._purge)
        return done

    async def _store(self, batch: Sequence[Ended], done: Packed) -> list[_Stored]:
        """Put those into the archive that are not there; returns all that are there then. Raises `Outdated`."""
        keys = dict.fromkeys(subjects.archive_key(each.tenant, each.task) for each in batch)
        known = await key_value.get_many(self._requests, ARCHIVE_BUCKET.name, list(keys))
        archived = await self._archived(batch, known)
        records = await key_value.get_many(self._requests, TASKS_BUCKET.name, [_name(each) for each in batch])
        tasks: list[Packable] = []
        stored: list[_Stored] = []
        for ended in batch:
            if _name(ended) not in archived:
                try:
                    milestones = ended.milestones or await self._read_journal(ended)
                    tasks.append(_packable(ended, milestones, records.get(_name(ended))))
                except (BrokerError, BrokerUnavailable):
                    raise
                except TaskmeshError as error:
                    # It is for people to look at, and must not keep the others.
                    done.unreadable += 1
                    log.error("retention.unreadable", task=ended.task, tenant=ended.tenant, error=str(error))
                    continue
            record = records.get(_name(ended))
            stored.append(_Stored(ended, record.revision if record is not None else 0))
        done.tasks, done.already = len(tasks), len(stored) - len(tasks)
        if not faults.ARCHIVE_ORDER_ON:
            await in_flight(stored, self._purge)
        done.payload_bytes = await self._writer.write(tasks, known)
        return stored

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
            try:
                directory = directory_of(stored) if stored is not None else None
            except InvalidPayload:
                continue  # Nothing that can be read is there: it is packed anew.
            if directory is not None:
                records = (each.record for each in directory.tasks)
                ends = {subjects.task_key(each.tenant, each.id): each.sequence for each in records}
                archived |= {_name(each) for each in found if ends.get(_name(each)) == each.end.sequence}
        return archived

    async def _read_journal(self, ended: Ended) -> tuple[Milestone, ...]:
        """The milestones of a journal that had begun before the piece of the walk."""
        found = await read_milestones(self._requests, ended.tenant, ended.task)
        return tuple(milestone_of(each) for each in found if each.sequence <= ended.end.sequence)

    async def _purge(self, stored: _Stored) -> None:
        """Take a task away that is in the archive. Its journal goes last: the walk finds by it what was left."""
        ended, revision = stored
        if revision > 0:
            key = f"$KV.{TASKS_BUCKET.name}.{_name(ended)}"
            await self._requests.purge(TASKS_BUCKET.stream_name, key, revision + 1)
        faults.reach("after-purge", "record")
        journal = subjects.journal(ended.tenant, ended.task)
        await self._requests.purge(EVENTS.name, journal, ended.end.sequence + 1)
        faults.reach("after-purge", "journal")


def _name(ended: Ended) -> str:
    return subjects.task_key(ended.tenant, ended.task)


def _packable(ended: Ended, milestones: tuple[Milestone, ...], entry: KeyValueEntry | None) -> Packable:
    """A task as it is packed. Raises `InvalidPayload`."""
    if not milestones or milestones[-1].sequence != ended.end.sequence:
        raise InvalidPayload("its journal can't be read whole")
    return packable(_record(ended, milestones, entry), milestones)


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
    if state.queued is None or state.terminal is None:
        raise InvalidPayload("its journal does not lead from task.queued to its end")
    return record_of(state)
