"""A journal as far as this process has read it: its folded state, shared by all who write to it here, and kept warm.

To fold a long journal costs as much as it is long; to catch up costs what is new. So a process keeps the states of
the tasks that it had to do with lately (`mesh.journal.warm`), and looks for what is new before it decides. A look may
be a moment behind, as any read: the fence of an append finds out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from contracts import subjects
from contracts.journal import events
from contracts.journal.events import JournalEvent, UnknownEvent, decode_event, decode_head, is_delta
from mesh.archive.lookup import journal_of
from mesh.background import is_seen
from mesh.broker.direct_get import Stored, last_event, last_from_leader, read_page
from mesh.broker.requests import Requests
from mesh.errors import JournalCorrupt
from mesh.journal.holds import Pause
from mesh.task.fold import fold
from mesh.task.state import TaskState

log = structlog.get_logger("mesh.journal.folded")

LONG_PAGE_EVENTS_MAX = 2_048
"""Of a journal of which there is more than a page: each page is a round trip, and who reads it may have asked its owner
to wait meanwhile. A page's bytes are bounded as any other's."""

Decoded = list[tuple[int, JournalEvent | UnknownEvent]]


class FoldedJournal:
    """The state of one task, folded up to what was read or appended last. Whoever changes it holds `lock`."""

    def __init__(self, requests: Requests, tenant: str, task: str) -> None:
        self.state = TaskState(tenant, task)
        self.lock = asyncio.Lock()
        """An append folds its own event when it is answered: nobody may read that event in between."""
        self.pause = Pause()
        self.ends_in_delta = False
        """Whether somebody tells what is under way, and will probably go on: text of a turn, or progress of a call."""
        self.payload_bytes = 0
        """Of the milestones, and of the deltas of a turn that is not completed: about what the state takes."""
        self._delta_bytes = 0
        self._requests = requests
        self._filter = subjects.journal(tenant, task)
        self._log = subjects.journal_log(tenant, task)
        self._is_loaded = False
        self._next_look: asyncio.Task[None] | None = None
        self._listeners: set[Callable[[], None]] = set()

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` whenever something was folded that may matter to who works on the task."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    async def look(self) -> None:
        """Fold what the journal has by now. Who asks while a look waits to begin shares it.

        Raises `BrokerUnavailable`.
        """
        if self._next_look is None:
            self._next_look = asyncio.create_task(self._look_once())
            self._next_look.add_done_callback(is_seen)
        await asyncio.shield(self._next_look)

    async def _look_once(self) -> None:
        async with self.lock:
            self._next_look = None
            if self._is_loaded:
                await self._look()
            else:
                await self.load()

    async def _look(self) -> None:
        """Find the last event, and read no more than there is: a page would be searched for up to the stream's end."""
        if self.state.is_packed:
            return  # It stays as it is.
        last = await last_event(self._requests, self._filter)
        if last is None or last.sequence < self.state.revision:
            await self.verify()
        elif last.sequence > self.state.revision:
            missing = decode_head(last.payload).n - self.state.next_n + 1
            if missing == 1:
                self._fold_stored([last])
            else:
                await self.catch_up(missing)

    async def load(self) -> None:
        """Read and fold it from its beginning; one that has not begun gives an empty state.

        Raises `BrokerUnavailable`.
        """
        self.state = TaskState(self.state.tenant, self.state.task)
        self.payload_bytes = self._delta_bytes = 0
        self._is_loaded = True
        page = await read_page(self._requests, "EVENTS", self._filter, 0)
        if not page.messages:
            self._fold_packed(await journal_of(self._requests, self.state.tenant, self.state.task))
            return
        # A long journal: its milestones are few, and the deltas of completed turns are not needed.
        messages = await self._read_milestones() if page.more else page.messages
        decoded = [(message.sequence, decode_event(message.payload)) for message in messages]
        anchor = _last_completed_turn(decoded)
        for (sequence, event), message in zip(decoded[: anchor + 1], messages, strict=False):
            self._fold(sequence, event, len(message.payload), holes_allowed=True)
        if page.more:
            await self.catch_up()
            return
        for (sequence, event), message in zip(decoded[anchor + 1 :], messages[anchor + 1 :], strict=True):
            self._fold(sequence, event, len(message.payload))

    def _fold_packed(self, milestones: list[Stored]) -> None:
        """Fold the journal of a task that was packed, if it was: it has ended, and its deltas are gone."""
        for message in milestones:
            event = decode_event(message.payload)
            self._fold(message.sequence, event, len(message.payload), holes_allowed=True)
        self.state.is_packed = bool(milestones)

    async def _read_milestones(self) -> list[Stored]:
        messages: list[Stored] = []
        more = True
        while more:
            after = messages[-1].sequence if messages else 0
            page_messages, more = await read_page(self._requests, "EVENTS", self._log, after, LONG_PAGE_EVENTS_MAX)
            messages += page_messages
        return messages

    async def catch_up(self, events_max: int = LONG_PAGE_EVENTS_MAX) -> dict[str, JournalEvent]:
        """Read and fold what was written since; returns those events by id. Raises `BrokerUnavailable`.

        `events_max`: no more than so many are there, as far as is known.
        """
        found: dict[str, JournalEvent] = {}
        more = True
        while more:
            wanted = min(events_max, LONG_PAGE_EVENTS_MAX)
            messages, more = await read_page(self._requests, "EVENTS", self._filter, self.state.revision, wanted)
            try:
                found |= self._fold_stored(messages)
            except JournalCorrupt:
                # Another journal lies where the folded one was: of a stream that was made again, or a task that was.
                log.warning("journal.begun_anew", task=self.state.task, tenant=self.state.tenant)
                await self.load()
                return found
        return found

    async def verify(self) -> None:
        """Ask the stream's leader whether the journal still is what is folded; if it is gone, fold what there is.

        A stream that was deleted and made again, or a journal that was purged, refuses every append of who has folded
        the old one, and has nothing to read for it. Raises `BrokerUnavailable`.
        """
        last = await last_from_leader(self._requests, "EVENTS", self._filter)
        if self.state.revision > (last.sequence if last is not None else 0):
            revision = self.state.revision
            await self.load()
            if not self.state.is_packed:
                log.warning("journal.gone", task=self.state.task, tenant=self.state.tenant, revision=revision)
            self._tell()

    def fold_own(self, sequence: int, event: JournalEvent, payload_bytes: int) -> None:
        """Fold an event that was appended here."""
        self._fold(sequence, event, payload_bytes)
        if not is_delta(event):
            self._tell()

    def _fold_stored(self, messages: list[Stored]) -> dict[str, JournalEvent]:
        found: dict[str, JournalEvent] = {}
        for message in messages:
            event = decode_event(message.payload)
            self._fold(message.sequence, event, len(message.payload))
            if not isinstance(event, UnknownEvent):
                found[event.id] = event
        if messages:
            # Somebody else has got in: whoever was asked to let them need not wait any more.
            self.pause.end()
            self._tell()
        return found

    def _fold(
        self, sequence: int, event: JournalEvent | UnknownEvent, payload_bytes: int, *, holes_allowed: bool = False
    ) -> None:
        fold(self.state, sequence, event, holes_allowed=holes_allowed, payload_bytes=payload_bytes)
        self.payload_bytes += payload_bytes
        self.ends_in_delta = not isinstance(event, UnknownEvent) and is_delta(event)
        if self.ends_in_delta:
            self._delta_bytes += payload_bytes
        elif isinstance(event, events.TurnCompleted):
            self.payload_bytes -= self._delta_bytes
            self._delta_bytes = 0

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()


def _last_completed_turn(decoded: Decoded) -> int:
    """Index of the last event up to which deltas may be missing, since its text stands for them; -1 if none may."""
    for index in range(len(decoded) - 1, -1, -1):
        if isinstance(decoded[index][1], events.TurnCompleted):
            return index
    return -1
