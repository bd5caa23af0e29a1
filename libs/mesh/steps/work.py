"""The work loop: pull, fold, decide, claim, perform, settle.

Walk one delivery through `WorkLoop._handle`: its message is validated, its journal folded, `decide` says what
to do, and the answer is performed in the order append → project → publish → ack. A process may die between
any two of these: the next delivery finds the journal, and goes on from there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import msgspec
import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from contracts import headers
from contracts.errors import ErrorInfo, TaskmeshError
from contracts.identifiers import turn_step
from contracts.journal import events
from contracts.journal.events import MESSAGE_CHARACTERS_MAX, JournalEvent, Stamp
from contracts.messages.work import ToolWork, TurnWork, Work, decode_work
from contracts.retries import STEP_POLICY
from mesh import faults
from mesh.background import background
from mesh.broker.connection import Connection
from mesh.broker.deliveries import Delivery, Leases, handle_while_leased
from mesh.broker.pull_consumer import Lane, LaneUnavailable
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.errors import BrokerUnavailable, StepLost
from mesh.journal import dead_letter_records
from mesh.journal.journal import Appends, Build, Journal
from mesh.journal.projection import BackgroundProjection, project
from mesh.journal.settling import publish_due
from mesh.journal.watching import until_lost
from mesh.steps.gates import UNLIMITED, AlwaysOpen, Entry, Gate, WaitingRoom, Withheld, require
from mesh.task.decisions import (
    Begin,
    Claim,
    Drop,
    Expire,
    Later,
    Refuse,
    Settle,
    SettleDeadLetter,
    decide,
    queued_event,
)
from mesh.task.failures import Fail, GiveUp, Retry, StepFailed, decide_failure
from mesh.task.outbox import BY_MESH, due_after, due_at_the_deadline
from mesh.task.records import record
from mesh.task.state import TaskState
from mesh.telemetry import metrics, traces

log = structlog.get_logger("mesh.steps.work")

FIRST_STEP = turn_step(1)
LATER_SECONDS = 0.2
"""Delay of a delivery whose journal can't be seen yet."""
LATER_DELIVERIES_MAX = 8
"""After so many deliveries a message whose journal is still missing becomes a dead letter."""
LANE_RETRY_SECONDS = 0.5
LIMITED_PULL_SECONDS = 0.25
"""How often a lane is looked at whose gate lets single steps through: no pull is left open there."""


@dataclass(frozen=True, slots=True)
class LaneSpec:
    """A durable consumer to pull, and its weight: how much one pull may take. It is pulled while its gate is open."""

    stream: str
    consumer: str
    batch_max: int
    gate: Gate = field(default_factory=AlwaysOpen)


class ClaimedStep:
    """A step that this process owns, until the journal says otherwise."""

    def __init__(self, journal: Journal, work: Work, claim: events.StepClaimed, delivery: Delivery) -> None:
        self.work = work
        self.claim = claim
        self.deliveries = delivery.deliveries
        self.on_news: Callable[[], None] | None = None
        """Called when somebody else's events were folded while the step runs."""
        self._journal = journal

    @property
    def state(self) -> TaskState:
        """The journal as folded so far."""
        return self._journal.state

    async def append(self, build: Callable[[Stamp], JournalEvent]) -> JournalEvent:
        """Append an event of this step. Raises `StepLost` once the step is somebody else's, or the task over."""
        return await self._journal.append(build, lambda state: state.owns(self.claim))

    async def publish(self, subject: str, payload: bytes, message_headers: dict[str, str]) -> None:
        """Publish what a step is there to publish, under a message id: nothing fences it.

        Raises `BrokerError`, `BrokerUnavailable`.
        """
        await self._journal.requests.publish(subject, payload, message_headers)

    async def append_if(
        self, build: Callable[[Stamp], JournalEvent], still_so: Callable[[TaskState], bool]
    ) -> JournalEvent | None:
        """The same, while `still_so` holds; None if it does not any more. Raises `StepLost`."""
        try:
            return await self._journal.append(build, lambda state: state.owns(self.claim) and still_so(state))
        except StepLost:
            if not self.state.owns(self.claim):
                raise
            return None


