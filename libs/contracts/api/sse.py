"""Server-Sent Events: the one encoder, and a decoder that conforms to the WHATWG HTML standard (section 9.2)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from contracts.errors import InvalidName, InvalidPayload
from contracts.journal.heads import EVENT_TYPE_PATTERN

RETRY_MILLISECONDS = 1000
"""Sent once at the start of a stream: how long a client waits before it comes back."""
FRAME_BYTES_MAX = 64 * 1024 * 1024
"""About the largest frame that the decoder takes: a snapshot holds the texts of all turns, and more is rubbish."""
_RETRY_DIGITS_MAX = 9

_EVENT_TYPE = re.compile(EVENT_TYPE_PATTERN)
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BREAKS_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def frame(sequence: int | None, event_type: str, payload: bytes) -> bytes:
    r"""One event as a frame: `id: <sequence>\nevent: <type>\ndata: <payload>\n\n`; without a sequence there is no id.

    `payload` is JSON. A CR or LF in it can only be white space between tokens, and becomes a space: a line break
    would end the data. Raises `InvalidName` for an event type outside the grammar.
    """
    if b"\n" in payload or b"\r" in payload:
        payload = payload.translate(_BREAKS_TO_SPACES)
    head = _head(event_type)
    if sequence is None:
        return b"%b%b\n\n" % (head, payload)
    return b"id: %d\n%b%b\n\n" % (sequence, head, payload)


def comment(text: str) -> bytes:
    """A line that clients skip: it keeps an idle connection open. Line breaks in it become spaces."""
    return b": %b\n\n" % text.encode().translate(_BREAKS_TO_SPACES)


def retry(milliseconds: int) -> bytes:
    """How long a client should wait before it reconnects: a line that goes before those of a frame."""
    if milliseconds < 0:
        raise ValueError("a client can't wait less than 0 ms")
    return b"retry: %d\n" % milliseconds


@lru_cache(maxsize=256)
def _head(event_type: str) -> bytes:
    if _EVENT_TYPE.fullmatch(event_type) is None:
        raise InvalidName(f"not a valid event type: {event_type!r:.80}")
    return f"event: {event_type}\ndata: ".encode()


class Frame(NamedTuple):
    """A received event. `event_type` is `message` where the frame names none."""

    last_event_id: str
    event_type: str
    data: str


class Decoder:
    """Turns bytes, however they are cut, into frames. One for each connection.

    `last_event_id` is what a client sends as `Last-Event-ID` when it reconnects; give it to the next connection's
    decoder. `retry_milliseconds` is what the server asked for last.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_milliseconds: int | None = None
        self._next_id = last_event_id
        self._event_type = ""
        self._data: list[str] = []
        self._partial_line: list[bytes] = []
        self._partial_bytes = 0
        self._data_characters = 0
        self._at_start = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take more bytes; returns the frames that they complete. Raises `InvalidPayload` for one that is too large."""
        if not chunk:
            return []
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # The second half of a CRLF whose line has ended already.
        self._after_cr = chunk.endswith(b"\r")
        frames: list[Frame] = []
        *lines, rest = _LINE_END.split(chunk)
        for line in lines:
            self._hold(line)
            received = self._take_line(b"".join(self._partial_line))
            self._partial_line.clear()
            self._partial_bytes = 0
            if received is not None:
                frames.append(received)
        if rest:
            self._hold(rest)
        return frames

    def _hold(self, part: bytes) -> None:
        self._partial_line.append(part)
        self._partial_bytes += len(part)
        if self._partial_bytes + self._data_characters > FRAME_BYTES_MAX:
            raise InvalidPayload(f"a frame of more than {FRAME_BYTES_MAX} bytes")

    def _take_line(self, line: bytes) -> Frame | None:
        if self._at_start:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._at_start = False
        if not line:
            return self._dispatch()
        name, _, raw = line.partition(b":")
        value = raw.removeprefix(b" ").decode("utf-8", "replace")
        match name:
            case b"data":
                self._data.append(value)
                self._data_characters += len(value) + 1
            case b"event":
                self._event_type = value
            case b"id" if "\0" not in value:
                self._next_id = value
            case b"retry" if raw.removeprefix(b" ").isdigit() and len(value) <= _RETRY_DIGITS_MAX:
                self.retry_milliseconds = int(value)
            case _:
                pass  # A comment, whose name is empty, or a field that the standard does not know.
        return None

    def _dispatch(self) -> Frame | None:
        self.last_event_id = self._next_id
        received = None
        if self._data:
            received = Frame(self.last_event_id, self._event_type or "message", "\n".join(self._data))
        self._data = []
        self._event_type = ""
        self._data_characters = 0
        return received
