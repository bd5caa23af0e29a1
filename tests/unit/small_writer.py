"""The writers of one task's journal in a small mesh: what all of them do, and in which world.

They are generators that stop wherever a process may stop, die, or be overtaken: before and after each append, each
publish and each ack.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from contracts.errors import ErrorInfo
from contracts.identifiers import new_id
from contracts.journal import events
from contracts.journal.events import JournalEvent, Stamp
from contracts.messages.work import TurnWork, Work
from contracts.tasks import TaskRequest
from mesh.task.decisions import queued_event
from mesh.task.fold import fold
from mesh.task.outbox import OutboxMessage, messages_after
from mesh.task.state import TaskState
from tests.unit.journals import START, TASK, TENANT
from tests.unit.small_broker import Delivery, SmallBroker, View

Steps = Generator[None, None, None]
Luck = Literal["fine", "retryable", "busy", "hopeless", "terminal", "switches", "compacts", "drains"]
Place = Literal["", "completed", "settling", "acking"]
"""Where a process may stop that others then overtake: a turn is completed; all is appended; all is published."""
Asked = Literal["plain", "approval", "question", "child", "unknown", "no-object", "no-question"]


class Lost(Exception):
    """The step is somebody else's, or what was decided is no more so."""


Build = Callable[[Stamp], JournalEvent]
MayAppend = Callable[[TaskState], bool]


@dataclass(slots=True)
class SmallWriter:
    """One task, and what goes on around it. `script` holds the calls of each turn; later turns ask for none."""

    request: TaskRequest
    script: list[list[Asked]]
    continues_prefix: bool
    deadline: datetime | None = None
    acks_are_lost: bool = False
    """Every message's first one."""
    broker: SmallBroker = field(default_factory=SmallBroker)
    now: datetime = START
    luck: Luck = "fine"
    """What comes of the next try of a turn or a call."""
    place: Place = ""
    """Where the process that runs has just come to."""
    children: dict[str, str] = field(default_factory=dict)
    """Sub-tasks that were submitted, and the calls that they stand for."""
    ended_children: set[str] = field(default_factory=set)

    def _stamp(self, state: TaskState) -> Stamp:
        self.now += timedelta(seconds=1)
        return Stamp(new_id(), TASK, TENANT, state.next_n, self.now)

    def append(self, view: View, build: Build, may_append: MayAppend) -> Generator[None, None, JournalEvent]:
        """Append one event, fenced by what is folded; on a conflict, judge again."""
        while True:
            if not may_append(view.state):
                raise Lost
            revision = view.state.revision
            event = build(self._stamp(view.state))
            yield
            sequence = self.broker.append(revision, event)
            yield
            if sequence is not None:
                fold(view.state, sequence, event)
                return event
            view.catch_up()

    def _settle(
        self, state: TaskState, steps: tuple[str, ...], delivery: Delivery, again: tuple[OutboxMessage, ...] = ()
    ) -> Steps:
        self.place = "settling"
        yield
        yield from self._publish_due(state, steps, again)
        yield from self._ack(delivery)

    def _publish_due(self, state: TaskState, steps: tuple[str, ...], again: tuple[OutboxMessage, ...] = ()) -> Steps:
        for due in [*(due for step in steps for due in messages_after(state, step)), *again]:
            yield
            self._send(due)

    def _send(self, due: OutboxMessage) -> None:
        """Publish what is due. A sub-task runs elsewhere, and is begun once."""
        work = due.payload
        if self.broker.refuses(due):
            return
        if isinstance(work, TurnWork) and work.task != TASK:
            assert work.parent is not None
            if work.task not in self.children and View(self.broker).state.terminal is not None:
                self.ended_children.add(work.task)  # Its first claim finds that its parent is over.
            assert self.children.setdefault(work.task, work.parent.call) == work.parent.call
        else:
            self.broker.send(due)

    def _ack(self, delivery: Delivery) -> Steps:
        """Also one that is on its way when its lease passes counts."""
        if delivery.lease_held:
            self.place = "acking"
            yield
            if self.acks_are_lost and delivery.message.deliveries == 1:
                self.broker.give_back(delivery)
            else:
                self.broker.delete(delivery.message)


def queued(work: TurnWork, stamp: Stamp) -> JournalEvent:
    return queued_event(stamp, work)


def expired(stamp: Stamp) -> JournalEvent:
    return events.TaskExpired(*stamp)


def dead_lettered(work: Work, error: ErrorInfo, stamp: Stamp) -> JournalEvent:
    return events.TaskDeadLettered(*stamp, step=work.step, gen=work.gen, error=error, deliveries=1)
