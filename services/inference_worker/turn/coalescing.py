"""Adaptive coalescing: while one append is in flight, the next tokens gather, and go out as one event.

There is no timer, and so no added latency: on a fast disk each token is an event of its own, on a slow one
events are fewer and larger. Never is more than one append in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Literal

from mesh.background import is_seen

DELTA_CHARACTERS_MAX = 16 * 1024
"""Largest text of one delta event."""
PENDING_CHARACTERS_MAX = 64 * 1024
"""How much may gather before the writer of tokens has to wait."""

PREVIEW_SECONDS = 1.0
"""An append that takes so long has its text previewed, and again after as long. A broker that works takes milliseconds;
a cluster whose leader has died takes 4 to 9 s to elect another."""

DeltaKind = Literal["output", "reasoning"]
AppendDelta = Callable[[DeltaKind, str], Awaitable[object]]
Preview = Callable[[str], Awaitable[object]]


class DeltaWriter:
    """Writes a turn's tokens through `append`. Use as a context: its end waits for the last append.

    If an append fails, the next `put`, or the end, raises its error. If the context ends by an error, what
    gathered is dropped: nobody has seen it yet.
    """

    def __init__(self, append: AppendDelta, preview: Preview | None = None) -> None:
        """`preview` is told all the output that is not stored, while an append takes long. It may be lost."""
        self._append = append
        self._preview = preview
        self._previewing: asyncio.Task[None] | None = None
        self._pending: list[tuple[DeltaKind, str]] = []
        self._pending_characters = 0
        self._flusher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> DeltaWriter:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._flusher is None:
            return
        if kind is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
        else:
            await self._flusher

    def put(self, kind: DeltaKind, text: str) -> bool:
        """Add text. True if so much has gathered that whoever writes has to wait for `room`."""
        if self._flusher is not None and self._flusher.done():
            self._flusher.result()  # raises what its append raised
            self._flusher = None
        self._pending.append((kind, text))
        self._pending_characters += len(text)
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        return self._pending_characters > PENDING_CHARACTERS_MAX

    async def room(self) -> None:
        """Wait until all that has gathered is stored."""
        if self._flusher is not None:
            await self._flusher
            self._flusher = None

    async def _flush(self) -> None:
        while self._pending:
            kind, text = self._take()
            slow = self._watch(text if kind == "output" else "")
            try:
                await self._append(kind, text)
            finally:
                slow.cancel()
                if self._previewing is not None:
                    self._previewing.cancel()
                    self._previewing = None

    def _watch(self, in_flight: str) -> asyncio.TimerHandle:
        # A timer for each append, and a task only where it takes long: tokens come by the thousand.
        return asyncio.get_running_loop().call_later(PREVIEW_SECONDS, self._begin_previews, in_flight)

    def _begin_previews(self, in_flight: str) -> None:
        if self._preview is not None:
            self._previewing = asyncio.create_task(self._previews(self._preview, in_flight))
            self._previewing.add_done_callback(is_seen)

    async def _previews(self, preview: Preview, in_flight: str) -> None:
        while True:
            text = in_flight + "".join(text for kind, text in self._pending if kind == "output")
            if text:
                await preview(text)
            await asyncio.sleep(PREVIEW_SECONDS)

    def _take(self) -> tuple[DeltaKind, str]:
        """As much pending text of one kind as one event may hold."""
        kind = self._pending[0][0]
        parts: list[str] = []
        room = DELTA_CHARACTERS_MAX
        taken = 0
        for part_kind, text in self._pending:
            if part_kind != kind or room == 0:
                break
            parts.append(text[:room])
            if len(text) > room:
                self._pending[taken] = (kind, text[room:])
                room = 0
                break
            room -= len(text)
            taken += 1
        del self._pending[:taken]
        joined = "".join(parts)
        self._pending_characters -= len(joined)
        return kind, joined
