"""The life of a step: from its delivery to the answer. Decide, claim, perform, settle.

Walk one delivery through `StepLife.live`: its message is validated, its journal folded, `decide` says what to do, and
the answer is performed in the order append → project → publish → ack. A process may die between any two of these:
the next delivery finds the journal, and goes on from there.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

import msgspec
import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from contracts import headers, subjects
from contracts.actors import BY_MESH
from contracts.errors import ErrorInfo, InvalidPayload, TaskmeshError
from contracts.journal import events
from contracts.journal.events import MESSAGE_CHARACTERS_MAX, JournalEvent, Stamp, decode_event
from contracts.journal.parts import StepGen
from contracts.messages.work import ToolWork, TurnWork, Work, decode_work
from contracts.retries import STEP_POLICY
from contracts.streams import EVENTS
from mesh.admission import backlog
from mesh.archive.lookup import journal_of
from mesh.broker.answers import NOT_VISIBLE_YET, Ack, Answer, Hold, Nak, Term
from mesh.broker.connection import Connection
from mesh.broker.deliveries import Delivery
from mesh.broker.direct_get import last_from_leader
from mesh.broker.gates import ALWAYS, Permit
from mesh.clock import now
from mesh.errors import BrokerUnavailable, MessageTooLarge, NoRoom, StepLost
from mesh.journal import dead_letter_records, giving_up
from mesh.journal.journal import Append, Appends, Build, Journal
from mesh.journal.projection import BackgroundProjection
from mesh.journal.settling import publish_outbox, settle, settle_dead_letter
from mesh.journal.warm import WarmJournals
from mesh.journal.watching import Watches
from mesh.steps import postponement, spans
from mesh.steps.claimed_step import ClaimedStep, StepHandler, StepRecalled, perform_while_owned
from mesh.steps.put_off import NEVER, PutsOff
from mesh.task.budget import accounts
from mesh.task.decisions import (
    FIRST_STEP,
    Begin,
    Claim,
    Drop,
    Expire,
    Later,
    Refuse,
    Settle,
    SettleDeadLetter,
    base_of_claim,
    decide,
    error_of,
    queued_event,
)
from mesh.task.failures import Fail, GiveUp, Retry, StepFailed, decide_failure
from mesh.task.outbox import deadline_timer
from mesh.task.records import record
from mesh.task.state import TaskState
from mesh.telemetry import metrics, traces

log = structlog.get_logger("mesh.steps.step_life")


@dataclass(frozen=True, slots=True)
class HandOver:
    """The process stops, and the step is not begun here: another message of it is published."""


@dataclass(frozen=True, slots=True)
class PutOff:
    """The step waits until its tenant may go on: its message lies in BACKLOG."""


Answered = Settle | SettleDeadLetter | Drop | Later | Refuse | Hold | HandOver | PutOff
"""What is decided of a delivery whose step is not to be performed here and now."""


class StepLife:
    """What one process does with each delivery of a step."""

    def __init__(
        self,
        connection: Connection,
        handler: StepHandler,
        worker: str,
        tries_max: int,
        deliveries_max: int,
        projection: BackgroundProjection,
        journals: WarmJournals | None = None,
        puts_off: PutsOff = NEVER,
    ) -> None:
        self._requests = connection.requests
        self._journals = journals or WarmJournals(connection.requests)
        self._watches = Watches(connection)
        self._handler = handler
        self._worker = worker
        self._policy = msgspec.structs.replace(STEP_POLICY, tries_max=tries_max)
        self._deliveries_max = deliveries_max
        self._projection = projection
        self._puts_off = puts_off

    async def live(self, delivery: Delivery, permit: Permit) -> Answer:
        """Bring a step as far as it can be brought under this delivery. Raises `StepLost`, `BrokerUnavailable`."""
        try:
            work = decode_work(delivery.payload, delivery.subject)
        except TaskmeshError as error:
            return await self._leave_to_another(delivery, error)
        if delivery.deliveries > 1:
            metrics.redelivered(delivery.stream)
        attributes = spans.attributes_of(work, delivery)
        incoming = delivery.headers.get(headers.TRACEPARENT)
        with structlog.contextvars.bound_contextvars(task=work.task, tenant=work.tenant, step=work.step):
            # Two spans: the claim's ends at once, and is exported even if this process dies in the middle of the step.
            with traces.span(spans.claim_of(work), incoming, SpanKind.CONSUMER, attributes):
                claimed = traces.current_traceparent() or incoming
                # What follows carries what this came with: so the steps of a task lie beside each other.
                carried = incoming or claimed
                with traces.carrying(carried):
                    self._puts_off.expect(work)
                    try:
                        journal = await self._journals.open(work.tenant, work.task, claimed)
                        decided = await self._claim(journal, work, delivery, permit)
                    except InvalidPayload as error:
                        return await self._leave_to_another(delivery, error)
                    if not isinstance(decided, ClaimedStep):
                        return await self._answer(decided, journal, work, delivery)
            kind = spans.kind_of(work)
            with traces.carrying(carried), traces.span(spans.name_of(work), claimed, kind, attributes):
                journal.appends = Appends()  # without the claim: it has a span of its own
                try:
                    return await self._perform(decided, journal, delivery, permit)
                finally:
                    spans.add_span_of_appends(journal.appends)

    # Until the claim

    async def _claim(self, journal: Journal, work: Work, delivery: Delivery, permit: Permit) -> ClaimedStep | Answered:
        """Claim the step, if that is what the journal says; else what it says."""
        decided = await self._decided(journal, work, delivery, permit)
        if isinstance(decided, PutOff) and not await self._put_off(journal.state, work, delivery):
            # Where nothing more can wait it is claimed. Without a budget it fails then, and waits by a timer.
            decided = await self._decided(journal, work, delivery, permit, may_wait=False)
        if isinstance(decided, events.StepClaimed):
            log.debug("step.claimed", delivery=delivery.deliveries, message=delivery.sequence)
            self._projection.submit(record(journal.state))
            return ClaimedStep(journal, work, decided, delivery)
        if isinstance(decided, events.Event):
            raise TypeError(f"{type(decided).__name__} is no claim")
        return decided

    async def _decided(
        self, journal: Journal, work: Work, delivery: Delivery, permit: Permit, *, may_wait: bool = True
    ) -> JournalEvent | Answered:
        # The lease is looked at right before each append: a process that slept must not begin (rule 4).
        decided: JournalEvent | Answered = await journal.advance(
            lambda state: self._next(state, work, delivery, permit, may_wait=may_wait), lambda: delivery.lease_held
        )
        return decided

    async def _next(
        self, state: TaskState, work: Work, delivery: Delivery, permit: Permit, *, may_wait: bool = False
    ) -> Append | Answered:
        match decide(state, work, delivery.sequence, now()):
            case Begin(begun):
                return Append(lambda stamp: queued_event(stamp, begun))
            case Expire():
                return Append(lambda stamp: events.TaskExpired(*stamp))
            case Claim() if await self._is_orphan(state, work):
                return Append(_cancelled_with_its_parent)
            case Claim() if delivery.recalled.is_set():
                return HandOver()
            case Claim() if not permit.is_valid:
                return Hold()
            case Claim() if may_wait and await self._is_put_off(state, work):
                return PutOff()
            case Claim():
                if work.step == FIRST_STEP:
                    # Whoever accepted the task may have died before it could.
                    await publish_outbox(self._requests, deadline_timer(state), traces.current_traceparent())
                return Append(self._claim_event(state, work, delivery), last=True)
            case decision:
                return decision

    async def _is_put_off(self, state: TaskState, work: Work) -> bool:
        # One that was claimed before goes on by this message alone (rule 3).
        return (work.step, work.gen) not in state.bindings and await self._puts_off.is_put_off(work)

    async def _put_off(self, state: TaskState, work: Work, delivery: Delivery) -> bool:
        """Let a step's message wait in BACKLOG; False if there is no room there. Its task's deadline goes on."""
        try:
            await backlog.put_off(self._requests, delivery)
        except NoRoom as error:
            log.warning("step.no_room_to_wait", error=str(error))
            return False
        if work.step == FIRST_STEP:
            # Its journal may be this worker's: who accepted the task leaves the rest to whoever has begun it.
            self._projection.submit(record(state))
            await publish_outbox(self._requests, deadline_timer(state), traces.current_traceparent())
        log.info("step.put_off", message=delivery.sequence)
        return True

    async def _is_orphan(self, state: TaskState, work: Work) -> bool:
        """Whether a sub-task is about to begin whose parent is over.

        The parent's end cancels its children; one whose journal had not begun then can't be found by that. Either the
        cancel finds this journal, or this finds the parent's end: both ask the stream's leader, since a replica may be
        behind on either.
        """
        parent = state.queued.parent if state.queued else None
        if parent is None or state.claims or not isinstance(work, TurnWork):
            return False
        last = await last_from_leader(self._requests, EVENTS.name, subjects.journal_log(state.tenant, parent.task))
        if last is None:
            return bool(await journal_of(self._requests, state.tenant, parent.task))  # Only what has ended is packed.
        return isinstance(decode_event(last.payload), events.TerminalEvent)

    def _claim_event(self, state: TaskState, work: Work, delivery: Delivery) -> Build:
        described = self._handler.describe_claim(state, work)
        tool = work if isinstance(work, ToolWork) else None

        def build(stamp: Stamp) -> events.StepClaimed:
            return events.StepClaimed(
                *stamp,
                step=work.step,
                gen=work.gen,
                message=delivery.sequence,
                worker=self._worker,
                delivery=delivery.deliveries,
                turn=work.turn,
                attempt=None if tool else state.turn(work.turn).claims + 1,
                provider=described.get("provider"),
                model=described.get("model"),
                reason=described.get("reason"),
                call=tool.call if tool else None,
                tool=tool.tool if tool else None,
                base=None if tool else base_of_claim(state, work.turn, stamp.n),
                lost=None if tool else state.turn(work.turn).open_calls or None,
            )

        return build

    async def _answer(self, decided: Answered, journal: Journal, work: Work, delivery: Delivery) -> Answer:
        """Do what is to be done for a delivery whose step is not claimed."""
        match decided:
            case Hold():
                return decided
            case HandOver():
                return await self._hand_over(journal, work, delivery)
            case Settle():
                return await self._settle(journal.state, work)
            case SettleDeadLetter(event):
                return await self._settle_dead_letter(journal.state, work, delivery, event.error)
            case PutOff():
                return Ack()
            case Drop():
                log.info("step.dropped", message=delivery.sequence)
                return Ack()
            case Later() if postponement.may_be_visible_soon(delivery.deliveries):
                log.info("step.later", message=delivery.sequence)
                return NOT_VISIBLE_YET
            case Later() | Refuse():
                # Only the stream's leader knows that there is no such call, or journal (rule 11).
                read = journal.state.revision
                if await journal.is_behind() or journal.state.revision != read:
                    log.info("step.later", message=delivery.sequence)
                    return NOT_VISIBLE_YET
                return await self._give_up(journal, work, delivery, error_of(decided, work))

    # From the claim on

    async def _perform(self, step: ClaimedStep, journal: Journal, delivery: Delivery, permit: Permit) -> Answer:
        try:
            return await self._perform_or_fail(step, journal, delivery, permit)
        except StepLost:
            if journal.state.terminal is None or not journal.state.is_last_claim(step.claim):
                raise
            # Somebody has ended the task, and nobody else has its message: who meets the end settles (rule 2).
            log.debug("step.ended_from_outside", status=journal.state.status)
            return await self._settle(journal.state, step.work)

    async def _perform_or_fail(self, step: ClaimedStep, journal: Journal, delivery: Delivery, permit: Permit) -> Answer:
        try:
            await perform_while_owned(self._handler, step, journal, self._watches)
        except (StepLost, BrokerUnavailable):
            raise
        except StepRecalled:
            await step.append(lambda stamp: _released(stamp, step.work))
            return await self._handed_over(step.state, step.work, delivery)
        except StepFailed as error:
            return await self._failed(step, error, delivery, permit)
        except MessageTooLarge as error:
            # As large it would be the next time: what has been paid for is not done again.
            return await self._failed(step, StepFailed(error.code, str(error), retryable=False), delivery, permit)
        except Exception as error:
            log.exception("step.broke")
            unknown = StepFailed("internal", f"{type(error).__name__}: {error}", retryable=True)
            return await self._failed(step, unknown, delivery, permit)
        log.debug("step.completed")
        if journal.state.terminal is not None:
            # The one line of a task that went well, whatever it did.
            log.info("task.ended", status=journal.state.status)
        return await self._settle(journal.state, step.work)

    async def _failed(self, step: ClaimedStep, error: StepFailed, delivery: Delivery, permit: Permit) -> Answer:
        """Record what follows a failed try: the task's end, a dead letter, or another try."""
        work = step.work
        traces.fail(trace.get_current_span(), error.code)
        match decide_failure(step.state, work, error, self._policy, random.random()):
            case Fail():
                await step.append(lambda stamp: events.TaskFailed(*stamp, error=error.info(), **accounts(step.state)))
                log.warning("task.failed", code=error.code, error=str(error))
                return await self._settle(step.state, work)
            case GiveUp():
                await step.append(
                    lambda stamp: events.TaskDeadLettered(
                        *stamp, step=work.step, gen=work.gen, error=error.info(), deliveries=delivery.deliveries
                    )
                )
                log.error("step.dead_lettered", code=error.code, error=str(error))
                return await self._settle_dead_letter(step.state, work, delivery, error.info())
            case Retry() as retry:
                await step.append(partial(_retrying, work, error, retry))
                log.warning("step.retrying", code=error.code, error=str(error), delay_seconds=retry.delay_seconds)
                answer = postponement.until_next_try(retry, error, has_permit=permit.is_valid)
                # The timer that brings the next try is what is due now.
                return await self._settle(step.state, work) if isinstance(answer, Ack) else answer

    async def _hand_over(self, journal: Journal, work: Work, delivery: Delivery) -> Answer:
        """Release a step that is not begun here, if it is still to be claimed; else do what the journal says."""

        async def release(state: TaskState) -> Append | Answered:
            decided = await self._next(state, work, delivery, ALWAYS)
            return Append(lambda stamp: _released(stamp, work), last=True) if isinstance(decided, HandOver) else decided

        decided: JournalEvent | Answered = await journal.advance(release, lambda: delivery.lease_held)
        if isinstance(decided, events.Event):
            return await self._handed_over(journal.state, work, delivery)
        return await self._answer(decided, journal, work, delivery)

    async def _handed_over(self, state: TaskState, work: Work, delivery: Delivery) -> Ack:
        """What is due of a released step is another message of it, none of whose deliveries is used up."""
        metrics.handed_over(delivery.stream)
        log.info("step.handed_over", message=delivery.sequence, delivery=delivery.deliveries)
        return await self._settle(state, work)

    async def _settle(self, state: TaskState, work: Work) -> Ack:
        await settle(self._requests, state, (work.step,), traces.current_traceparent(), projection=self._projection)
        return Ack()

    async def _settle_dead_letter(
        self, state: TaskState, work: Work, delivery: Delivery, error: ErrorInfo
    ) -> Term | Nak:
        step = StepGen(work.step, work.gen)
        try:
            await settle_dead_letter(self._requests, state, delivery, step, error, self._worker, self._projection)
        except NoRoom as no_room:
            return dead_letter_records.without_room(delivery, no_room)
        return Term("dead letter")

    async def _give_up(self, journal: Journal, work: Work, delivery: Delivery, error: ErrorInfo) -> Term | Nak:
        """Give up the step if its journal goes on by this message, so that it can be replayed; else the message."""
        try:
            given_up = await giving_up.give_up_step(
                journal,
                delivery,
                StepGen(work.step, work.gen),
                (work.tries, work.releases),
                error,
                self._worker,
                lambda: delivery.lease_held,
                self._projection,
            )
        except NoRoom as no_room:
            return dead_letter_records.without_room(delivery, no_room)
        if given_up:
            return Term("dead letter")
        return await dead_letter_records.refuse(self._requests, delivery, error, self._worker)

    async def _leave_to_another(self, delivery: Delivery, error: TaskmeshError) -> Answer:
        return await giving_up.leave_to_another(self._requests, delivery, error, self._deliveries_max, self._worker)


def _cancelled_with_its_parent(stamp: Stamp) -> JournalEvent:
    return events.TaskCancelled(*stamp, by=BY_MESH, reason="the task that it belongs to is over")


def _released(stamp: Stamp, work: Work) -> JournalEvent:
    return events.StepReleased(*stamp, step=work.step, gen=work.gen, reason="drain")


def _retrying(work: Work, error: StepFailed, retry: Retry, stamp: Stamp) -> JournalEvent:
    return events.TaskRetrying(
        *stamp,
        step=work.step,
        gen=work.gen,
        reason=error.code,
        delay_seconds=retry.delay_seconds,
        tries=retry.tries,
        timer=retry.by_timer,
        message=str(error)[:MESSAGE_CHARACTERS_MAX] or None,
    )
