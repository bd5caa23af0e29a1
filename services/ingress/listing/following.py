"""Keeping the index up to date: what its streams have that it has not is read, page by page.

A background job does so about once a second, and so does each list before it is answered. A page is read when it is
known that there is something in it, and no message is asked for that is not there.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from ingress.listing.errors import ListUnavailable
from ingress.listing.index import Index, StreamCursor
from ingress.listing.sources import LETTERS_SOURCE, SOURCES, Source
from ingress.listing.store import Store
from ingress.listing.tidying import Tidying
from mesh.background import repeatedly
from mesh.broker.direct_get import Stored, first_from_leader
from mesh.broker.requests import Requests
from mesh.broker.scanning import ALL, Scan
from mesh.broker.stream_states import StreamState, read_state
from mesh.errors import BrokerUnavailable
from mesh.loop_health import LoopHealth

log = structlog.get_logger("ingress.listing.following")

POLL_SECONDS = 1.0
CATCH_UP_SECONDS_MAX = 2.0
"""How long a list waits for what was stored before it was asked for."""
SILENCE_SECONDS = 1.0
"""A broker that has not answered for so long is what the list waits for."""
BUILDING_RETRY_AFTER_SECONDS = 5.0
REST_PAGES = 8
"""With more than so many pages to read, the index rests after each for as long as it took: it is in no hurry, and who
submits tasks meanwhile is."""
REST_SECONDS_MAX = 1.0
STALE_READS_MAX = 20
STALE_PAUSE_SECONDS = 0.05
"""How often a replica that is behind is asked again."""
ANEW_MAX = 3
"""How often one look may find that a stream is another one. After that the next look begins."""


class _MadeAnew(Exception):
    """A stream is another one than the index knows, or has lost what the index has."""


class Following:
    """Reads the streams into the index."""

    def __init__(self, requests: Requests, store: Store) -> None:
        self._requests = requests
        self._store = store
        self._scans = {source.stream: Scan(requests, source.stream) for source in SOURCES}
        self._tidying = Tidying(requests, store)
        self._lock = asyncio.Lock()
        self._begun = 0
        self._done = 0
        """The last look that was begun, and the last that read everything."""
        self._states: dict[str, StreamState] = {}
        """How the streams stood at that look."""
        self._asked_at: float | None = None
        """When the broker was asked what it has not answered; None if it has answered all."""
        self._is_away = False
        """Whether the broker had no answer for the last look that came to an end."""
        self._rows: dict[str, tuple[int, int]] = {}
        """For each stream about how many rows are here, of how many."""

    @property
    def is_built(self) -> bool:
        """Whether all that there was has been read once."""
        return self._done > 0

    async def run(self) -> None:
        """Look about once a second, and tidy up, until cancelled."""
        await repeatedly(self._round, POLL_SECONDS, LoopHealth(log, "listing.behind"))

    async def catch_up(self) -> None:
        """Wait until the index has all that was stored when this was called.

        Raises `ListUnavailable` if that takes too long, as while it is being built; `BrokerUnavailable`.
        """
        try:
            async with asyncio.timeout(CATCH_UP_SECONDS_MAX):
                await self._look_after(self._begun)
        except TimeoutError:
            is_silent = self._asked_at is not None and time.monotonic() - self._asked_at > SILENCE_SECONDS
            if is_silent or self._is_away:
                raise BrokerUnavailable("the broker does not answer: a list would be behind") from None
            reason = f"the index of the lists is being built: {self._percent()} % of it are there"
            raise ListUnavailable(reason, retry_after_seconds=BUILDING_RETRY_AFTER_SECONDS) from None

    async def _round(self) -> None:
        await self._look_after(self._begun)
        await self._tidying.round(self._states)

    async def _look_after(self, begun: int) -> None:
        """Look, unless a look that began after that many has read everything meanwhile: it is as good."""
        async with self._lock:
            if self._done <= begun:
                self._begun += 1
                look = self._begun
                try:
                    self._states = await self._look()
                except BrokerUnavailable:
                    self._is_away = True
                    raise
                self._is_away = False
                self._done = look

    async def _look(self) -> dict[str, StreamState]:
        """Read all that there is now. How the streams stood as each of them was read."""
        for _ in range(ANEW_MAX):
            try:
                cursors = await self._store.run(Index.cursors)
                return {source.stream: await self._read(source, cursors.get(source.stream)) for source in SOURCES}
            except _MadeAnew as error:
                log.warning("listing.begins_anew", stream=str(error))
                await self._store.begin_anew()
        raise ListUnavailable(
            "the index of the lists is built anew: its streams were made again",
            retry_after_seconds=BUILDING_RETRY_AFTER_SECONDS,
        )

    async def _read(self, source: Source, cursor: StreamCursor | None) -> StreamState:
        self._asked_at = time.monotonic()
        state = await read_state(self._requests, source.stream) or StreamState("", 1, 0, 0, 0)
        self._asked_at = None
        after = 0 if cursor is None else cursor.sequence
        if cursor is not None and (cursor.created != state.created or after > state.last):
            raise _MadeAnew(source.stream)
        pages = 0
        first = max(state.first - 1, 0)
        while after < state.last:
            began_at = time.monotonic()
            after = max(after, first)
            messages = await self._page(source, after, state.last)
            if messages:
                after = messages[-1].sequence
                await self._store.run(source.put, state.created, messages)
            else:
                after = state.last
                await self._store.run(Index.advance, source.stream, StreamCursor(state.created, after))
            self._tell(source, state, after)
            pages += 1
            if pages > REST_PAGES:
                await asyncio.sleep(min(REST_SECONDS_MAX, time.monotonic() - began_at))
        self._tell(source, state, after)
        if source is LETTERS_SOURCE:
            await self._tidying.letters(state)
        return state

    async def _page(self, source: Source, after: int, last: int) -> list[Stored]:
        """The next messages up to sequence `last`; none if there are no more, as the stream's leader says too."""
        for _ in range(STALE_READS_MAX):
            self._asked_at = time.monotonic()
            messages_max = min(source.page_messages_max, last - after)
            messages, _ = await self._scans[source.stream].page(after, messages_max, source.page_bytes_max)
            self._asked_at = None
            wanted = [message for message in messages if message.sequence <= last]
            if wanted or messages:
                return wanted
            # Any replica answers, and this one may be behind.
            following = await first_from_leader(self._requests, source.stream, ALL, after)
            if following is None or following.sequence > last:
                return []
            await asyncio.sleep(STALE_PAUSE_SECONDS)
        raise BrokerUnavailable(f"a replica of {source.stream} stays behind its leader")

    def _tell(self, source: Source, state: StreamState, after: int) -> None:
        span = max(1, state.last - state.first + 1)
        rows = state.messages * source.rows_in_message
        self._rows[source.stream] = (round(rows * max(0, after - state.first + 1) / span), rows)

    def _percent(self) -> int:
        here, all_of_them = (sum(rows) for rows in zip(*self._rows.values(), strict=True)) if self._rows else (0, 0)
        return 100 * here // all_of_them if all_of_them else 0
