"""What waits for one reader: live events within bounds, and the newest preview of what can't be stored at present."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.journal.edge_events import OutputPreview

BUFFER_EVENTS_MAX = 256
BUFFER_BYTES_MAX = 256 * 1024
"""Live events that may wait for one reader. On overflow they are dropped, and read from the journal again."""


class Live(NamedTuple):
    """An event as it was republished."""

    sequence: int
    n: int
    type: str
    payload: bytes


class Preview(NamedTuple):
    """What was said since event `n`, as `output.preview`."""

    n: int
    payload: bytes


def read_preview(tenant: str, task: str, payload: bytes) -> Preview | None:
    """A preview of a task; None if it is none: anybody may publish on its subject."""
    try:
        preview = decode(payload, OutputPreview)
    except InvalidPayload:
        return None
    return Preview(preview.n, payload) if (preview.tenant, preview.task) == (tenant, task) else None


class LiveBuffer:
    """Live events on their way to one reader, within bounds."""

    def __init__(self, *, previews: bool = False) -> None:
        """`previews`: whether the reader asks for them."""
        self._events: deque[Live] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._previews = previews
        self._preview: Preview | None = None
        self.overflowed = False

    def put(self, event: Live) -> None:
        """Add an event; too much marks the buffer as overflowed, and empties it."""
        if self.overflowed:
            return
        if len(self._events) >= BUFFER_EVENTS_MAX or self._bytes + len(event.payload) > BUFFER_BYTES_MAX:
            self.overflow()
            return
        self._events.append(event)
        self._bytes += len(event.payload)
        self._wake.set()

    def put_preview(self, preview: Preview) -> None:
        """Take note of a preview, in place of the one before."""
        if self._previews:
            self._preview = preview
            self._wake.set()

    def take_preview(self) -> Preview | None:
        """The newest preview, once."""
        preview, self._preview = self._preview, None
        return preview

    def overflow(self) -> None:
        """Events are missing here: the journal has them."""
        self._events.clear()
        self._bytes = 0
        self.overflowed = True
        self._wake.set()

    def reset(self) -> None:
        """Begin anew. Call before reading the journal, so that nothing falls between."""
        self.overflowed = False
        self._wake.clear()

    async def take(self, timeout_seconds: float) -> list[Live]:
        """All that has gathered, or nothing after the timeout, an overflow, or for a preview."""
        if not self._events and not self.overflowed and self._preview is None:
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._wake.wait()
            except TimeoutError:
                return []
        taken = list(self._events)
        self._events.clear()
        self._bytes = 0
        return taken