def _queued(work: TurnWork, stamp: Stamp) -> JournalEvent:
    return queued_event(stamp, work)


def _called_off(stamp: Stamp) -> JournalEvent:
    return events.TaskCancelled(*stamp, by=BY_MESH, reason="the task that it belongs to is over")


def _span_attributes(work: Work, delivery: Delivery) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "messaging.system": "nats",
        "messaging.destination.name": delivery.stream,
        "taskmesh.task": work.task,
        "taskmesh.tenant": work.tenant,
        "taskmesh.turn": work.turn,
        "taskmesh.gen": work.gen,
        "taskmesh.delivery": delivery.deliveries,
    }
    if isinstance(work, ToolWork):
        attributes["taskmesh.call"] = work.call
    return attributes


def _add_span_of_appends(journal: Journal) -> None:
    appends = journal.appends
    if appends.count:
        traces.add_past_span(
            "append events",
            appends.started_ns,
            {
                "taskmesh.append.count": appends.count,
                "taskmesh.append.bytes": appends.payload_bytes,
                "taskmesh.append.seconds_max": appends.seconds_max,
            },
        )


class StepHandler(Protocol):
    """What a service does with a step."""

    def describe_claim(self, state: TaskState, work: Work) -> dict[str, str]:
        """More fields for the claim event: `provider` and `model` of a turn."""
        ...

    async def perform(self, step: ClaimedStep) -> None:
        """Run the step, and append its result. Raises `StepFailed`; anything else counts as unknown."""
        ...


