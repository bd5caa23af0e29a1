"""The record of a task, as clients read it: from what was projected, from its pack, or from its journal."""

from __future__ import annotations

import msgspec

from contracts import subjects
from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.records.status import ENDED, TaskRecord
from contracts.streams import TASKS_BUCKET
from ingress.journals import packed_record, read_journal
from ingress.links import task_links
from ingress.waiting import Waits
from mesh.broker import key_value
from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.journal.warm import WarmJournals
from mesh.task.records import record


class TaskRecords:
    """Reads them."""

    def __init__(self, settings: Settings, requests: Requests, journals: WarmJournals, waits: Waits) -> None:
        self._settings = settings
        self._requests = requests
        self._journals = journals
        self._waits = waits

    def take(self, settings: Settings) -> None:
        """Go by these settings from the next record on."""
        self._settings = settings

    async def read(self, tenant: str, task: str, *, says_waiting: bool = False) -> TaskRecord:
        """A task's status, folded from its journal. That of one that has ended does not change any more.

        `says_waiting`: with what it waits for.
        """
        if not self._journals.is_warm(tenant, task):
            entry = await key_value.get(self._requests, TASKS_BUCKET.name, subjects.task_key(tenant, task))
            projected = _readable_record(entry.value) if entry is not None and entry.value else None
            if projected is not None and projected.status in ENDED:
                return self.linked(projected)
            packed = await packed_record(self._requests, tenant, task) if entry is None else None
            if packed is not None:
                return self.linked(packed)
        state = (await read_journal(self._journals, tenant, task)).state
        shown = self.linked(record(state))
        return await self._waits.told(shown, state) if says_waiting else shown

    def linked(self, task: TaskRecord) -> TaskRecord:
        """A record with where more of its task is."""
        return msgspec.structs.replace(task, links=task_links(self._settings, task.id))


def _readable_record(value: bytes) -> TaskRecord | None:
    """A record, if this version can read it; else the journal is asked."""
    try:
        return decode(value, TaskRecord)
    except InvalidPayload:
        return None
