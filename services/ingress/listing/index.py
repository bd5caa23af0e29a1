"""The index itself: what its streams have said is written here, and lists are read. In one thread, never the loop's."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, NamedTuple, TypeVar

from contracts.api.dead_letters import ListedDeadLetter
from contracts.codec import encode
from contracts.records.archive import PackEntry
from contracts.records.status import Status, TaskRecord
from ingress.listing.filters import LetterFilter, TaskFilter
from ingress.listing.keys import Key, microseconds
from ingress.listing.letters import Letters
from ingress.listing.packs import Packs
from ingress.listing.tasks import Tasks
from ingress.listing.tenants import NOBODY, Tenants
from ingress.listing.totals import Totals
from ingress.listing.walking import Walk

PAGE_BYTES_MAX = 1024 * 1024
"""Of what a page shows. One row is always shown, however large: that has less."""
TRANSACTION_ROWS_MAX = 128
"""Rows that are written at once, some milliseconds' work: a list waits for no more."""
LAST = Key(2**63 - 1, b"\xff" * 17)
"""Above each key."""

Row = TypeVar("Row", TaskRecord, ListedDeadLetter)
Item = TypeVar("Item")


class HotRecord(NamedTuple):
    """A message of KV_tasks: a record, or what marks it as deleted."""

    sequence: int
    tenant: str
    task: str
    record: TaskRecord | None


class Found(NamedTuple, Generic[Row]):
    """Rows of a page, and the key of the first row of the next one."""

    rows: list[Row]
    next: Key | None


class StreamCursor(NamedTuple):
    """A stream as the index knows it: when it was made, and up to which sequence all of it is here."""

    created: str
    sequence: int


class Index:
    """All tables, over one connection."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._tenants = Tenants(database)
        self.totals = Totals(database)
        self.letters = Letters(database, self._tenants, self.totals)
        self.tasks = Tasks(database, self._tenants, self.totals, self.letters)
        self.packs = Packs(database, self.tasks, self.totals)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    # Following

    def cursors(self) -> dict[str, StreamCursor]:
        """How far the index is with each stream that it has seen."""
        rows = self._database.execute("SELECT name, created, cursor FROM streams")
        return {name: StreamCursor(created, cursor) for name, created, cursor in rows}

    def advance(self, stream: str, cursor: StreamCursor) -> None:
        """All of a stream is here up to this."""
        with self.transaction():
            self._set_cursor(stream, cursor)

    def put_hot(self, stream: str, created: str, records: Sequence[HotRecord], until: int) -> None:
        """Messages of KV_tasks, in their order; there is nothing else up to the sequence `until`."""
        for some in _slices(records):
            with self.transaction():
                for each in some:
                    if each.record is None:
                        self.tasks.remove_hot(each.tenant, each.task)
                    else:
                        self.tasks.put_hot(each.record, each.sequence)
                self._set_cursor(stream, StreamCursor(created, some[-1].sequence))
        self.advance(stream, StreamCursor(created, until))

    def put_pack(self, stream: str, created: str, sequence: int, entries: Sequence[PackEntry]) -> None:
        """A message of ARCHIVE, with the tasks of its directory."""
        for some in _slices(entries):
            with self.transaction():
                for entry in some:
                    self.tasks.put_packed(entry.record, sequence)
        with self.transaction():
            self.packs.put(sequence, entries)
            self._set_cursor(stream, StreamCursor(created, sequence))

    def put_letters(self, stream: str, created: str, letters: Sequence[tuple[int, ListedDeadLetter | None]]) -> None:
        """Messages of DEAD_LETTERS, in their order."""
        for some in _slices(letters):
            with self.transaction():
                for sequence, letter in some:
                    self.letters.put(sequence, letter)
                self._set_cursor(stream, StreamCursor(created, some[-1][0]))

    def remove_pack(self, sequence: int) -> bool:
        """Take away some tasks of a pack that is gone; whether that was all of them."""
        with self.transaction():
            return self.packs.remove(sequence, TRANSACTION_ROWS_MAX)

    def remove_hot(self, sequences: Sequence[int]) -> int:
        """Take away hot tasks whose records, at these sequences, are gone; how many there were."""
        removed = 0
        for some in _slices(sequences):
            with self.transaction():
                removed += self.tasks.remove_hot_at(some)
        return removed

    def remove_letters(self, sequences: Sequence[int]) -> int:
        """Take away dead letters whose records are gone; how many there were."""
        removed = 0
        for some in _slices(sequences):
            with self.transaction():
                removed += self.letters.remove(some)
        return removed

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written in the body, or nothing of it."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.tasks.flush()
            self.totals.flush()
            self._database.execute("COMMIT")
        except BaseException:
            for each in (self.tasks, self.totals, self._tenants):
                each.roll_back()
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _set_cursor(self, stream: str, cursor: StreamCursor) -> None:
        self._database.execute("INSERT OR REPLACE INTO streams VALUES (?, ?, ?)", (stream, *cursor))

    # Lists

    def list_tasks(self, tenant_name: str, wanted: TaskFilter, limit: int, first: Key | None) -> Found[TaskRecord]:
        """A page of a tenant's tasks, from the key `first` on, or from the newest."""

        def read(tenant: int, key: Key) -> TaskRecord | None:
            record = self.tasks.read(tenant, key)
            return record if record is not None and wanted.takes(record) else None

        return self._list("tasks", tenant_name, wanted, read, limit, first)

    def list_letters(
        self, tenant_name: str, wanted: LetterFilter, limit: int, first: Key | None
    ) -> Found[ListedDeadLetter]:
        """A page of a tenant's dead letters, from the key `first` on, or from the newest."""

        def read(tenant: int, key: Key) -> ListedDeadLetter | None:
            letter = self.letters.read(tenant, key)
            return letter if letter is not None and wanted.takes(letter) else None

        return self._list("letters", tenant_name, wanted, read, limit, first)

    def _list(
        self,
        rows: str,
        tenant_name: str,
        wanted: TaskFilter | LetterFilter,
        read: Callable[[int, Key], Row | None],
        limit: int,
        first: Key | None,
    ) -> Found[Row]:
        tenant = self._tenants.known(tenant_name)
        if tenant == NOBODY:
            return Found([], None)
        start = _start(first or LAST, None if wanted.until is None else microseconds(wanted.until))
        since = 0 if wanted.since is None else microseconds(wanted.since)
        walk = Walk(self._database, tenant, rows, wanted.labels, start, since)
        return _page(walk, lambda key: read(tenant, key), limit)

    def counts(self, tenant_name: str) -> dict[Status, int]:
        """How many tasks a tenant has of each status."""
        return self.tasks.counts(tenant_name)

    def counts_of_all(self) -> dict[Status, int]:
        """How many tasks of each status there are, of all tenants."""
        return self.tasks.counts_of_all()


def _start(first: Key, until: int | None) -> Key:
    """Where a page begins: at its cursor, and below the time `until`."""
    return first if until is None or first.time < until else Key(until - 1, LAST.id)


def _page(walk: Walk, read: Callable[[Key], Row | None], limit: int) -> Found[Row]:
    rows: list[Row] = []
    size = 0
    while (key := walk.next()) is not None:
        row = read(key)
        if row is not None:
            size += len(encode(row))
            if len(rows) == limit or (rows and size > PAGE_BYTES_MAX):
                return Found(rows, key)
            rows.append(row)
        walk.go_on()
    return Found(rows, walk.position)


def _slices(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), TRANSACTION_ROWS_MAX):
        yield items[start : start + TRANSACTION_ROWS_MAX]