class WorkLoop:
    """Everything between the work queues and a handler, in one process."""

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        lanes: list[LaneSpec],
        handler: StepHandler,
        worker: str,
    ) -> None:
        self._connection = connection
        self._requests = connection.requests
        self._settings = settings
        self._handler = handler
        self._worker = worker
        self._policy = msgspec.structs.replace(STEP_POLICY, tries_max=settings.max_tries)
        self._leases = Leases(settings.ack_wait_seconds)
        self._projection = BackgroundProjection(connection.requests)
        self._slots = asyncio.Semaphore(settings.worker_concurrency)
        self._running: set[asyncio.Task[None]] = set()
        self._asked_for = 0
        self._room = asyncio.Event()
        self._waiting = WaitingRoom(self._room.set)
        self._draining = False
        self._lanes: list[tuple[Lane, Gate]] = []
        for spec in lanes:
            start = partial(self._start, spec.gate)
            lane = Lane(connection, spec.stream, spec.consumer, spec.batch_max, settings.ack_wait_seconds, start)
            spec.gate.on_shut(lane.end_pull)
            self._lanes.append((lane, spec.gate))
        self._limited = asyncio.Lock()

    @property
    def steps_running(self) -> int:
        """Steps in this process's hands."""
        return len(self._running)

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping`; then pull no more, let running steps end, and hand over what does not."""
        async with background(self._leases.run()):
            try:
                async with background(*(self._pull_lane(lane, gate) for lane, gate in self._lanes)):
                    await stopping.wait()
            finally:
                # Leases are kept until the last step is out of hand.
                await self._drain()

    async def _drain(self) -> None:
        log.info("work.draining", steps=len(self._running))
        self._waiting.close()
        for lane, _ in self._lanes:
            await lane.close()
        if self._running:
            await asyncio.wait(self._running, timeout=self._settings.drain_seconds)
        self._draining = True
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        await self._projection.close()

    # Pulling

    async def _pull_lane(self, lane: Lane, gate: Gate) -> None:
        complained = False
        while True:
            try:
                await self._wait_for_room()
                if not gate.opened.is_set():
                    await lane.withdraw()
                    await gate.opened.wait()
                    continue
                await lane.open()
                if gate.room() < UNLIMITED:
                    await self._take_one(lane, gate)
                # What is there already, as much as there is room for; then wait for the next message.
                elif not await self._take(lane):
                    await lane.pull(1, wait=True)
                complained = False
            except LaneUnavailable as error:
                if not complained:
                    log.warning("lane.unavailable", stream=lane.stream, consumer=lane.consumer, error=str(error))
                complained = True
                await asyncio.sleep(LANE_RETRY_SECONDS)

    async def _take(self, lane: Lane) -> bool:
        """Pull what is there. True if there may be more."""
        batch = min(lane.batch_max, self._room_now())
        if batch <= 0:
            return True
        self._asked_for += batch
        try:
            return await lane.pull(batch, wait=False) == batch
        finally:
            self._asked_for -= batch
            self._room.set()

    async def _take_one(self, lane: Lane, gate: Gate) -> None:
        """Pull one message, if there is one: a gate of little room is shut by it, and the other lanes wait for that."""
        async with self._limited:
            taken = gate.room() <= 0 or await lane.pull(1, wait=False)
        if not taken:
            await asyncio.sleep(LIMITED_PULL_SECONDS)

    def _room_now(self) -> int:
        return self._settings.worker_concurrency - (len(self._running) - self._waiting.count) - self._asked_for

    async def _wait_for_room(self) -> None:
        while self._room_now() <= 0:
            self._room.clear()
            await self._room.wait()

    def _start(self, gate: Gate, delivery: Delivery) -> None:
        # Entered before anything is awaited: the next pull must know.
        task = asyncio.create_task(self._run(delivery, gate, gate.enter()))
        self._running.add(task)
        self._leases.add(delivery, task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._room.set()

    # One delivery

    async def _run(self, delivery: Delivery, gate: Gate, entry: Entry | None) -> None:
        """Handle a delivery, whatever happens. What is not answered here comes back after ack_wait."""
        try:
            tried = False
            while entry := entry or await self._waiting.wait(gate, tried=tried):
                try:
                    # An idle lane may bring a message more than there is room for: it waits here, its lease kept.
                    async with self._slots:
                        await handle_while_leased(delivery, partial(self._handle, entry))
                    break
                except Withheld:
                    log.info("step.withheld", stream=delivery.stream, message=delivery.sequence)
                finally:
                    entry.leave()
                entry, tried = None, True
            else:
                await delivery.nak(self._waiting.nak_seconds)
        except asyncio.CancelledError:
            # The lease was lost, and then this sends nothing; or the process drains, and hands over.
            if self._draining:
                log.info("step.handed_over", stream=delivery.stream, message=delivery.sequence)
                await delivery.nak()
        except StepLost as error:
            log.info("step.lost", stream=delivery.stream, message=delivery.sequence, reason=str(error))
        except BrokerUnavailable as error:
            log.warning("step.abandoned", stream=delivery.stream, message=delivery.sequence, error=str(error))
        except Exception:
            log.exception("step.crashed", stream=delivery.stream, message=delivery.sequence)
        finally:
            delivery.give_up()
            self._leases.remove(delivery)

    async def _handle(self, entry: Entry, delivery: Delivery) -> None:
        try:
            work = decode_work(delivery.payload, delivery.subject)
        except TaskmeshError as error:
            await self._refuse(delivery, ErrorInfo("malformed-message", str(error)))
            return
        if delivery.deliveries > 1:
            metrics.redelivered(delivery.stream)
        name = f"call {work.tool}" if isinstance(work, ToolWork) else "turn"
        attributes = _span_attributes(work, delivery) if traces.enabled() else None
        incoming = delivery.headers.get(headers.TRACEPARENT)
        with structlog.contextvars.bound_contextvars(task=work.task, tenant=work.tenant, step=work.step):
            # Two spans: the claim's ends at once, and is exported even if this process dies in the middle of the step.
            with traces.span(f"claim {name}", incoming, SpanKind.CONSUMER, attributes):
                traceparent = traces.current_traceparent() or incoming
                journal = await Journal.load(self._requests, work.tenant, work.task, traceparent=traceparent)
                step = await self._claim(journal, work, delivery, entry)
            if step is None:
                return
            with (
                traces.carrying(traceparent),
                traces.span(name, traceparent, SpanKind.CONSUMER, attributes),
            ):
                journal.appends = Appends()  # without the claim: it has a span of its own
                try:
                    await self._perform(step, journal, delivery, entry)
                finally:
                    _add_span_of_appends(journal)

    async def _claim(self, journal: Journal, work: Work, delivery: Delivery, entry: Entry) -> ClaimedStep | None:
        """Decide, and act, until the step is claimed or the delivery is answered. Raises `Withheld`."""
        while True:
            state = journal.state
            decision = decide(state, work, delivery.sequence, now())
            match decision:
                case Begin():
                    await self._try(journal, partial(_queued, decision.work), delivery, work, decision)
                case Expire():
                    await self._try(journal, lambda stamp: events.TaskExpired(*stamp), delivery, work, decision)
                case Claim() if await self._is_orphan(state, work):
                    await self._try(journal, _called_off, delivery, work, decision)
                case Claim():
                    require(entry)
                    if work.step == FIRST_STEP:
                        # Whoever accepted the task may have died before it could.
                        await publish_due(self._requests, due_at_the_deadline(state), traces.current_traceparent())
                    claimed = await self._try(
                        journal, self._claim_event(state, work, delivery), delivery, work, decision
                    )
                    if isinstance(claimed, events.StepClaimed):
                        log.info("step.claimed", delivery=delivery.deliveries, message=delivery.sequence)
                        self._projection.submit(record(journal.state))
                        return ClaimedStep(journal, work, claimed, delivery)
                case Settle():
                    await self._settle(state, work, delivery)
                    return None
                case SettleDeadLetter():
                    await self._settle_dead_letter(journal, work, delivery, decision.event.error)
                    return None
                case Drop():
                    log.info("step.dropped", message=delivery.sequence)
                    await delivery.ack()
                    return None
                case Later():
                    await self._later(delivery, work)
                    return None
                case Refuse():
                    # Only the stream's leader knows that there is no such call (rule 11).
                    if await journal.is_behind():
                        await self._later(delivery, work)
                    else:
                        await self._refuse(delivery, decision.error)
                    return None

    async def _is_orphan(self, state: TaskState, work: Work) -> bool:
        """Whether a sub-task is about to begin whose parent is over.

        The parent's end cancels its children; one whose journal had not begun then can't be found by that. Either the
        cancel finds this journal, or this finds the parent's end.
        """
        parent = state.queued.parent if state.queued else None
        if parent is None or state.claims or not isinstance(work, TurnWork):
            return False
        return (await Journal.load(self._requests, state.tenant, parent.task)).state.terminal is not None

    async def _try(
        self, journal: Journal, build: Build, delivery: Delivery, work: Work, decision: object
    ) -> JournalEvent | None:
        """Append what was decided; None if the journal has moved on so that something else is to be done."""

        def still_so(state: TaskState) -> bool:
            # The lease is looked at after each fold: a process that slept must not begin (rule 4).
            return delivery.lease_held and decide(state, work, delivery.sequence, now()) == decision

        try:
            return await journal.append(build, still_so)
        except StepLost:
            if not delivery.lease_held:
                raise
            return None

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
                call=tool.call if tool else None,
                tool=tool.tool if tool else None,
            )

        return build

    async def _perform(self, step: ClaimedStep, journal: Journal, delivery: Delivery, entry: Entry) -> None:
        try:
            await self._perform_or_fail(step, journal, delivery, entry)
        except StepLost:
            if journal.state.terminal is None or not journal.state.is_last_claim(step.claim):
                raise
            # Somebody has ended the task, and nobody else has its message: who meets the end settles (rule 2).
            log.info("step.ended_from_outside", status=journal.state.status)
            await self._settle(journal.state, step.work, delivery)

    async def _perform_watched(self, step: ClaimedStep, journal: Journal) -> None:
        """Run the handler for as long as the step is owned. Raises what it raises, or `StepLost`."""
        performing = asyncio.create_task(self._handler.perform(step))
        watching = asyncio.create_task(self._watch(step, journal))
        try:
            await asyncio.wait({performing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if performing.done():
                performing.result()
            elif watching.exception() is not None:
                # The fence and the lease protect the step without it.
                log.error("step.watch_broke", error=str(watching.exception()))
                await performing
            else:
                raise StepLost(f"task {journal.state.task}: the journal has moved on")
        finally:
            # Also where this delivery's own task is cancelled: nothing of the step outlives it.
            performing.cancel()
            watching.cancel()
            await asyncio.gather(performing, watching, return_exceptions=True)

    async def _watch(self, step: ClaimedStep, journal: Journal) -> None:
        if not faults.WATCH_ON:
            await asyncio.Event().wait()

        def on_news() -> None:
            if step.on_news is not None:
                step.on_news()

        await until_lost(self._connection, journal, step.claim, on_news)

    async def _perform_or_fail(self, step: ClaimedStep, journal: Journal, delivery: Delivery, entry: Entry) -> None:
        try:
            await self._perform_watched(step, journal)
        except (StepLost, BrokerUnavailable):
            raise
        except StepFailed as error:
            await self._failed(step, journal, delivery, error, entry)
            return
        except Exception as error:
            log.exception("step.broke")
            unknown = StepFailed("internal", f"{type(error).__name__}: {error}", retryable=True)
            await self._failed(step, journal, delivery, unknown, entry)
            return
        log.info("step.completed")
        await self._settle(journal.state, step.work, delivery)

    async def _failed(
        self, step: ClaimedStep, journal: Journal, delivery: Delivery, error: StepFailed, entry: Entry
    ) -> None:
        work = step.work
        traces.fail(trace.get_current_span(), error.code)
        match decide_failure(journal.state, work, error, self._policy, random.random()):
            case Fail():
                await step.append(lambda stamp: events.TaskFailed(*stamp, error=error.info()))
                log.warning("task.failed", code=error.code, error=str(error))
                await self._settle(journal.state, work, delivery)
            case Retry() as retry:
                await step.append(
                    lambda stamp: events.TaskRetrying(
                        *stamp,
                        step=work.step,
                        gen=work.gen,
                        reason=error.code,
                        delay_seconds=retry.delay_seconds,
                        tries=retry.tries,
                        timer=retry.by_timer,
                        message=str(error)[:MESSAGE_CHARACTERS_MAX] or None,
                    )
                )
                log.warning("step.retrying", code=error.code, error=str(error), delay_seconds=retry.delay_seconds)
                if retry.by_timer:
                    await self._settle(journal.state, work, delivery)
                elif not error.counts and not entry.holds and self._waiting.has_room:
                    raise Withheld  # The next try is a probe, or after it: a redelivery would be one of few.
                else:
                    await delivery.nak(retry.delay_seconds)
            case GiveUp():
                await step.append(
                    lambda stamp: events.TaskDeadLettered(
                        *stamp, step=work.step, gen=work.gen, error=error.info(), deliveries=delivery.deliveries
                    )
                )
                log.error("step.dead_lettered", code=error.code, error=str(error))
                await self._settle_dead_letter(journal, work, delivery, error.info())

    # Settling: each part may be done twice

    async def _settle(self, state: TaskState, work: Work, delivery: Delivery) -> None:
        if state.status == "running":
            self._projection.submit(record(state))
        else:
            await self._project(state)
        await publish_due(self._requests, due_after(state, work.step), traces.current_traceparent())
        await delivery.ack()

    async def _settle_dead_letter(self, journal: Journal, work: Work, delivery: Delivery, error: ErrorInfo) -> None:
        await self._project(journal.state)
        await dead_letter_records.write_step(self._requests, delivery, work, journal.state, error, self._worker)
        await delivery.term("dead letter")

    async def _project(self, state: TaskState) -> None:
        await self._projection.superseded(state.tenant, state.task)
        await project(self._requests, record(state))

    async def _later(self, delivery: Delivery, work: Work) -> None:
        if delivery.deliveries >= LATER_DELIVERIES_MAX:
            await self._refuse(delivery, ErrorInfo("journal-missing", f"no journal fits step {work.step}"))
            return
        log.info("step.later", message=delivery.sequence)
        await delivery.nak(LATER_SECONDS)

    async def _refuse(self, delivery: Delivery, error: ErrorInfo) -> None:
        await dead_letter_records.refuse(self._requests, delivery, error, self._worker)
