"""The rows of tasks: written as their records change, packed, and taken away. In the thread of the index."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from contracts.records.status import STATUSES, Status, TaskRecord
from ingress.listing.keys import ID_BYTES, Key, id_bytes, microseconds, status_label
from ingress.listing.letters import Letters
from ingress.listing.rows import packed, shown, task_labels, unpacked
from ingress.listing.tenants import Tenants
from ingress.listing.totals import Totals

_TENANT_BYTES = 4
LISTED_BYTES = _TENANT_BYTES + ID_BYTES
"""A task in the listing of its pack."""


class _Found(NamedTuple):
    """The row that there is of a task."""

    time: int
    is_packed: bool
    sequence: int
    record: TaskRecord


class Tasks:
    """The rows of tasks, of which there is one for each task, hot or packed."""

    def __init__(self, database: sqlite3.Connection, tenants: Tenants, totals: Totals, letters: Letters) -> None:
        self._database = database
        self._tenants = tenants
        self._totals = totals
        self._letters = letters
        self._counted: Counter[tuple[int, int]] = Counter()
        """Changes of `counts` that the transaction under way still has to write."""

    def put_hot(self, record: TaskRecord, sequence: int) -> None:
        """A record as it lies in KV_tasks, at `sequence` of the bucket's stream."""
        tenant, task = self._tenants.number(record.tenant), id_bytes(record.id)
        old = self._find(tenant, task)
        if old is not None and old.is_packed and record.sequence <= old.record.sequence:
            return  # It was written late: the task is packed already.
        self._put(tenant, task, record, old, is_packed=False, sequence=sequence)

    def put_packed(self, record: TaskRecord, pack: int) -> None:
        """A record from the directory of the pack at this sequence of ARCHIVE."""
        tenant, task = self._tenants.number(record.tenant), id_bytes(record.id)
        old = self._find(tenant, task)
        if old is not None and (
            old.sequence > pack if old.is_packed else old.record.sequence > record.sequence  # Begun again since.
        ):
            return
        self._put(tenant, task, record, old, is_packed=True, sequence=pack)

    def remove_hot(self, tenant_name: str, task_id: str) -> None:
        """Take away a task whose record was deleted, unless it is packed."""
        tenant, task = self._tenants.number(tenant_name), id_bytes(task_id)
        old = self._find(tenant, task)
        if old is not None and not old.is_packed:
            self._remove(tenant, task, old)

    def remove_hot_at(self, sequences: Iterable[int]) -> int:
        """Take away hot tasks by the sequences of their records; how many there were."""
        removed = 0
        for sequence in sequences:
            row = self._database.execute(
                "SELECT tenant, id FROM tasks WHERE packed = 0 AND sequence = ?", (sequence,)
            ).fetchone()
            old = self._find(*row) if row is not None else None
            if old is not None:
                self._remove(row[0], row[1], old)
                removed += 1
        return removed

    def hot_sequences(self, after: int, until: int, rows_max: int) -> list[int]:
        """Sequences of the records of hot tasks above `after`, up to `until`, from the lowest on."""
        rows = self._database.execute(
            "SELECT sequence FROM tasks WHERE packed = 0 AND sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?",
            (after, until, rows_max),
        )
        return [sequence for (sequence,) in rows]

    def listing(self, records: Sequence[TaskRecord]) -> bytes:
        """Which tasks a pack has, as the table of packs keeps it."""
        return b"".join(
            self._tenants.number(record.tenant).to_bytes(_TENANT_BYTES, "big") + id_bytes(record.id)
            for record in records
        )

    def remove_packed(self, listing: bytes, pack: int) -> None:
        """Take away the tasks of a pack that is gone, but for those that lie elsewhere by now."""
        for tenant, task in _listed(listing):
            old = self._find(tenant, task)
            if old is not None and old.is_packed and old.sequence == pack:
                self._remove(tenant, task, old)

    def counts(self, tenant_name: str) -> dict[Status, int]:
        """How many tasks a tenant has of each status."""
        rows = self._database.execute(
            "SELECT status, tasks FROM counts WHERE tenant = ?", (self._tenants.known(tenant_name),)
        )
        found = dict(rows.fetchall())
        return {status: found.get(status_label(status), 0) for status in STATUSES}

    def counts_of_all(self) -> dict[Status, int]:
        """How many tasks of each status there are, of all tenants."""
        found = dict(self._database.execute("SELECT status, SUM(tasks) FROM counts GROUP BY status").fetchall())
        return {status: found.get(status_label(status), 0) for status in STATUSES}

    def read(self, tenant: int, key: Key) -> TaskRecord | None:
        """The task at a key."""
        row = self._database.execute(
            "SELECT record FROM tasks WHERE tenant = ? AND time = ? AND id = ?", (tenant, *key)
        ).fetchone()
        return None if row is None else unpacked(row[0], TaskRecord)

    def flush(self) -> None:
        """Write what is counted; before the end of each transaction."""
        self._database.executemany(
            "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET tasks = tasks + excluded.tasks",
            [(*counted, change) for counted, change in self._counted.items() if change],
        )
        self._counted.clear()

    def roll_back(self) -> None:
        """Forget what was counted: the transaction did not happen."""
        self._counted.clear()

    def _find(self, tenant: int, task: bytes) -> _Found | None:
        row = self._database.execute(
            "SELECT time, packed, sequence, record FROM tasks WHERE tenant = ? AND id = ?", (tenant, task)
        ).fetchone()
        if row is None:
            return None
        time, is_packed, sequence, record = row
        return _Found(time, bool(is_packed), sequence, unpacked(record, TaskRecord))

    def _put(
        self, tenant: int, task: bytes, record: TaskRecord, old: _Found | None, *, is_packed: bool, sequence: int
    ) -> None:
        time, labels = microseconds(record.updated_at), task_labels(record)
        row = packed(shown(record))
        old_labels = task_labels(old.record) if old is not None else set()
        if old is not None and old.time == time:
            self._database.execute(
                "UPDATE tasks SET packed = ?, sequence = ?, record = ? WHERE tenant = ? AND time = ? AND id = ?",
                (is_packed, sequence, row, tenant, time, task),
            )
            gone, new = old_labels - labels, labels - old_labels
        else:
            if old is not None:
                self._delete_row(tenant, task, old.time)
            self._database.execute(
                "INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?)", (tenant, time, task, is_packed, sequence, row)
            )
            gone, new = old_labels, labels
        if old is not None:
            self._delete_labels(tenant, task, old.time, gone)
            self._counted[tenant, status_label(old.record.status)] -= 1
            self._totals.change("hot", -(not old.is_packed))
        self._database.executemany(
            "INSERT INTO tasks_labels VALUES (?, ?, ?, ?)", [(tenant, label, time, task) for label in new]
        )
        self._counted[tenant, status_label(record.status)] += 1
        self._totals.change("hot", int(not is_packed))
        if record.dead_letters or (old is not None and old.record.dead_letters):
            self._letters.opened(tenant, task, record.dead_letters or ())

    def _remove(self, tenant: int, task: bytes, old: _Found) -> None:
        self._delete_row(tenant, task, old.time)
        self._delete_labels(tenant, task, old.time, task_labels(old.record))
        self._counted[tenant, status_label(old.record.status)] -= 1
        self._totals.change("hot", -(not old.is_packed))
        if old.record.dead_letters:
            self._letters.opened(tenant, task, ())

    def _delete_row(self, tenant: int, task: bytes, time: int) -> None:
        self._database.execute("DELETE FROM tasks WHERE tenant = ? AND time = ? AND id = ?", (tenant, time, task))

    def _delete_labels(self, tenant: int, task: bytes, time: int, labels: Iterable[int]) -> None:
        self._database.executemany(
            "DELETE FROM tasks_labels WHERE tenant = ? AND label = ? AND time = ? AND id = ?",
            [(tenant, label, time, task) for label in labels],
        )


def _listed(listing: bytes) -> Iterator[tuple[int, bytes]]:
    """The tenants and ids of a pack's tasks."""
    for start in range(0, len(listing), LISTED_BYTES):
        tenant_ends = start + _TENANT_BYTES
        yield int.from_bytes(listing[start:tenant_ends], "big"), listing[tenant_ends : start + LISTED_BYTES]
