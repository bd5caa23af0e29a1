"""The journal: the events of one task, and the one way to add to them.

An append carries the stream sequence of the last event that its writer has folded, over both subjects of the
journal. If anybody has written since, the broker refuses it, and the writer reads what it missed, folds that,
and decides again. There is no lock: a stale read is harmless, and who has lost a step can't add a token.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from contracts import headers, subjects
from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.journal import events
from contracts.journal.events import (
    TERMINAL_TYPES,
    Event,
    JournalEvent,
    Stamp,
    UnknownEvent,
    decode_event,
    event_type,
    is_delta,
)
from contracts.retries import BROKER_POLICY
from mesh import faults
from mesh.broker.direct_get import Stored, last_from_leader, read_page
from mesh.broker.requests import NO_ROOM, WRONG_LAST_SEQUENCE, Requests
from mesh.clock import now
from mesh.errors import BrokerError, BrokerUnavailable, StepLost
from mesh.task.fold import fold
from mesh.task.state import TaskState
from mesh.telemetry import metrics, traces

APPEND_SECONDS_MAX = 60.0
"""How long an append is tried again while the broker does not answer, or has no room."""

Build = Callable[[Stamp], JournalEvent]
"""Makes an event from its common fields, e.g. `lambda stamp: OutputDelta(*stamp, turn=1, text="…")`."""
MayAppend = Callable[[TaskState], bool]
"""Whether an event is still right, judged anew after each conflict."""
Decided = TypeVar("Decided")


@dataclass(frozen=True, slots=True)
class Append:
    """An event that is to be appended. `last`: its writer then goes on by itself, and decides nothing more."""

    build: Build
    last: bool = False
    on_appended: Callable[[], None] | None = None
    """Called once it is in the journal, for the log."""


class _Attempt:
    """The tries to append one event: under one id, so that one which has got in is known again."""

    def __init__(self) -> None:
        self.event_id = new_id()
        self.failures = 0
        self._type = ""
        self.started_at = time.perf_counter()
        self._loop = asyncio.get_running_loop()
        self._give_up_at = self._loop.time() + APPEND_SECONDS_MAX

    def made(self, event: JournalEvent) -> JournalEvent:
        """The event to send. One of another type than before is another event: the clock alone can lead to that."""
        if self._type not in ("", event_type(event)):
            self.event_id = new_id()
            event = msgspec.structs.replace(event, id=self.event_id)
        self._type = event_type(event)
        return event

    @property
    def is_over(self) -> bool:
        """Whether it was tried for long enough."""
        return self._loop.time() > self._give_up_at


@dataclass(slots=True)
class Appends:
    """What a writer has appended. All of a step make one span: one for each token would cost more than it tells."""

    count: int = 0
    payload_bytes: int = 0
    seconds_max: float = 0.0
    started_ns: int = field(default_factory=time.time_ns)
    """Unix time of the first append, in nanoseconds."""

    def add(self, payload_bytes: int, seconds: float) -> None:
        """Count an append."""
        if self.count == 0:
            self.started_ns = time.time_ns() - int(seconds * 1e9)
        self.count += 1
        self.payload_bytes += payload_bytes
        self.seconds_max = max(self.seconds_max, seconds)


class Journal:
    """A task's journal as one writer sees it: `state` is folded up to what was read or appended last."""

    def __init__(self, requests: Requests, tenant: str, task: str, traceparent: str | None = None) -> None:
        self.state = TaskState(tenant, task)
        self._requests = requests
        self._filter = subjects.journal(tenant, task)
        self._log = subjects.journal_log(tenant, task)
        self._delta = subjects.journal_delta(tenant, task)
        self._traceparent = traceparent
        # An append folds its own event when it is answered: nobody may read that event in between.
        self._lock = asyncio.Lock()
        self.appends = Appends()
        """What was appended here while telemetry is on."""
        self._payload_bytes = 0

    @property
    def requests(self) -> Requests:
        """The connection that the journal is written over."""
        return self._requests

    @classmethod
    async def load(cls, requests: Requests, tenant: str, task: str, *, traceparent: str | None = None) -> Journal:
        """Read and fold a journal; one that has not begun gives an empty state. Raises `BrokerUnavailable`."""
        journal = cls(requests, tenant, task, traceparent)
        await journal._load()
        return journal

    async def _load(self) -> None:
        page = await read_page(self._requests, "EVENTS", self._filter, 0)
        messages = page.messages
        if page.more:
            # A long journal: its milestones are few, and the deltas of completed turns are not needed.
            messages = await self._read_all(self._log)
        decoded = [(message.sequence, decode_event(message.payload)) for message in messages]
        anchor = _last_completed_turn(decoded)
        for sequence, event in decoded[: anchor + 1]:
            fold(self.state, sequence, event, holes_allowed=True)
        if page.more:
            await self._catch_up()
        else:
            for sequence, event in decoded[anchor + 1 :]:
                fold(self.state, sequence, event)

    async def _read_all(self, subject_filter: str) -> list[Stored]:
        messages: list[Stored] = []
        more = True
        while more:
            after = messages[-1].sequence if messages else 0
            page_messages, more = await read_page(self._requests, "EVENTS", subject_filter, after)
            messages += page_messages
        return messages

    async def catch_up(self, to: int | None = None) -> None:
        """Read and fold what was written since, once no append is under way. Raises `BrokerUnavailable`.

        `to`: a stream sequence; nothing is read if that is folded by then.
        """
        async with self._lock:
            if to is None or to > self.state.revision:
                await self._catch_up()

    async def _catch_up(self) -> dict[str, JournalEvent]:
        """Read and fold what was written since; returns those events by id. Raises `BrokerUnavailable`."""
        found: dict[str, JournalEvent] = {}
        more = True
        while more:
            messages, more = await read_page(self._requests, "EVENTS", self._filter, self.state.revision)
            for message in messages:
                event = decode_event(message.payload)
                fold(self.state, message.sequence, event)
                if not isinstance(event, UnknownEvent):
                    found[event.id] = event
        return found

    async def is_behind(self) -> bool:
        """Whether the stream's leader has milestones that were not folded here yet. Raises `BrokerUnavailable`."""
        last = await last_from_leader(self._requests, "EVENTS", self._log)
        return last is not None and last.sequence > self.state.revision

    async def append(self, build: Build, may_append: MayAppend) -> JournalEvent:
        """Append one event, fenced by all that is folded, and fold it.

        On a conflict the journal catches up and `may_append` judges again; `StepLost` if it says no. An append
        whose fate is unknown is looked up by its id, and tried again: the fence lets only one of the tries in.
        Raises `BrokerUnavailable` after `APPEND_SECONDS_MAX`, `BrokerError` if the stream refuses for another
        reason.
        """
        async with self._lock:
            attempt = _Attempt()
            while True:
                if not may_append(self.state):
                    raise StepLost(f"task {self.state.task}: the journal has moved on")
                appended = await self._try(attempt, build)
                if appended is not None:
                    return appended

    async def advance(
        self, decide: Callable[[TaskState], Awaitable[Append | Decided]], may_append: Callable[[], bool] = lambda: True
    ) -> JournalEvent | Decided:
        """Append what `decide` says, and ask it again, until it says something else; returns that.

        `decide` is asked anew after each event, and after each conflict: what it says is always of the newest state
        that was read. After an `Append` that is the `last`, its event is returned. `may_append` is asked right before
        an event is sent, and nothing is awaited in between; `StepLost` if it says no. Otherwise raises as `append`
        does.
        """
        async with self._lock:
            attempt = _Attempt()
            while True:
                decided = await decide(self.state)
                if not isinstance(decided, Append):
                    return decided
                if not may_append():
                    raise StepLost(f"task {self.state.task}: the lease is lost")
                appended = await self._try(attempt, decided.build)
                if appended is None:
                    continue
                if decided.on_appended is not None:
                    decided.on_appended()
                if decided.last:
                    return appended
                attempt = _Attempt()

    async def _try(self, attempt: _Attempt, build: Build) -> JournalEvent | None:
        """Send an event. None if it is not in; what came instead is folded, and the event may be wrong by now."""
        state = self.state
        event = attempt.made(build(Stamp(attempt.event_id, state.task, state.tenant, state.next_n, now())))
        try:
            ack = await self._publish(event)
        except BrokerError as error:
            if error.number in NO_ROOM:
                # A worker waits for room as for a broker: its lease is kept, and no delivery is used up.
                if attempt.is_over:
                    raise BrokerUnavailable(str(error)) from None
            elif error.number not in WRONG_LAST_SEQUENCE:
                raise
        except BrokerUnavailable:
            if attempt.is_over:
                raise
        else:
            fold(state, ack, event)
            faults.reach("append", event_type(event))
            self._measure(event, attempt.started_at)
            return event
        attempt.failures += 1
        if attempt.failures > 1:
            await asyncio.sleep(BROKER_POLICY.delay_seconds(attempt.failures, random.random()))
        try:
            got_in = (await self._catch_up()).get(attempt.event_id)
            if got_in is not None:
                self._measure(got_in, attempt.started_at)
                return got_in
        except BrokerUnavailable:
            if attempt.is_over:
                raise
        return None

    async def _publish(self, event: Event) -> int:
        message_headers = {}
        if faults.FENCE_ON:
            message_headers[headers.EXPECTED_LAST_SUBJECT_SEQUENCE] = str(self.state.revision)
            message_headers[headers.EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT] = self._filter
        delta = is_delta(event)
        if self._traceparent and not delta:
            message_headers[headers.TRACEPARENT] = self._traceparent
        payload = encode(event)
        self._payload_bytes = len(payload)
        ack = await self._requests.publish(self._delta if delta else self._log, payload, message_headers)
        return ack.seq

    def _measure(self, event: JournalEvent, started_at: float) -> None:
        if not traces.enabled():
            return
        seconds = time.perf_counter() - started_at
        self.appends.add(self._payload_bytes, seconds)
        metrics.appended(delta=is_delta(event), seconds=seconds)
        queued = self.state.queued
        if queued is not None and event_type(event) in TERMINAL_TYPES:
            status = event_type(event).removeprefix("task.")
            metrics.task_ended(queued.pool, status, (event.time - queued.accepted_at).total_seconds())


def _last_completed_turn(decoded: list[tuple[int, JournalEvent | UnknownEvent]]) -> int:
    """Index of the last event up to which deltas may be missing, since its text stands for them; -1 if none may."""
    for index in range(len(decoded) - 1, -1, -1):
        if isinstance(decoded[index][1], events.TurnCompleted):
            return index
    return -1
