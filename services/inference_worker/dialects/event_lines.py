"""Server-Sent Events as model servers send them: bytes to payloads. Pure."""

from __future__ import annotations

import codecs
import re

from inference_worker.dialects.errors import ProviderFailed

LINE_BYTES_MAX = 4 * 1024 * 1024
"""The longest line: a call comes whole from some servers, and its arguments may be a document."""

_LINE_END = re.compile(rb"\r\n|\n|\r")


class LineReader:
    """Takes Server-Sent Events apart, however the bytes are cut, and as soon as a line is whole.

    Leaner than the standard, as these servers are: each event is one line of `data`. So nothing waits for the blank
    line, which some leave out. llama.cpp sends errors as a field `error`.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._is_first = True

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that are whole now. Raises `ProviderFailed` for a line that is too long."""
        # Only what is new is searched for ends: a long line may come in very many parts.
        first, *more = _LINE_END.split(data)
        self._rest += first
        if len(self._rest) > LINE_BYTES_MAX:
            raise ProviderFailed("provider-error", f"a line of more than {LINE_BYTES_MAX} bytes", retryable=True)
        if not more:
            return []
        *between, rest = more
        lines = [self._line(), *between]
        self._rest += rest
        return [payload for line in lines if (payload := _payload(line))]

    def end(self) -> list[bytes]:
        """What stood in a last line without an end."""
        payload = _payload(self._line())
        return [payload] if payload else []

    def _line(self) -> bytes:
        """The line that has come to its end. Some begin a stream with a byte order mark."""
        line, is_first = bytes(self._rest), self._is_first
        self._rest.clear()
        self._is_first = False
        return line.removeprefix(codecs.BOM_UTF8) if is_first else line


def _payload(line: bytes) -> bytes | None:
    name, _, value = line.partition(b":")
    return value.strip() if name in (b"data", b"error") else None
