"""The rows of dead letters: written as they are stored, opened and closed with their tasks.

In the thread of the index.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from contracts.api.dead_letters import ListedDeadLetter
from contracts.records.status import OpenDeadLetter, TaskRecord
from ingress.listing.keys import EVERY, OPEN, Key, id_bytes, microseconds
from ingress.listing.rows import letter_labels, packed, unpacked
from ingress.listing.tenants import NOBODY, Tenants
from ingress.listing.totals import Totals


class Letters:
    """The rows of dead letters, one for each message of DEAD_LETTERS."""

    def __init__(self, database: sqlite3.Connection, tenants: Tenants, totals: Totals) -> None:
        self._database = database
        self._tenants = tenants
        self._totals = totals

    def put(self, sequence: int, letter: ListedDeadLetter | None) -> None:
        """A message at this sequence; None is one that can't be read, or that nobody may see."""
        if self._database.execute("SELECT 1 FROM letters WHERE sequence = ?", (sequence,)).fetchone() is not None:
            return
        if letter is None or letter.tenant is None:
            self._insert(sequence, NOBODY, 0, None, None)
            return
        tenant, time = self._tenants.number(letter.tenant), microseconds(letter.time)
        task = id_bytes(letter.task) if letter.task is not None else None
        if task is not None:
            self._supersede(tenant, task, letter)
            letter = replace(letter, open=(letter.step, letter.gen) in self._open_steps(tenant, task))
        self._insert(sequence, tenant, time, task, letter)
        self._database.executemany(
            "INSERT INTO letters_labels VALUES (?, ?, ?, ?)",
            [(tenant, label, time, sequence) for label in letter_labels(letter)],
        )

    def opened(self, tenant: int, task: bytes, dead_letters: Sequence[OpenDeadLetter]) -> None:
        """These steps of a task wait to be repaired, and no others."""
        wanted = {(each.step, each.gen) for each in dead_letters}
        rows = self._database.execute(
            "SELECT sequence, time, step, gen FROM letters WHERE tenant = ? AND task = ?", (tenant, task)
        ).fetchall()
        for sequence, time, step, gen in rows:
            label = (tenant, OPEN, time, sequence)
            if (step, gen) in wanted:
                self._database.execute("INSERT OR IGNORE INTO letters_labels VALUES (?, ?, ?, ?)", label)
            else:
                self._delete_label(*label)

    def remove(self, sequences: Iterable[int]) -> int:
        """Take away rows whose messages are gone; how many there were."""
        removed = 0
        for sequence in sequences:
            row = self._database.execute(
                "SELECT tenant, time, record FROM letters WHERE sequence = ?", (sequence,)
            ).fetchone()
            if row is not None:
                self._hide(sequence, *row)
                self._database.execute("DELETE FROM letters WHERE sequence = ?", (sequence,))
                removed += 1
        self._totals.change("letters", -removed)
        return removed

    def sequences(self, after: int, until: int, rows_max: int) -> list[int]:
        """Sequences above `after`, up to `until`, from the lowest on."""
        rows = self._database.execute(
            "SELECT sequence FROM letters WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?",
            (after, until, rows_max),
        )
        return [sequence for (sequence,) in rows]

    def read(self, tenant: int, key: Key) -> ListedDeadLetter | None:
        """The dead letter at a key, and whether it is open."""
        row = self._database.execute("SELECT record FROM letters WHERE sequence = ?", (key.id,)).fetchone()
        if row is None or row[0] is None:
            return None
        is_open = self._database.execute(
            "SELECT 1 FROM letters_labels WHERE tenant = ? AND label = ? AND time = ? AND id = ?", (tenant, OPEN, *key)
        ).fetchone()
        return replace(unpacked(row[0], ListedDeadLetter), open=is_open is not None)

    def _insert(
        self, sequence: int, tenant: int, time: int, task: bytes | None, letter: ListedDeadLetter | None
    ) -> None:
        step, gen, record = (letter.step, letter.gen, packed(letter)) if letter is not None else (None, None, None)
        self._database.execute(
            "INSERT INTO letters VALUES (?, ?, ?, ?, ?, ?, ?)", (sequence, tenant, time, task, step, gen, record)
        )
        self._totals.change("letters", 1)

    def _supersede(self, tenant: int, task: bytes, letter: ListedDeadLetter) -> None:
        """Who met the open dead letter later on has written its record again: the latest one is listed."""
        rows = self._database.execute(
            "SELECT sequence, tenant, time, record FROM letters WHERE tenant = ? AND task = ? AND step = ? AND gen = ?",
            (tenant, task, letter.step, letter.gen),
        ).fetchall()
        for row in rows:
            self._hide(*row)
            self._database.execute("UPDATE letters SET task = NULL, record = NULL WHERE sequence = ?", row[:1])

    def _hide(self, sequence: int, tenant: int, time: int, record: bytes | None) -> None:
        if record is not None:
            for label in letter_labels(unpacked(record, ListedDeadLetter)) | {EVERY, OPEN}:
                self._delete_label(tenant, label, time, sequence)

    def _delete_label(self, tenant: int, label: int, time: int, sequence: int) -> None:
        self._database.execute(
            "DELETE FROM letters_labels WHERE tenant = ? AND label = ? AND time = ? AND id = ?",
            (tenant, label, time, sequence),
        )

    def _open_steps(self, tenant: int, task: bytes) -> set[tuple[str | None, int | None]]:
        row = self._database.execute("SELECT record FROM tasks WHERE tenant = ? AND id = ?", (tenant, task)).fetchone()
        if row is None:
            return set()
        return {(each.step, each.gen) for each in unpacked(row[0], TaskRecord).dead_letters or ()}
