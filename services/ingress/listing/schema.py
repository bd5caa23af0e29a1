"""The tables of the index, and how its file is opened, locked and thrown away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import zlib
from pathlib import Path

import msgspec
import structlog

from contracts.api.dead_letters import ListedDeadLetter
from contracts.records.status import STATUSES, TaskRecord
from ingress.listing.rows import DICTIONARY

log = structlog.get_logger("ingress.listing.schema")

SLOTS_MAX = 16
"""Files in one folder: ingresses of a machine that have the same one, each of which needs its own."""
CACHE_KIBIBYTES = 32 * 1024
"""What a process keeps of the file; the rest is the operating system's to keep."""
CHECKPOINT_PAGES = 2_000
"""After so many pages the write-ahead log goes into the file: 8 MiB."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NO_BOOT = b"unknown"
"""In the place of it. Nobody is of this boot: only a file that was closed is opened again then."""

TABLES = """
-- How far the index is with a stream, and which one that is: a stream that was made again has another time.
CREATE TABLE streams (name TEXT PRIMARY KEY, created TEXT NOT NULL, cursor INTEGER NOT NULL) WITHOUT ROWID;
-- How many there are: hot tasks, packs, letters.
CREATE TABLE totals (name TEXT PRIMARY KEY, rows INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE tenants (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);

-- Tasks lie in the order of their lists, so that a page is read in one go. `sequence` is that of the record in
-- KV_tasks, or, of a packed one, that of its pack in ARCHIVE.
CREATE TABLE tasks (
    tenant INTEGER NOT NULL, time INTEGER NOT NULL, id BLOB NOT NULL,
    packed INTEGER NOT NULL, sequence INTEGER NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (tenant, time, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX tasks_by_id ON tasks (tenant, id);
CREATE INDEX hot_tasks ON tasks (sequence) WHERE packed = 0;
CREATE TABLE tasks_labels (
    tenant INTEGER NOT NULL, label INTEGER NOT NULL, time INTEGER NOT NULL, id BLOB NOT NULL,
    PRIMARY KEY (tenant, label, time, id)
) WITHOUT ROWID;
CREATE TABLE counts (
    tenant INTEGER NOT NULL, status INTEGER NOT NULL, tasks INTEGER NOT NULL, PRIMARY KEY (tenant, status)
) WITHOUT ROWID;
-- All messages of ARCHIVE: `tasks` are the tenant and id of each task of a pack; none of a part of a large one.
CREATE TABLE packs (sequence INTEGER PRIMARY KEY, tasks BLOB);

-- All messages of DEAD_LETTERS. Without `record` it is not listed: it can't be read, or a later one says the same.
CREATE TABLE letters (
    sequence INTEGER PRIMARY KEY, tenant INTEGER NOT NULL, time INTEGER NOT NULL,
    task BLOB, step TEXT, gen INTEGER, record BLOB
);
CREATE INDEX letters_of_tasks ON letters (tenant, task) WHERE task IS NOT NULL;
CREATE TABLE letters_labels (
    tenant INTEGER NOT NULL, label INTEGER NOT NULL, time INTEGER NOT NULL, id INTEGER NOT NULL,
    PRIMARY KEY (tenant, label, time, id)
) WITHOUT ROWID;
"""


def _format() -> int:
    """A number that is another one as soon as rows are kept in another way, or have other fields."""
    fields = [field.name for kind in (TaskRecord, ListedDeadLetter) for field in msgspec.structs.fields(kind)]
    return zlib.crc32(" ".join([TABLES, *fields, *STATUSES]).encode() + DICTIONARY) & 0x7FFFFFFF


FORMAT = _format()


def _boot() -> bytes:
    """What names the time since this machine was started; nothing where that is not known."""
    try:
        return _BOOT.read_bytes().strip()
    except OSError:
        return b""


class IndexFile:
    """Where the index lies: a file in a folder, kept from other processes by a lock; without a folder a file that goes
    with the process."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lock: int | None = None
        self._path: Path | None = None

    @property
    def path(self) -> Path | None:
        """The file; None while there is none with a name."""
        return self._path

    def open(self) -> sqlite3.Connection:
        """The database, with its tables. What is not an index of this format, or may be torn, is thrown away.

        Raises `sqlite3.Error`, `OSError`.
        """
        if self._folder is not None and self._path is None:
            self._path = self._take_slot(self._folder)
            if self._lock is not None and os.pread(self._lock, 100, 0) not in (b"", _boot()):
                log.info("listing.maybe_torn", path=str(self._path))
                self.throw_away()
            self._mark(_boot() or _NO_BOOT)
        database = self._connect()
        try:
            (found,) = database.execute("PRAGMA user_version").fetchone()
            if found != FORMAT:
                if found:
                    log.info("listing.other_format", path=str(self._path))
                database.close()
                self.throw_away()
                database = self._connect()
                database.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")
        except BaseException:
            database.close()
            raise
        return database

    def throw_away(self) -> None:
        """Delete the file, for one that is built anew."""
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """The database, and what SQLite has beside it."""
        if self._path is None:
            return []
        return [self._path.with_name(self._path.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]

    def close(self, *, is_kept: bool) -> None:
        """Leave the file to others; `is_kept`: once all of it is on the disk, so that it outlasts a power cut."""
        if self._lock is None or self._path is None:
            return
        if is_kept:
            with contextlib.suppress(OSError):
                descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                self._mark(b"")
        os.close(self._lock)
        self._lock = self._path = None

    def _mark(self, boot: bytes) -> None:
        """Say in the lock under which boot of the machine the file is written; nothing: it is whole."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, boot, 0)
            os.fsync(self._lock)

    def _take_slot(self, folder: Path) -> Path:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for slot in range(1, SLOTS_MAX + 1):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(folder / f"lists-{slot}.lock", flags, 0o600)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._lock = descriptor
                return folder / f"lists-{slot}.sqlite"
            os.close(descriptor)
        raise OSError(f"{folder}: {SLOTS_MAX} processes have an index here already")

    def _connect(self) -> sqlite3.Connection:
        if self._path is not None:
            if any(file.is_symlink() for file in self._files()):
                self.throw_away()  # Somebody's links, which are not to be written through.
            # For its owner's eyes alone: records hold what users wrote.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        # An empty name is a file that nobody else sees, and that the system takes away with the process.
        database = sqlite3.connect(self._path or "", isolation_level=None, check_same_thread=False)
        try:
            # Only one process has it: no file for shared memory. Nothing is synced, since the broker needs the disk for
            # what can't be built anew: a process that is killed leaves the file whole, a power cut may not.
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute(f"PRAGMA journal_mode = {'MEMORY' if self._path is None else 'WAL'}")
            database.execute("PRAGMA synchronous = OFF")
            database.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            database.execute(f"PRAGMA cache_size = -{CACHE_KIBIBYTES}")
            database.execute("PRAGMA temp_store = MEMORY")
        except BaseException:
            database.close()
            raise
        return database
