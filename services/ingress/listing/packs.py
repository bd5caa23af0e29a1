"""The rows of packs: which tasks lie in which message of ARCHIVE. In the thread of the index."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from contracts.records.archive import PackEntry
from ingress.listing.tasks import LISTED_BYTES, Tasks
from ingress.listing.totals import Totals


class Packs:
    """The messages of ARCHIVE, and the tasks of each that is a pack."""

    def __init__(self, database: sqlite3.Connection, tasks: Tasks, totals: Totals) -> None:
        self._database = database
        self._tasks = tasks
        self._totals = totals

    def put(self, sequence: int, entries: Sequence[PackEntry]) -> None:
        """A message, once all of its tasks are there; a part of a large task has none."""
        listing = self._tasks.listing([entry.record for entry in entries]) if entries else None
        inserted = self._database.execute("INSERT OR IGNORE INTO packs VALUES (?, ?)", (sequence, listing))
        self._totals.change("packs", inserted.rowcount)

    def below(self, first: int, rows_max: int) -> list[int]:
        """Sequences below the first one that ARCHIVE has."""
        rows = self._database.execute(
            "SELECT sequence FROM packs WHERE sequence < ? ORDER BY sequence LIMIT ?", (first, rows_max)
        )
        return [sequence for (sequence,) in rows]

    def present(self, sequences: Iterable[int]) -> list[int]:
        """Which of these are here."""
        found = (self._database.execute("SELECT sequence FROM packs WHERE sequence = ?", (each,)) for each in sequences)
        return [row[0] for rows in found for row in rows]

    def remove(self, sequence: int, tasks_max: int) -> bool:
        """Take away a message that is gone, with up to so many of its tasks; whether all of it is gone."""
        row = self._database.execute("SELECT tasks FROM packs WHERE sequence = ?", (sequence,)).fetchone()
        if row is None:
            return True
        listing: bytes = row[0] or b""
        some = tasks_max * LISTED_BYTES
        self._tasks.remove_packed(listing[:some], sequence)
        if len(listing) > some:
            self._database.execute("UPDATE packs SET tasks = ? WHERE sequence = ?", (listing[some:], sequence))
            return False
        self._database.execute("DELETE FROM packs WHERE sequence = ?", (sequence,))
        self._totals.change("packs", -1)
        return True
