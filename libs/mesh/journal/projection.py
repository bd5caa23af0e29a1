"""The projection of journals into the bucket `tasks`: one status record for each task.

A record is only ever replaced by one that covers more of the journal, by compare-and-set on the journal
sequence it holds; so any number of writers may project, in any order.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass

import structlog

from contracts import subjects
from contracts.codec import decode, encode
from contracts.errors import TaskmeshError
from contracts.records.status import TaskRecord
from contracts.retries import BROKER_POLICY
from mesh import faults
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.errors import BrokerUnavailable, NoRoom
from mesh.loop_health import LoopHealth

log = structlog.get_logger("mesh.journal.projection")

BUCKET = "tasks"
QUIET_SECONDS = 0.25
"""How long a record must be the newest of its task before it is written in the background."""
PENDING_MAX = 8192
"""Records that wait for that; above it they are skipped, and the next event of the task makes up."""
WRITING_MAX = 16
_ROUNDS_MAX = 100


async def project(requests: Requests, record: TaskRecord, *, known_revision: int | None = None) -> None:
    """Write a task's record unless a newer one is there. Raises `BrokerUnavailable`.

    `known_revision`: the bucket revision to try first, 0 for a task that is certainly new; saves a read.
    """
    key = subjects.task_key(record.tenant, record.id)
    value = encode(record)
    revision = known_revision
    faults.reach("before-project", record.status)
    for round_number in range(1, _ROUNDS_MAX):
        if revision is None:
            entry = await key_value.get(requests, BUCKET, key)
            if entry is not None and _covers(entry.value, record):
                return
            revision = entry.revision if entry else 0
        try:
            written = await key_value.compare_and_set(requests, BUCKET, key, value, revision)
        except NoRoom as error:
            # Nobody learns of a wait or an end without its record: it is waited for as for a broker that is silent.
            raise BrokerUnavailable(f"no room for the record of task {record.id}: {error}") from None
        if written:
            faults.reach("after-project", record.status)
            return
        revision = None
        if round_number > 1:
            await asyncio.sleep(BROKER_POLICY.delay_seconds(round_number, random.random()))
    raise BrokerUnavailable(f"the record of task {record.id} can't be written")


def _covers(value: bytes | None, record: TaskRecord) -> bool:
    """Whether the bucket's value says as much of the journal as `record` does."""
    return value is not None and decode(value, TaskRecord).sequence >= record.sequence


@dataclass(slots=True)
class _Pending:
    record: TaskRecord
    known_revision: int | None
    timer: asyncio.TimerHandle


class BackgroundProjection:
    """Projections that nobody waits for: a task has begun, or runs. The newest record of a task wins.

    A record is written once it has been the newest for a while: of a task that ends before that, only its end is.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._pending: dict[str, _Pending] = {}
        self._ready: deque[str] = deque()
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._health = LoopHealth(log, "projection.failed")

    def submit(self, record: TaskRecord, *, known_revision: int | None = None) -> None:
        """Project soon. A record of the same task that still waits is replaced."""
        key = subjects.task_key(record.tenant, record.id)
        waiting = self._pending.get(key)
        if waiting is not None:
            waiting.record = record
        elif len(self._pending) < PENDING_MAX:
            timer = asyncio.get_running_loop().call_later(QUIET_SECONDS, self._is_quiet, key)
            self._pending[key] = _Pending(record, known_revision, timer)

    async def superseded(self, tenant: str, task: str) -> None:
        """Drop what waits of this task, and wait for what is under way; call before an awaited projection."""
        key = subjects.task_key(tenant, task)
        waiting = self._pending.pop(key, None)
        if waiting is not None:
            waiting.timer.cancel()
        writing = self._writing.get(key)
        if writing is not None:
            await asyncio.gather(writing, return_exceptions=True)

    async def close(self) -> None:
        """Write what waits, and wait for what is under way."""
        for key, waiting in list(self._pending.items()):
            waiting.timer.cancel()
            if key not in self._ready:
                self._is_quiet(key)
        while self._writing:
            await asyncio.gather(*self._writing.values(), return_exceptions=True)

    def _is_quiet(self, key: str) -> None:
        self._ready.append(key)
        self._write_next()

    def _write_next(self) -> None:
        while self._ready and len(self._writing) < WRITING_MAX:
            key = self._ready.popleft()
            waiting = self._pending.pop(key, None)
            # It may have been superseded; what is under way for the same task makes up with the next event.
            if waiting is not None and key not in self._writing:
                self._writing[key] = asyncio.create_task(self._write(key, waiting))

    async def _write(self, key: str, waiting: _Pending) -> None:
        try:
            await project(self._requests, waiting.record, known_revision=waiting.known_revision)
        except TaskmeshError as error:
            # The record lags until the task's next event; readers fold the journal.
            self._health.failed(error)
        else:
            self._health.succeeded()
        finally:
            del self._writing[key]
            self._write_next()
