"""Walking down the keys that are in several lists at once, at a bounded cost.

Each filter is a list of keys in order. Each list in turn is asked for its first key at or below where the walk is, and
the walk goes there; where all of them agree is a match. So a rare value carries the walk past what only a common one
has, whatever lies in between.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ingress.listing.keys import Key

SEEKS_MAX = 1_000
"""Looks into lists for one page, of some microseconds each. The page may end early, with a cursor to go on."""


class Walk:
    """The keys of a tenant that have all labels, the highest first, from `position` on.

    `rows`: the table of the rows, whose own order is the list where no label is asked for; `labels`: that of the
    labels. `position` is the first key that is not decided yet; None at the end.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        tenant: int,
        rows: str,
        labels: Sequence[int],
        position: Key,
        time_min: int = 0,
    ) -> None:
        self.position: Key | None = position
        self._database = database
        self._time_min = time_min
        self._seeks_left = SEEKS_MAX
        self._passed = False
        """Whether `position` itself is behind the walk."""
        self._lists: list[tuple[str, tuple[int, ...]]] = [
            (f"{rows}_labels WHERE tenant = ? AND label = ?", (tenant, label)) for label in dict.fromkeys(labels)
        ] or [(f"{rows} WHERE tenant = ?", (tenant,))]
        self._next = 0

    def next(self) -> Key | None:
        """The next key that is in all lists. None: there is none, or enough was looked at; `position` tells."""
        agreed = 0
        while self.position is not None and (self._passed or self._seeks_left > 0):
            found = self._seek(self.position)
            if found is None or found.time < self._time_min:
                self.position = None
                return None
            agreed = agreed + 1 if found == self.position and not self._passed else 1
            self.position, self._passed = found, False
            if agreed == len(self._lists):
                return found
        return None

    def go_on(self) -> None:
        """Leave the key that was found behind."""
        self._passed = True

    def _seek(self, position: Key) -> Key | None:
        place, named = self._lists[self._next]
        self._next = (self._next + 1) % len(self._lists)
        self._seeks_left -= 1
        comparison = "<" if self._passed else "<="
        row = self._database.execute(
            # The names are this package's own.
            f"SELECT time, id FROM {place} AND (time, id) {comparison} (?, ?)"  # noqa: S608
            " ORDER BY time DESC, id DESC LIMIT 1",
            (*named, position.time, position.id),
        ).fetchone()
        return None if row is None else Key(*row)
