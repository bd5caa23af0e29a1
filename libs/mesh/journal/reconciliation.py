"""Reconciliation: tasks that go on by messages which are gone, found by their records and journals, and put back.

Nothing is put back that might still come: a journal has to be quiet for a while, the broker's own time stamps say what
is older than what, and the stream's leader says what is not there. What is put back all the same beside a message that
comes late does no harm: the journal says which of the two stands for the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from contracts import subjects
from contracts.codec import decode, encode
from contracts.errors import InvalidName, TaskmeshError
from contracts.identifiers import new_id
from contracts.journal import events
from contracts.journal.events import Stamp
from contracts.journal.parts import StepGen
from contracts.messages.control import ChildDoneCommand
from contracts.messages.envelope import read_envelope
from contracts.messages.work import DeadLetter
from contracts.records.status import ENDED, Status, TaskRecord
from contracts.streams import BACKLOG, CONTROL, DEAD_LETTERS, EVENTS, TASKS, TASKS_BUCKET, TIMERS, TOOLS, TURNS
from contracts.subjects import LaneSubject
from mesh.admission import backlog
from mesh.archive.lookup import journal_of, locate
from mesh.broker.direct_get import (
    Stored,
    first_from_leader,
    last_from_leader,
    read_page,
    sequence_from_leader,
    subjects_of,
)
from mesh.broker.requests import Requests
from mesh.broker.scanning import Scan
from mesh.broker.stream_states import broker_time
from mesh.errors import StepLost
from mesh.journal.dead_letter_records import UndeliveredMessage
from mesh.journal.journal import Journal
from mesh.journal.projection import project
from mesh.journal.settling import publish_outbox, settle, settle_dead_letter
from mesh.task.decisions import FIRST_STEP
from mesh.task.outbox import OutboxMessage, messages_after, messages_to_go_on
from mesh.task.reconciliation import AwaitedChild, AwaitedStep, AwaitedTimer, awaited
from mesh.task.records import record as record_of
from mesh.task.state import TaskState

log = structlog.get_logger("mesh.journal.reconciliation")

RELEASED = "message-lost"
RECONCILED = "reconciliation"
"""Stands for the worker in a record that nobody else had written."""


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task that has not ended, by its record. `status` is that of the record; None: there is none."""

    tenant: str
    task: str
    status: Status | None


@dataclass(frozen=True, slots=True)
class Walk:
    """A piece of the walk along the records. `cursor`: where the next one begins."""

    cursor: int
    more: bool
    looked_at: int
    open: list[OpenTask]


@dataclass(frozen=True, slots=True)
class Lost:
    """A message that is gone.

    `kind` is `work`, `timer`, `sub-task`, `news` of a sub-task's end, `record`, or the record of a `dead letter`.
    """

    kind: str
    name: str
    step: AwaitedStep | None = None
    message: OutboxMessage | None = None
    letter: events.TaskDeadLettered | None = None


@dataclass(slots=True)
class Found:
    """A task that would wait for ever, and for what."""

    journal: Journal
    revision: int
    lost: list[Lost] = field(default_factory=list)

    @property
    def task(self) -> str:
        """Its id."""
        return self.journal.state.task

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.journal.state.tenant


