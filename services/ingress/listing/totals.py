"""How many rows there are of some kinds, kept as they change: counting would read them all.

In the thread of the index.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import Literal

Kind = Literal["hot", "packs", "letters"]
"""Tasks whose record lies in KV_tasks; messages of ARCHIVE; messages of DEAD_LETTERS."""


class Totals:
    """Numbers of rows, of the last transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._changes: Counter[Kind] = Counter()

    def change(self, kind: Kind, rows: int) -> None:
        """So many more, or fewer."""
        self._changes[kind] += rows

    def read(self, kind: Kind) -> int:
        """How many there are."""
        row = self._database.execute("SELECT rows FROM totals WHERE name = ?", (kind,)).fetchone()
        return 0 if row is None else int(row[0])

    def flush(self) -> None:
        """Write what has changed; before the end of each transaction."""
        self._database.executemany(
            "INSERT INTO totals VALUES (?, ?) ON CONFLICT DO UPDATE SET rows = rows + excluded.rows",
            [*self._changes.items()],
        )
        self._changes.clear()

    def roll_back(self) -> None:
        """Forget what has changed: the transaction did not happen."""
        self._changes.clear()
