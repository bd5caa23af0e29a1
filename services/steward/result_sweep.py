"""Sweeps the object store: results whose task is gone, and halves of results.

A result goes with its task. One is left over where its call was lost after it was stored, so that no event tells of it,
or where whoever purged its task died in between; and half of one where a runner died while it stored it. All is told by
the subjects alone (`contracts.result_objects`), so that nothing is read of what stays. Objects of other names are
somebody else's.

A result is purged if the leaders of EVENTS and of the bucket `archive` know no task of it, and it is an hour old. To do
it twice, by two stewards, is the same as once.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from contracts import result_objects, subjects
from contracts.records.archive import PackLocation
from contracts.records.tools import RESULTS_BUCKET
from contracts.result_objects import ResultName
from contracts.streams import ARCHIVE, EVENTS, RESULTS
from mesh.archive.lookup import locate, located
from mesh.background import repeatedly
from mesh.broker import object_store
from mesh.broker.direct_get import journal_exists, last_from_leader, last_of_many, subjects_of
from mesh.broker.requests import Requests
from mesh.broker.stream_states import broker_time
from mesh.loop_health import LoopHealth
from mesh.telemetry import metrics

log = structlog.get_logger("steward.result_sweep")

ROUND_SECONDS = 30.0
LOOK_SECONDS = 600.0
"""How often the bucket is looked through: its subjects are listed for it, some 10 ms for a full one."""
TASKS_PER_ROUND_MAX = 64
"""Each that is gone costs a few requests: a round must not crowd out what people wait for."""
LEFT_AGE = timedelta(hours=1)
"""What is younger may be on its way: chunks before the message that tells of them, and that before its event."""


@dataclass(slots=True)
class _Held:
    """What lies in the bucket of one task. A half is chunks that no message tells of."""

    whole: list[ResultName] = field(default_factory=list)
    halves: list[ResultName] = field(default_factory=list)


@dataclass(slots=True)
class Swept:
    """What a round has purged."""

    results: int = 0
    halves: int = 0


class ResultSweep:
    """Looks through the bucket, a few tasks at a time. `left_age`: how old what is purged must be."""

    def __init__(self, requests: Requests, left_age: timedelta = LEFT_AGE) -> None:
        self._requests = requests
        self._left_age = left_age
        self._waiting: list[tuple[tuple[str, str], _Held]] = []
        self._listed_at = float("-inf")

    async def run(self) -> None:
        """Keep sweeping until cancelled."""
        await repeatedly(self.round, ROUND_SECONDS, LoopHealth(log, "results.unavailable"))

    async def round(self) -> Swept:
        """Look at the next tasks that have results, and purge what is left over. Raises `TaskmeshError`."""
        swept = Swept()
        if not self._waiting:
            time = asyncio.get_running_loop().time()
            if time - self._listed_at < LOOK_SECONDS:
                return swept
            self._waiting = await self._list()
            self._listed_at = time
        some = dict(self._waiting[:TASKS_PER_ROUND_MAX])
        if not some:
            return swept
        before = await broker_time(self._requests, RESULTS.name) - self._left_age
        gone = await self._gone([*some])
        for task, held in some.items():
            if task in gone:
                for name in held.whole:
                    swept.results += await self._purge_result(name, before)
            for name in held.halves:
                swept.halves += await self._purge_half(name, before)
        # Only now: a round that broke off is done again.
        del self._waiting[: len(some)]
        if swept.results or swept.halves:
            log.info("results.swept", results=swept.results, halves=swept.halves)
            metrics.results_swept("task-gone", swept.results)
            metrics.results_swept("half", swept.halves)
        return swept

    async def _list(self) -> list[tuple[tuple[str, str], _Held]]:
        """What the bucket has, by task, as far as it is results."""
        found: defaultdict[tuple[str, str], _Held] = defaultdict(_Held)
        told: set[ResultName] = set()
        # Chunks first: the message that tells of them is stored after them.
        chunks = await subjects_of(self._requests, RESULTS.name, result_objects.chunks_subject(RESULTS_BUCKET, ">"))
        for subject in await subjects_of(self._requests, RESULTS.name, f"$O.{RESULTS_BUCKET}.M.>"):
            name = result_objects.parse_result_name(result_objects.parse_information(subject) or "")
            if name is not None:
                told.add(name)
                found[name.tenant, name.task].whole.append(name)
        for subject in chunks:
            parsed = result_objects.parse_chunks(subject)
            if parsed is not None and parsed[0] not in told:
                found[parsed[0].tenant, parsed[0].task].halves.append(parsed[0])
        return [*found.items()]

    # Tasks

    async def _gone(self, tasks: list[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those that are nowhere. A task is packed before its journal is purged: so it is looked for in that order."""
        logs = {task: subjects.journal_log(*task) for task in tasks}
        there = await last_of_many(self._requests, EVENTS.name, logs.values())
        missing = [task for task in tasks if logs[task] not in there]
        if not missing:
            return set()
        first_pack = int((await self._requests.api(f"STREAM.INFO.{ARCHIVE.name}"))["state"]["first_seq"])
        packed = await located(self._requests, missing)
        return {
            task
            for task in missing
            if not _stands(packed.get(subjects.task_key(*task)), first_pack)
            and not await journal_exists(self._requests, *task)
            and not _stands(await locate(self._requests, *task), first_pack)
        }

    # Purges

    async def _purge_result(self, name: ResultName, before: datetime) -> int:
        if not await self._is_old(result_objects.information_subject(RESULTS_BUCKET, str(name)), before):
            return 0
        return await object_store.purge_objects(self._requests, RESULTS_BUCKET, [str(name)])

    async def _purge_half(self, name: ResultName, before: datetime) -> int:
        """Purge chunks, unless the message that tells of them has come since."""
        chunks = result_objects.chunks_of_result(RESULTS_BUCKET, name)
        told = result_objects.information_subject(RESULTS_BUCKET, str(name))
        if not await self._is_old(chunks, before):
            return 0
        if await last_from_leader(self._requests, RESULTS.name, told) is not None:
            return 0
        await self._requests.purge(RESULTS.name, chunks)
        return 1

    async def _is_old(self, subject: str, before: datetime) -> bool:
        """Whether there is a message, and the last one was stored before then."""
        last = await last_from_leader(self._requests, RESULTS.name, subject)
        return last is not None and last.stored_at <= before


def _stands(place: PackLocation | None, first_pack: int) -> bool:
    """Whether a place says where a task is: its pack has not gone."""
    return place is not None and place.sequence >= first_pack
