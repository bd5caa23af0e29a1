"""Journals that a process keeps warm: the folded states of tasks that it had to do with lately, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict

from mesh.broker.requests import Requests
from mesh.journal.folded import FoldedJournal
from mesh.journal.journal import Journal
from mesh.task.state import TaskState

PAYLOAD_BYTES_MAX = 16 * 1024 * 1024
"""Of all journals together, as they are stored; a folded state takes a few times as much."""
JOURNAL_BYTES_LEAST = 4 * 1024
"""What the smallest counts for."""
OPENED_BETWEEN = 32
"""Journals are opened between two looks at how much they take together: each look goes through all."""


class WarmJournals:
    """The journals of one process, the one used last at the end. What is dropped is read again when it is needed."""

    def __init__(self, requests: Requests, payload_bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        self._requests = requests
        self._payload_bytes_max = payload_bytes_max
        self._kept: OrderedDict[tuple[str, str], FoldedJournal] = OrderedDict()
        self._opened = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def open(self, tenant: str, task: str, traceparent: str | None = None) -> Journal:
        """A journal, folded up to now, shared with all who have opened it here. Raises `BrokerUnavailable`."""
        folded = self._kept.pop((tenant, task), None) or FoldedJournal(self._requests, tenant, task)
        self._kept[tenant, task] = folded
        try:
            await folded.look()
        except BaseException:
            self.forget(tenant, task)  # Whatever is wrong with it, the next one reads it from its beginning.
            raise
        if not folded.state.exists or folded.state.is_packed:
            self.forget(tenant, task)  # It may be gone any time, and nobody would hear of it.
        self._opened += 1
        if self._opened % OPENED_BETWEEN == 0:
            self._shrink()
        return Journal(self._requests, tenant, task, traceparent, folded)

    async def state_of(self, tenant: str, task: str) -> TaskState:
        """The state of a task as its stream's leader has it; one that does not exist where it has none.

        Raises as `open` does.
        """
        journal = await self.open(tenant, task)
        await journal.catch_up_with_leader()
        return journal.state

    def is_warm(self, tenant: str, task: str) -> bool:
        """Whether a journal is here."""
        return (tenant, task) in self._kept

    def forget(self, tenant: str, task: str) -> None:
        """Drop a journal. Who works with it goes on with it."""
        self._kept.pop((tenant, task), None)

    def _shrink(self) -> None:
        total = sum(max(each.payload_bytes, JOURNAL_BYTES_LEAST) for each in self._kept.values())
        while total > self._payload_bytes_max and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            total -= max(dropped.payload_bytes, JOURNAL_BYTES_LEAST)
