"""Where log lines go, how long they get, and that no secret is in them.

A line that can't be written is dropped, since whoever logs must not end of a full disk.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Final, TypeVar

import structlog

from mesh.masking import hidden

FIELD_CHARACTERS_MAX: Final = 8192
"""A traceback of thirty calls is whole. An endless recursion's, or a stranger's text, must not fill the disk."""

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


def bounded(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Cut the middle out of fields that are too long: an exception's last line says what it is."""
    for name, value in event.items():
        if value is None or isinstance(value, (bool, int, float)):
            continue
        text = value if isinstance(value, str) else repr(value)
        if len(text) > FIELD_CHARACTERS_MAX:
            half = FIELD_CHARACTERS_MAX // 2
            left_out = len(text) - 2 * half
            event[name] = f"{text[:half]} … {left_out} characters left out … {text[-half:]}"
    return event


def masked(_: object, __: str, line: Any) -> str | bytes:
    """A rendered line without this process's secrets. A search for each costs less than a microsecond."""
    if isinstance(line, str):
        return hidden.mask(line)
    rendered: bytes = line
    lowered = rendered.lower()
    if any(each in lowered for each in hidden.raw):
        return hidden.mask(rendered.decode(errors="replace")).encode()
    return rendered


class MaskedFormatter(logging.Formatter):
    """Lines of libraries, without this process's secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return hidden.mask(super().format(record))


class LibraryNoise(logging.Filter):
    """Drops what asyncio says of a TLS connection that its other end has given up: whoever made it says so itself.

    uvloop (0.22) shows the traceback of a first write into a connection that was reset before its handshake began.
    asyncio, and uvloop likewise, warn at the end of each connection that was made by `loop.start_tls` with a
    `StreamReaderProtocol`, as nats-py's are.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        said = record.getMessage()
        if said.startswith("returning true from eof_received()"):
            return False
        error = record.exc_info[1] if record.exc_info else None
        is_handshake = said.startswith("Exception in callback <bound method SSLProtocol.connection_made ")
        return not (is_handshake and isinstance(error, RuntimeError) and "the handler is closed" in str(error))
