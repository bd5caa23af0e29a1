"""A journal as far as this process has read it: its folded state, shared by all who write to it here, and kept warm.

To fold a long journal costs as much as it is long; to catch up costs what is new. So a process keeps the states of
the tasks that it had to do with lately (`mesh.journal.warm`), and looks for what is new before it decides. A look may
be a moment behind, as any read: the fence of an append finds out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import structlog

from contracts import subjects
from contracts.journal import events
from contracts.journal.events import JournalEvent, UnknownEvent, decode_event, decode_head, is_delta
from mesh.archive.lookup import journal_of
from mesh.background import is_seen
from mesh.broker.direct_get import Stored, last_from_leader
from mesh.broker.requests import Requests
from mesh.errors import JournalCorrupt
from mesh.journal.holds import Pause
from mesh.journal.reading import JournalTail, Place, read_last, read_last_delta, read_milestones
from mesh.task.fold import fold
from mesh.task.state import TaskState

log = structlog.get_logger("mesh.journal.folded")

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
        """Find the last event, and read no more than there is."""
        if self.state.is_packed:
            return  # It stays as it is.
        lasts = await read_last(self._requests, self.state.tenant, self.state.task)
        last = lasts[-1] if lasts else None
        if last is None or last.sequence < self.state.revision:
            await self.verify()
        elif last.sequence > self.state.revision:
            if decode_head(last.payload).n == self.state.next_n:
                self._fold_stored([last])
            else:
                await self.catch_up(each.subject for each in lasts if each.sequence > self.state.revision)

    async def load(self) -> None:
        """Read and fold it from its beginning; one that has not begun gives an empty state.

        Raises `BrokerUnavailable`.
        """
        tenant, task = self.state.tenant, self.state.task
        self.state = TaskState(tenant, task)
        self.payload_bytes = self._delta_bytes = 0
        self._is_loaded = True
        messages, last_delta = await asyncio.gather(
            read_milestones(self._requests, tenant, task), read_last_delta(self._requests, tenant, task)
        )
        if not messages and last_delta is None:
            self._fold_packed(await journal_of(self._requests, tenant, task))
            return
        decoded = [(message.sequence, decode_event(message.payload)) for message in messages]
        # Milestones are few, and the deltas of completed turns are not needed.
        anchor = _last_completed_turn(decoded)
        for (sequence, event), message in zip(decoded[: anchor + 1], messages, strict=False):
            self._fold(sequence, event, len(message.payload), holes_allowed=True)
        await self._fold_behind(messages[anchor + 1 :], last_delta)

    def _fold_packed(self, milestones: list[Stored]) -> None:
        """Fold the journal of a task that was packed, if it was: it has ended, and its deltas are gone."""
        for message in milestones:
            event = decode_event(message.payload)
            self._fold(message.sequence, event, len(message.payload), holes_allowed=True)
        self.state.is_packed = bool(milestones)

    async def _fold_behind(self, milestones: list[Stored], last_delta: Stored | None) -> None:
        """Fold what follows the last turn that was completed: these milestones, and the deltas among them."""
        parts = [last_delta.subject] if last_delta is not None and last_delta.sequence > self.state.revision else []
        tail = self._tail(parts, milestones)
        while (page := await tail.page()).events:
            for message in page.events:
                self._fold(message.sequence, decode_event(message.payload), len(message.payload))
            if page.hole:
                break
        if page.hole:
            raise JournalCorrupt(f"task {self.state.task}: no n={self.state.next_n} follows {self.state.revision}")

    def _tail(self, parts: Iterable[str] | None, read: Iterable[Stored] = ()) -> JournalTail:
        place = Place(self.state.tenant, self.state.task, self.state.revision, self.state.next_n)
        return JournalTail(self._requests, place, parts=parts, read=read)

    async def catch_up(self, parts: Iterable[str] | None = None) -> dict[str, JournalEvent]:
        """Read and fold what was written since; returns those events by id. Raises `BrokerUnavailable`.

        `parts`: the subjects that have anything new, as far as is known.
        """
        found: dict[str, JournalEvent] = {}
        tail = self._tail(parts)
        while True:
            page = await tail.page()
            found |= self._fold_stored(page.events)
            if page.hole:
                # Another journal lies where the folded one was: of a stream that was made again, or a task that was.
                log.warning("journal.begun_anew", task=self.state.task, tenant=self.state.tenant)
                await self.load()
                return found
            if not page.events:
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
