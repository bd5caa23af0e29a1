"""Reading a stream backwards by direct get, in windows of sequences that grow: the newest of few among many.

A consumer would have to be made and deleted for each page, and could not go backwards.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple

from mesh.broker.direct_get import Stored, read_page
from mesh.broker.requests import Requests

WINDOW_FIRST = 256
WINDOW_MESSAGES_MAX = 4096
"""A window that holds more of the filter is made smaller; one that holds few grows, as the broker skips the others."""
WINDOW_BYTES_MAX = 16 * 1024 * 1024
"""The same for their payloads: one of them may have 1 MiB."""


class Window(NamedTuple):
    """The messages of the filter from sequence `start` on up to the window before, the newest first."""

    start: int
    messages: list[Stored]


async def windows(requests: Requests, stream: str, subject_filter: str, before: int) -> AsyncGenerator[Window, None]:
    """Yield all of a filter below sequence `before`, which is not far beyond the stream's end.

    Raises `BrokerUnavailable`.
    """
    window = WINDOW_FIRST
    while before > 1:
        start = max(1, before - window)
        messages = await _read(requests, stream, subject_filter, start, before)
        if messages is None:
            window = max(1, window // 16)
            continue
        messages.reverse()
        yield Window(start, messages)
        before = start
        window *= 4


async def _read(requests: Requests, stream: str, subject_filter: str, start: int, before: int) -> list[Stored] | None:
    """Messages with sequences from `start` on and below `before`, in order; None if they are too many."""
    messages: list[Stored] = []
    payload_bytes = 0
    after, more = start - 1, True
    while more:
        page, more = await read_page(requests, stream, subject_filter, after)
        for message in page:
            if message.sequence >= before:
                return messages
            after = message.sequence
            messages.append(message)
            payload_bytes += len(message.payload)
        # One message is never too many.
        if len(messages) > WINDOW_MESSAGES_MAX or (payload_bytes > WINDOW_BYTES_MAX and before - start > 1):
            return None
    return messages