class Reconciliation:
    """Holds tasks against queues and timers. `quiet_seconds`: for how long a task must be unchanged before."""

    def __init__(self, requests: Requests, quiet_seconds: float) -> None:
        self._requests = requests
        self._records = Scan(requests, TASKS_BUCKET.stream_name)
        self._quiet = timedelta(seconds=quiet_seconds)

    async def broker_time(self) -> datetime:
        """What time it is by the broker's clock. Raises `BrokerUnavailable`."""
        return await broker_time(self._requests, EVENTS.name)

    async def walk(self, cursor: int, at: datetime, records_max: int, open_max: int) -> Walk:
        """The next records, and which of their tasks may wait for something. Raises `BrokerUnavailable`."""
        page = await self._records.page(cursor, records_max)
        found: list[OpenTask] = []
        looked_at = 0
        for message in page.messages:
            if len(found) == open_max:
                return Walk(cursor, True, looked_at, found)
            cursor, looked_at = message.sequence, looked_at + 1
            if not message.payload or at - message.stored_at < self._quiet:
                continue
            try:
                record = decode(message.payload, TaskRecord)
            except TaskmeshError:
                continue  # Retention says so, and another version may read it.
            if record.status not in ENDED:
                found.append(OpenTask(record.tenant, record.id, record.status))
        return Walk(cursor, page.more, looked_at, found)

    async def unrecorded(self) -> list[OpenTask]:
        """Tasks that have a journal and no record. Raises `BrokerUnavailable`.

        Whoever begins a journal writes the record soon, and no walk along the records would ever come upon one that has
        none: after a restore from copies of the two streams that were made at different times.
        """
        prefix = f"$KV.{TASKS_BUCKET.name}."
        journals = await subjects_of(self._requests, EVENTS.name, subjects.EVENTS_LOG)
        records = await subjects_of(self._requests, TASKS_BUCKET.stream_name, f"{prefix}>")
        found: list[OpenTask] = []
        for subject in journals:
            try:
                journal = subjects.parse_journal(subject)
            except InvalidName:
                continue  # No journal of ours.
            if prefix + subjects.task_key(journal.tenant, journal.task) in records:
                continue
            # Of one that is packed the journal is about to go, or was restored after it had gone: the pack is the task.
            if await locate(self._requests, journal.tenant, journal.task) is None:
                found.append(OpenTask(journal.tenant, journal.task, None))
        return found

    async def examine(self, task: OpenTask, at: datetime) -> Found | None:
        """What a task waits for in vain; None if it waits for nothing that is gone. Raises `TaskmeshError`."""
        last = await self._last_event(task.tenant, task.task)
        if last is None or at - last.stored_at < self._quiet:
            return None
        journal = await Journal.load(self._requests, task.tenant, task.task)
        await journal.catch_up_with_leader()
        if journal.state.revision != last.sequence:
            return None
        found = Found(journal, last.sequence)
        if journal.state.terminal is not None:
            # Its last projection was lost, and whoever settled it may have died before it said so to others.
            found.lost.append(Lost("record", "status"))
            return found
        if journal.state.status != task.status:
            found.lost.append(Lost("record", "status"))
        for each in awaited(journal.state):
            lost = await self._lost(journal.state, each, last.stored_at, at)
            if lost is not None:
                found.lost.append(lost)
        for letter in journal.state.open_dead_letters:
            if not await self._has_record(journal.state, letter):
                found.lost.append(Lost("dead letter", f"{letter.step}.g{letter.gen}", letter=letter))
        return found if found.lost else None

    async def put_back(self, found: Found) -> bool:
        """Publish again what is gone. False if somebody has written to the journal meanwhile: it goes on, then.

        Raises `BrokerUnavailable`.
        """
        state = found.journal.state
        if state.terminal is not None:
            await settle(self._requests, state, ("1",), None)
            return True
        for lost in found.lost:
            if lost.kind == "record":
                await project(self._requests, record_of(state))
            elif lost.step is not None:
                step = lost.step.step
                if not await self._release(found, step):
                    return False
                await publish_outbox(self._requests, messages_to_go_on(found.journal.state, step.step), None)
            elif lost.letter is not None:
                await self._write_record(state, lost.letter)
            elif lost.message is not None:
                # The broker may still know the id of the one that is gone.
                again = f"{lost.message.message_id}.{new_id()}"
                await publish_outbox(self._requests, [replace(lost.message, message_id=again)], None)
        log.warning("task.put_back", task=found.task, tenant=found.tenant, lost=[each.name for each in found.lost])
        return True

    async def _has_record(self, state: TaskState, letter: events.TaskDeadLettered) -> bool:
        """Whether the record of a step that gave up was written: who appended the event may have died before."""
        cursor, more = 0, True
        while more:
            subject = subjects.dead_letter(state.tenant, state.task)
            page, more = await read_page(self._requests, DEAD_LETTERS.name, subject, cursor)
            for message in page:
                written = decode(message.payload, DeadLetter)
                if (written.step, written.gen) == (letter.step, letter.gen):
                    return True
                cursor = message.sequence
        return False

    async def _write_record(self, state: TaskState, letter: events.TaskDeadLettered) -> None:
        """Project the task and write the record, as whoever met its message would have done."""
        for due in messages_to_go_on(state, letter.step):
            # As the journal would send it: the message that the step had is gone.
            gone = UndeliveredMessage(
                TOOLS.name if "-" in letter.step else TURNS.name,
                due.subject,
                state.bindings.get((letter.step, letter.gen), 0),
                letter.deliveries,
                letter.time,
                encode(due.payload),
            )
            step = StepGen(letter.step, letter.gen)
            await settle_dead_letter(self._requests, state, gone, step, letter.error, RECONCILED)

    async def _release(self, found: Found, step: StepGen) -> bool:
        """Take the step from its message: from then on another stands for it. False if the task goes on by itself."""

        def released(stamp: Stamp) -> events.StepReleased:
            return events.StepReleased(*stamp, step=step.step, gen=step.gen, reason=RELEASED)

        try:
            await found.journal.append(released, lambda state: state.revision == found.revision)
        except StepLost:
            return False
        found.revision = found.journal.state.revision
        return True

    async def _lost(
        self, state: TaskState, each: AwaitedStep | AwaitedTimer | AwaitedChild, changed_at: datetime, at: datetime
    ) -> Lost | None:
        match each:
            case AwaitedTimer(timer):
                return None if await self._is_set(timer) else Lost("timer", timer.subject, message=timer)
            case AwaitedChild():
                return await self._lost_child(state, each, changed_at, at)
            case AwaitedStep(step, _, _, due_at, timer):
                if timer is not None and due_at is not None:
                    # While a timer is to bring the next try the step must not be released, whatever the time is.
                    if await self._is_set(timer):
                        return None
                    if at < due_at + self._quiet:
                        return Lost("timer", timer.subject, message=timer)
                if await self._is_there(state, each, max(changed_at, due_at or changed_at)):
                    return None
                if await self._waits_for_room(state.tenant, state.task, step.step):
                    return None
                return Lost("work", f"{step.step}.g{step.gen}", step=each)

    async def _is_set(self, timer: OutboxMessage) -> bool:
        return await last_from_leader(self._requests, TIMERS.name, timer.subject) is not None

    async def _is_there(self, state: TaskState, awaited_step: AwaitedStep, due_at: datetime) -> bool:
        """Whether the message of a step lies in its queue, or may lie there behind others."""
        is_call = "-" in awaited_step.step.step
        if awaited_step.bound_to is None:
            if is_call:
                return await self._has_older(TOOLS.name, awaited_step.subject, due_at)
            return await self._waits_its_turn(awaited_step.subject, state.task, due_at)
        for stream in (TOOLS,) if is_call else (TASKS, TURNS):
            stored = await sequence_from_leader(self._requests, stream.name, awaited_step.bound_to)
            envelope = read_envelope(stored.payload, stored.subject) if stored is not None else None
            if envelope is not None and envelope.task == state.task:
                return True
        return False

    async def _waits_its_turn(self, subject: str, task: str, due_at: datetime) -> bool:
        """Whether a turn lies in its lane, or may lie there or in BACKLOG behind others.

        In this order: it goes from BACKLOG into its lane, and is stored there anew, later than it was due.
        """
        waits_on = subjects.backlog(*LaneSubject(*subject.split(".")[1:]))
        if await self._has_older(BACKLOG.name, waits_on, due_at):
            return True
        stream = TASKS if subject.startswith("tasks.") else TURNS
        if await self._has_older(stream.name, subject, due_at):
            return True
        # What lies there was moved on, or put off, or is of others. It may be moved either way meanwhile.
        for name, place in ((BACKLOG.name, waits_on), (stream.name, subject), (BACKLOG.name, waits_on)):
            if await backlog.find(self._requests, name, place, task) is not None:
                return True
        return False

    async def _has_older(self, stream: str, subject: str, due_at: datetime) -> bool:
        """Whether a subject still has a message that was stored before one was due, give or take a while.

        A subject is a queue: while its first message is older than that, the other may lie behind it.
        """
        first = await first_from_leader(self._requests, stream, subject)
        return first is not None and first.stored_at <= due_at + self._quiet

    async def _lost_child(
        self, state: TaskState, child: AwaitedChild, changed_at: datetime, at: datetime
    ) -> Lost | None:
        last = await self._last_event(state.tenant, child.child)
        if last is None:
            if await self._waits_its_turn(child.message.subject, child.child, changed_at):
                return None
            if await self._waits_for_room(state.tenant, state.task, child.call):
                return None
            return Lost("sub-task", child.child, message=child.message)
        ended_at = last.stored_at
        news_on = subjects.control("child_done", state.tenant)
        if at - ended_at < self._quiet or await self._has_older(CONTROL.name, news_on, ended_at):
            return None
        journal = await Journal.load(self._requests, state.tenant, child.child)
        await journal.catch_up_with_leader()
        if journal.state.terminal is None:
            return None
        if await self._waits_for_room(state.tenant, child.child, FIRST_STEP):
            return None
        news = [each for each in messages_after(journal.state, "1") if isinstance(each.payload, ChildDoneCommand)]
        return Lost("news", child.child, message=news[0]) if news else None

    async def _waits_for_room(self, tenant: str, task: str, step: str) -> bool:
        """Whether what is due was refused by a full stream, and a timer brings it."""
        subject = subjects.timer_at("room", tenant, task, step)
        return await last_from_leader(self._requests, TIMERS.name, subject) is not None

    async def _last_event(self, tenant: str, task: str) -> Stored | None:
        """The last event of a task, packed or not."""
        last = await last_from_leader(self._requests, EVENTS.name, subjects.journal(tenant, task))
        if last is None:
            packed = await journal_of(self._requests, tenant, task)
            last = packed[-1] if packed else None
        return last
