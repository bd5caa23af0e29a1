"""Where log lines go: a line that can't be written is dropped, since whoever logs must not end of a full disk."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

File = TypeVar("File")


class _Lossy:
    """A file whose write and flush never fail. All else is the file's own."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, line: Any) -> None:
        """Write a line, or nothing."""
        with suppress(OSError):
            self._file.write(line)

    def flush(self) -> None:
        """Flush it, or not: what is left in the file's buffer goes out with a later line."""
        with suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def lossy(file: File) -> File:
    """The same file, with lines that can't be written dropped."""
    return _Lossy(file)  # type: ignore[return-value]  # it is used as one: written to and flushed
