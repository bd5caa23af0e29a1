"""The tenants of the index, each as a number: rows say it often. In the thread of the index."""

from __future__ import annotations

import sqlite3

KEPT_MAX = 10_000
"""Numbers that are kept in memory; all are forgotten at once."""
NOBODY = 0
"""The number of a tenant that nothing is kept of: there are no rows with it."""


class Tenants:
    """Numbers of tenants."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._kept: dict[str, int] = {}

    def number(self, tenant: str) -> int:
        """A tenant's number; a new one gets one."""
        return self.known(tenant) or self._add(tenant)

    def known(self, tenant: str) -> int:
        """A tenant's number; `NOBODY` if it has none."""
        number = self._kept.get(tenant)
        if number is not None:
            return number
        row = self._database.execute("SELECT number FROM tenants WHERE name = ?", (tenant,)).fetchone()
        return NOBODY if row is None else self._keep(tenant, row[0])

    def roll_back(self) -> None:
        """Forget what may not be there any more: the transaction did not happen."""
        self._kept.clear()

    def _add(self, tenant: str) -> int:
        number = self._database.execute("INSERT INTO tenants (name) VALUES (?)", (tenant,)).lastrowid
        assert number is not None  # noqa: S101 - an insert has one
        return self._keep(tenant, number)

    def _keep(self, tenant: str, number: int) -> int:
        if len(self._kept) >= KEPT_MAX:
            self._kept.clear()
        self._kept[tenant] = number
        return number
