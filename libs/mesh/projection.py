"""The projection of journals into the bucket `tasks`: one status record for each task.

A record is only ever replaced by one that covers more of the journal, by compare-and-set on the journal
sequence it holds; so any number of writers may project, in any order.
"""

from __future__ import annotations

import asyncio
import random

import structlog

from contracts import subjects
from contracts.codec import decode, encode
from contracts.errors import TaskmeshError
from contracts.retries import BROKER_POLICY
from contracts.status import TaskRecord
from mesh import keyvalue
from mesh.errors import BrokerUnavailable
from mesh.requests import Requests

log = structlog.get_logger("mesh.projection")

BUCKET = "tasks"
BACKGROUND_MAX = 256
"""Projections in the background at once; above it they are skipped, and the next event of the task makes up."""
_ROUNDS_MAX = 100


async def project(requests: Requests, record: TaskRecord, *, known_revision: int | None = None) -> None:
    """Write a task's record unless a newer one is there. Raises `BrokerUnavailable`.

    `known_revision`: the bucket revision to try first, 0 for a task that is certainly new; saves a read.
    """
    key = subjects.task_key(record.tenant, record.id)
    value = encode(record)
    revision = known_revision
    for round_number in range(1, _ROUNDS_MAX):
        if revision is None:
            entry = await keyvalue.get(requests, BUCKET, key)
            if entry is not None and _covers(entry.value, record):
                return
            revision = entry.revision if entry else 0
        if await keyvalue.compare_and_set(requests, BUCKET, key, value, revision):
            return
        revision = None
        if round_number > 1:
            await asyncio.sleep(BROKER_POLICY.delay_seconds(round_number, random.random()))
    raise BrokerUnavailable(f"the record of task {record.id} can't be written")


def _covers(value: bytes | None, record: TaskRecord) -> bool:
    """Whether the bucket's value says as much of the journal as `record` does."""
    return value is not None and decode(value, TaskRecord).sequence >= record.sequence


class BackgroundProjection:
    """Projections that nobody waits for: a task has begun, or runs. The newest record of a task wins."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._next: dict[str, TaskRecord] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def submit(self, record: TaskRecord, *, known_revision: int | None = None) -> None:
        """Project soon. A record of the same task that still waits is replaced."""
        key = subjects.task_key(record.tenant, record.id)
        if key in self._tasks:
            self._next[key] = record
        elif len(self._tasks) < BACKGROUND_MAX:
            self._tasks[key] = asyncio.create_task(self._run(key, record, known_revision))

    async def superseded(self, tenant: str, task: str) -> None:
        """Wait until nothing older of this task is under way; call before an awaited projection."""
        key = subjects.task_key(tenant, task)
        self._next.pop(key, None)
        running = self._tasks.get(key)
        if running is not None:
            await asyncio.gather(running, return_exceptions=True)

    async def close(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(self, key: str, record: TaskRecord | None, known_revision: int | None) -> None:
        try:
            while record is not None:
                await project(self._requests, record, known_revision=known_revision)
                known_revision = None
                record = self._next.pop(key, None)
        except TaskmeshError as error:
            # The record lags until the task's next event; readers fold the journal.
            log.warning("projection.failed", key=key, code=error.code, error=str(error))
        finally:
            self._next.pop(key, None)
            del self._tasks[key]
