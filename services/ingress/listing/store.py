"""The index in a thread of its own: the event loop, which accepts tasks, never waits for a disk."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import structlog

from contracts.errors import InvalidPayload
from ingress.listing.errors import ListUnavailable
from ingress.listing.index import Index
from ingress.listing.schema import IndexFile

log = structlog.get_logger("ingress.listing.store")

DISK_RETRY_AFTER_SECONDS = 30.0
"""Room comes from people: not at once."""
BROKEN_RETRY_AFTER_SECONDS = 5.0
_PRIMARY = 0xFF
"""The part of SQLite's codes that says what kind of error it is."""
_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

P = ParamSpec("P")
T = TypeVar("T")


class Store:
    """The index, opened by whoever needs it first, and thrown away where it is broken."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: where its file lies; None is a file that goes with the process."""
        self._file = IndexFile(folder)
        self._index: Index | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="listing")

    async def run(self, act: Callable[Concatenate[Index, P], T], *args: P.args, **named: P.kwargs) -> T:
        """Do this with the index, after all that was asked for before. Raises `ListUnavailable`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: self._act(act, *args, **named))

    async def begin_anew(self) -> None:
        """Throw the index away. Raises `ListUnavailable`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._throw_away)

    async def close(self, *, is_kept: bool) -> None:
        """Leave the file to whoever comes next; `is_kept`: also if the machine is started again before that."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close, is_kept)
        self._thread.shutdown(wait=False)

    def _act(self, act: Callable[Concatenate[Index, P], T], *args: P.args, **named: P.kwargs) -> T:
        try:
            if self._index is None:
                self._index = Index(self._file.open())
            return act(self._index, *args, **named)
        except (sqlite3.Error, OSError, InvalidPayload) as error:
            raise self._failed(error) from None
        except Exception as error:
            # A fault of our own, in what can be built anew: nobody's tasks may hang on it.
            log.exception("listing.fault", error=str(error))
            raise self._failed(InvalidPayload(f"{type(error).__name__}: {error}")) from None

    def _failed(self, error: Exception) -> ListUnavailable:
        """What went wrong with the file. Unless there is no room, which may pass, it is opened again."""
        code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
        if code != sqlite3.SQLITE_FULL:
            self._close_index()
        if isinstance(error, InvalidPayload) or code in _BROKEN:
            log.error("listing.broken", path=str(self._file.path), error=str(error))
            with contextlib.suppress(OSError):
                self._file.throw_away()
            reason = f"the index of the lists was broken, and is built anew: {error}"
            return ListUnavailable(reason, retry_after_seconds=BROKEN_RETRY_AFTER_SECONDS)
        reason = f"the index of the lists can't be kept: {error}"
        return ListUnavailable(reason, retry_after_seconds=DISK_RETRY_AFTER_SECONDS)

    def _throw_away(self) -> None:
        self._close_index()
        try:
            self._file.throw_away()
        except OSError as error:
            raise self._failed(error) from None

    def _close(self, is_kept: bool) -> None:
        self._close_index()
        self._file.close(is_kept=is_kept)

    def _close_index(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            with contextlib.suppress(sqlite3.Error):
                index.close()
