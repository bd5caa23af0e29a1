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
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from contracts import headers, subjects
from contracts.codec import encode
from contracts.identifiers import new_id
from contracts.journal.events import TERMINAL_TYPES, Event, JournalEvent, Stamp, event_type, is_delta
from contracts.retries import BROKER_POLICY
from mesh import faults
from mesh.broker.direct_get import last_from_leader
from mesh.broker.requests import NO_ROOM, WRONG_LAST_SEQUENCE, Requests
from mesh.clock import now
from mesh.errors import BrokerError, BrokerUnavailable, JournalBusy, StepLost
from mesh.journal.folded import FoldedJournal
from mesh.journal.task_span import add_span_of_task
from mesh.task.state import TaskState
from mesh.telemetry import metrics, traces

APPEND_SECONDS_MAX = 60.0
"""How long an append is tried again while the broker does not answer, or has no room."""
APPEND_ANSWER_SECONDS = 2.0
"""How long one try waits for its answer: one that was on its way to a leader when that died has none, and a cluster has
another leader after 4 to 9 s. The next try is fenced, and finds what this one has stored."""
BEHIND_SECONDS_MAX = 5.0
"""How long the replicas may be behind the leader before who wants all of a journal is told that nobody answers."""

CONFLICTS_AT_ONCE = 4
"""Conflicts of one append that are followed by the next try without a pause."""
CONFLICTS_MAX = 12
"""Conflicts of one append after which a writer that can be asked for its place gives it back."""

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
        self.conflicts = 0
        self._failures = 0
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

    async def pause(self, *, conflict: bool) -> None:
        """Wait before the next try. Not after the first conflicts: who lost a race may win the next one."""
        if conflict:
            self.conflicts += 1
            failures = self.conflicts - CONFLICTS_AT_ONCE
        else:
            self._failures += 1
            failures = self._failures - 1
        if failures > 0:
            await asyncio.sleep(BROKER_POLICY.delay_seconds(failures, random.random()))


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
    """A task's journal as one writer sees it: `state` is folded up to what was read or appended last.

    Writers of one process may share the state (`folded`): what one has read or appended, the others know.
    """

    def __init__(
        self,
        requests: Requests,
        tenant: str,
        task: str,
        traceparent: str | None = None,
        folded: FoldedJournal | None = None,
    ) -> None:
        self.folded = folded or FoldedJournal(requests, tenant, task)
        self._requests = requests
        self._filter = subjects.journal(tenant, task)
        self._log = subjects.journal_log(tenant, task)
        self._delta = subjects.journal_delta(tenant, task)
        self._traceparent = traceparent
        self.appends = Appends()
        """What was appended here while telemetry is on."""
        self._payload_bytes = 0

    @property
    def state(self) -> TaskState:
        """The journal as folded so far. It changes whenever anything is awaited."""
        return self.folded.state

    @property
    def requests(self) -> Requests:
        """The connection that the journal is written over."""
        return self._requests

    @classmethod
    async def load(cls, requests: Requests, tenant: str, task: str, *, traceparent: str | None = None) -> Journal:
        """Read and fold a journal; one that has not begun gives an empty state. Raises `BrokerUnavailable`."""
        journal = cls(requests, tenant, task, traceparent)
        await journal.folded.load()
        return journal

    def listening(self, listener: Callable[[], None]) -> AbstractContextManager[None]:
        """Call `listener` whenever something was folded that may matter to who works on the task."""
        return self.folded.listening(listener)

    async def catch_up(self) -> None:
        """Read and fold what was written since, once no append is under way. Raises `BrokerUnavailable`."""
        async with self.folded.lock:
            await self.folded.catch_up()

    async def is_behind(self) -> bool:
        """Whether the stream's leader has milestones that were not folded here yet. Raises `BrokerUnavailable`."""
        last = await last_from_leader(self._requests, "EVENTS", self._log)
        if last is None and self.state.exists and not self.state.is_packed:
            await self.folded.verify()  # It was packed, or purged, while it was read.
        return last is not None and last.sequence > self.state.revision

    async def catch_up_with_leader(self, shows: Callable[[TaskState], bool] = lambda _: False) -> None:
        """Read on until `shows` holds, or all is folded that the stream's leader has. Raises `BrokerUnavailable`.

        So what can't be seen then is not there (rule 11).
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + BEHIND_SECONDS_MAX
        failures = 0
        while not shows(self.state) and await self.is_behind():
            if failures > 0:
                # A replica answered that lags.
                if loop.time() > give_up_at:
                    raise BrokerUnavailable("the journal can't be read yet")
                await asyncio.sleep(BROKER_POLICY.delay_seconds(failures, random.random()))
            await self.catch_up()
            failures += 1

    async def append(self, build: Build, may_append: MayAppend) -> JournalEvent:
        """Append one event, fenced by all that is folded, and fold it.

        On a conflict the journal catches up and `may_append` judges again; `StepLost` if it says no. An append
        whose fate is unknown is looked up by its id, and tried again: the fence lets only one of the tries in.
        Raises `BrokerUnavailable` after `APPEND_SECONDS_MAX`, `BrokerError` if the stream refuses for another
        reason.
        """
        async with self.folded.lock:
            attempt = _Attempt()
            while True:
                if not may_append(self.state):
                    raise StepLost(f"task {self.state.task}: the journal has moved on")
                appended = await self._try(attempt, build)
                if appended is not None:
                    return appended

    async def advance(
        self,
        decide: Callable[[TaskState], Awaitable[Append | Decided]],
        may_append: Callable[[], bool] = lambda: True,
        on_conflict: Callable[[], Awaitable[None]] | None = None,
    ) -> JournalEvent | Decided:
        """Append what `decide` says, and ask it again, until it says something else; returns that.

        `decide` is asked anew after each event, and after each conflict: what it says is always of the newest state
        that was read. After an `Append` that is the `last`, its event is returned. `may_append` is asked right before
        an event is sent, and nothing is awaited in between; `StepLost` if it says no. `on_conflict` is awaited after
        each append that somebody else was faster than; with it, `CONFLICTS_MAX` of them for one event raise
        `JournalBusy`. Otherwise raises as `append` does.
        """
        async with self.folded.lock:
            attempt = _Attempt()
            while True:
                decided = await decide(self.state)
                if not isinstance(decided, Append):
                    return decided
                if not may_append():
                    raise StepLost(f"task {self.state.task}: the lease is lost")
                appended = await self._try(attempt, decided.build, on_conflict)
                if appended is None:
                    if on_conflict is not None and attempt.conflicts >= CONFLICTS_MAX:
                        raise JournalBusy(f"task {self.state.task}: {attempt.conflicts} appends came too late")
                    continue
                if decided.on_appended is not None:
                    decided.on_appended()
                if decided.last:
                    return appended
                attempt = _Attempt()

    async def _try(
        self, attempt: _Attempt, build: Build, on_conflict: Callable[[], Awaitable[None]] | None = None
    ) -> JournalEvent | None:
        """Send an event. None if it is not in; what came instead is folded, and the event may be wrong by now."""
        state = self.state
        event = attempt.made(build(Stamp(attempt.event_id, state.task, state.tenant, state.next_n, now())))
        conflict = False
        try:
            sequence = await self._publish(event)
        except BrokerError as error:
            conflict = error.number in WRONG_LAST_SEQUENCE
            if error.number in NO_ROOM:
                # A worker waits for room as for a broker: its lease is kept, and no delivery is used up.
                if attempt.is_over:
                    raise BrokerUnavailable(str(error)) from None
            elif not conflict:
                raise
        except BrokerUnavailable:
            if attempt.is_over:
                raise
        else:
            self.folded.fold_own(sequence, event, self._payload_bytes)
            faults.reach("append", event_type(event))
            self._measure(event, attempt.started_at)
            return event
        await attempt.pause(conflict=conflict)
        if conflict and on_conflict is not None:
            await on_conflict()
        try:
            found = await self.folded.catch_up()
            if conflict and not found:
                await self.folded.verify()
        except BrokerUnavailable:
            if attempt.is_over:
                raise
            return None
        got_in = found.get(attempt.event_id)
        if got_in is not None:
            self._measure(got_in, attempt.started_at)
        return got_in

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
        subject = self._delta if delta else self._log
        ack = await self._requests.publish(subject, payload, message_headers, APPEND_ANSWER_SECONDS)
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
            add_span_of_task(queued, event)
