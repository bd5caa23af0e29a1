"""Submission: from a request to a task that can't be lost.

TASKS is the commit point, or BACKLOG where the stewards order a lane (`mesh.admission`). Before it has accepted,
nothing exists; after it, the task will run, whatever happens to the submitter. The journal's first event is written by
the submitter, or by the worker that finds none: whoever comes second accepts the other's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple, TypeVar

import structlog
from opentelemetry.trace import SpanKind

from contracts import headers, subjects
from contracts.codec import decode, encode
from contracts.errors import TaskmeshError
from contracts.identifiers import new_id, task_id_for_key, turn_message_id
from contracts.journal import events
from contracts.journal.events import TaskQueued
from contracts.journal.parts import Estimate, Reserved, Trigger
from contracts.messages.work import TurnWork
from contracts.records.status import Status
from contracts.retries import BROKER_POLICY
from contracts.tasks import TaskRequest, fingerprint
from mesh import faults
from mesh.admission.entrance import Committed, Entrance, LaneView
from mesh.archive.lookup import journal_of
from mesh.background import ended
from mesh.broker.direct_get import Stored, last_from_leader, read_page, read_sequence
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.configuration.mesh_toml import Configuration, PoolConfiguration
from mesh.configuration.tenants_table import TenantOf, TenantsConfiguration
from mesh.errors import BrokerUnavailable, IdempotencyMismatch, StepLost
from mesh.journal.journal import Journal
from mesh.journal.projection import BackgroundProjection
from mesh.journal.settling import publish_outbox
from mesh.task.decisions import queued_event
from mesh.task.outbox import deadline_timer
from mesh.task.records import record
from mesh.task.state import TaskState
from mesh.telemetry import metrics, traces

log = structlog.get_logger("mesh.journal.submission")

N = TypeVar("N", int, float)

COMMIT_SECONDS_MAX = 5.0
"""How long a submission may try to reach TASKS before its client gets 503."""
QUEUED_SECONDS_MAX = 2.0
"""How long the answer waits for the journal's first event; later ones go on in the background."""
BACKGROUND_MAX = 1024
PACKED_AFTER_MIN = timedelta(seconds=1)
"""Nothing is packed so soon after it was accepted: who is faster need not ask whether it is."""


class Submitted(NamedTuple):
    """An accepted task. `existing`: the idempotency key had been used with the same request before."""

    task: str
    tenant: str
    pool: str
    priority: str
    created_at: datetime
    status: Status
    existing: bool


class Admission(NamedTuple):
    """That a task may begin to exist: what it is thought to cost, and what of its tenant's budget was set aside."""

    estimate: Estimate | None = None
    """None: as one that continues no other."""
    reserved: Reserved | None = None


Admit = Callable[[], Awaitable[Admission]]
"""Admits a task, or refuses it by an error of its own. Only one that does not exist yet is asked about: one that was
accepted stays so, whatever has become since of what it stands on."""


class Submission:
    """Submits tasks over one connection. `pools`: limits that their tasks have, whatever these ask for."""

    def __init__(
        self,
        requests: Requests,
        pools: Mapping[str, PoolConfiguration] | None = None,
        tenants: TenantsConfiguration | None = None,
        lanes: LaneView | None = None,
        tenant_of: TenantOf | None = None,
        is_paused: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`tenant_of`: what holds for a tenant at present, if that is more than `tenants`; `is_paused`: of a tenant."""
        self._requests = requests
        self._entrance = Entrance(requests, pools or {}, tenants or TenantsConfiguration(), lanes, tenant_of, is_paused)
        self._projection = BackgroundProjection(requests)
        self._late: set[asyncio.Task[None]] = set()

    def configure(self, configuration: Configuration) -> None:
        """Give tasks other limits, and tenants other shares, from now on."""
        self._entrance.configure(configuration.pools, configuration.tenants)

    def estimate(self, request: TaskRequest, history_tokens: int) -> Estimate:
        """What a task is thought to cost that continues so many tokens."""
        return self._entrance.estimate(request, history_tokens)

    async def submit(
        self,
        request: TaskRequest,
        tenant: str,
        idempotency_key: str | None,
        traceparent: str | None,
        admit: Admit | None = None,
        *,
        by: str | None = None,
        pool_bound: bool = False,
    ) -> Submitted:
        """Accept a task from whom `by` says, or refuse it. `pool_bound`: they may use no other pool.

        Raises what `admit` does, `QueueFull`, `IdempotencyMismatch`, or `BrokerUnavailable`, and then the task does not
        exist, or exists once under its key.
        """
        task = task_id_for_key(tenant, idempotency_key) if idempotency_key is not None else new_id()
        if idempotency_key is not None:
            queued = await self._first_event(tenant, task)
            if queued is not None:
                return _existing(queued, request)
        admission = await admit() if admit is not None else Admission()
        work = self._first_turn(request, tenant, task, by, admission, pool_bound=pool_bound)
        stream, ack = await self._publish(work, traceparent)
        if ack.duplicate:
            return _existing(await self._duplicate_of(work, stream, ack.seq), request)
        await self._begin(work, traceparent)
        return _accepted(work)

    async def start(
        self,
        request: TaskRequest,
        tenant: str,
        task: str,
        traceparent: str | None,
        trigger: Trigger | None = None,
        admit: Admit | None = None,
        *,
        by: str | None = None,
    ) -> Submitted:
        """Start a task of the mesh's own under an id that is derived from its cause: once, however often it is asked.

        `by` says whose it is. Whatever was asked for first stays so. The journal is looked for first, so that it stays
        one task when TASKS has forgotten the message id. Raises `QueueFull`, `BrokerUnavailable`, or what `admit`
        raises for a task that does not exist yet.
        """
        queued = await self._first_event(tenant, task)
        if queued is not None:
            return _known(queued)
        admission = await admit() if admit is not None else Admission()
        work = self._first_turn(request, tenant, task, by, admission, trigger=trigger)
        stream, ack = await self._publish(work, traceparent)
        if ack.duplicate:
            return _known(await self._duplicate_of(work, stream, ack.seq))
        await self._begin(work, traceparent)
        return _accepted(work)

    async def close(self) -> None:
        """Give what goes on in the background a moment. What does not get through then is the worker's to write."""
        if self._late:
            _, late = await asyncio.wait(self._late, timeout=QUEUED_SECONDS_MAX)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._projection.close()

    def _first_turn(
        self,
        request: TaskRequest,
        tenant: str,
        task: str,
        by: str | None,
        admission: Admission,
        *,
        trigger: Trigger | None = None,
        pool_bound: bool = False,
    ) -> TurnWork:
        accepted_at = now()
        limits = self._entrance.pool(request.pool)
        cost = admission.estimate or self._entrance.estimate(request, 0)
        priority, estimate = self._entrance.place(request.priority, tenant, cost)
        return TurnWork(
            task=task,
            tenant=tenant,
            turn=1,
            pool=request.pool,
            priority=priority,
            request=request,
            accepted_at=accepted_at,
            estimate=estimate,
            reserved=admission.reserved,
            deadline=_deadline(request, limits, accepted_at),
            budget_tokens=lesser(request.budget_tokens, limits.budget_tokens),
            trigger=trigger,
            by=by,
            pool_bound=pool_bound,
        )

    async def _publish(self, work: TurnWork, traceparent: str | None) -> Committed:
        attributes = _span_attributes(work) if traces.spans_enabled() else None
        with traces.span("publish tasks", kind=SpanKind.PRODUCER, attributes=attributes):
            # The worker's spans hang under this one.
            committed = await self._commit(work, traces.current_traceparent() or traceparent)
        if not committed.ack.duplicate:
            metrics.task_accepted(work.pool, work.priority)
        return committed

    async def _commit(self, work: TurnWork, traceparent: str | None) -> Committed:
        """Publish into TASKS, or BACKLOG, again and again under one message id while nobody knows whether it is there.

        It may come to be in both, if the first answer was lost: the journal makes one task of them.
        """
        payload, by_backlog = encode(work), self._entrance.goes_by_backlog(work)
        message_headers = {}
        if faults.MESSAGE_ID_ON:
            message_headers[headers.MESSAGE_ID] = turn_message_id(work.task, work.turn, work.gen)
        if traceparent:
            message_headers[headers.TRACEPARENT] = traceparent
        give_up_at = asyncio.get_running_loop().time() + COMMIT_SECONDS_MAX
        failures = 0
        while True:
            left = give_up_at - asyncio.get_running_loop().time()
            try:
                return await self._entrance.commit(
                    work, payload, message_headers, max(left, 0.01), by_backlog=by_backlog
                )
            except BrokerUnavailable:
                failures += 1
                delay = BROKER_POLICY.delay_seconds(failures, random.random())
                if asyncio.get_running_loop().time() + delay >= give_up_at:
                    raise
                await asyncio.sleep(delay)

    async def _begin(self, work: TurnWork, traceparent: str | None) -> None:
        """Write the first event; if that takes long, in the background: the task is accepted already."""
        if len(self._late) >= BACKGROUND_MAX:
            return  # The worker will write it.
        task = asyncio.create_task(self._append_queued(work, traceparent))
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        await ended(task, QUEUED_SECONDS_MAX)

    async def _append_queued(self, work: TurnWork, traceparent: str | None) -> None:
        try:
            state = await begin(self._requests, work, traceparent)
        except TaskmeshError as error:
            log.warning("submission.queued_missing", task=work.task, tenant=work.tenant, error=str(error))
            return
        if state is None:
            return  # A worker was faster.
        self._projection.submit(record(state), known_revision=0)
        try:
            await publish_outbox(self._requests, deadline_timer(state), traceparent)
        except TaskmeshError as error:
            log.warning("submission.timer_missing", task=work.task, tenant=work.tenant, error=str(error))

    async def _first_event(self, tenant: str, task: str) -> TaskQueued | None:
        subject = subjects.journal_log(tenant, task)
        give_up_at = asyncio.get_running_loop().time() + COMMIT_SECONDS_MAX
        failures = 0
        while True:
            page = await read_page(self._requests, "EVENTS", subject, 0, messages_max=1)
            if page.messages:
                return _queued_of(page.messages[0])
            # It may have ended long ago: a key stands for its task for as long as anything of that is kept.
            last, packed = await asyncio.gather(
                last_from_leader(self._requests, "EVENTS", subject), journal_of(self._requests, tenant, task)
            )
            if last is None:
                return _queued_of(packed[0]) if packed else None
            # Begun between the two reads, or on a leader that is ahead of the replica that answered the first.
            failures += 1
            if asyncio.get_running_loop().time() > give_up_at:
                raise BrokerUnavailable("the journal can't be read yet")
            await asyncio.sleep(BROKER_POLICY.delay_seconds(failures, random.random()))

    async def _duplicate_of(self, work: TurnWork, stream: str, sequence: int) -> TaskQueued:
        """The first event of the task that a stream knew already, under this key or by a try of ours without an answer.

        If its journal has not begun, it is begun from the message that was accepted, never from this request.
        """
        give_up_at = asyncio.get_running_loop().time() + COMMIT_SECONDS_MAX
        failures = 0
        while asyncio.get_running_loop().time() < give_up_at:
            queued = await self._first_event(work.tenant, work.task)
            if queued is not None:
                return queued
            stored = await read_sequence(self._requests, stream, sequence)
            if stored is not None:
                accepted = decode(stored.payload, TurnWork)
                if accepted.task == work.task and accepted.request is not None:
                    await self._begin(accepted, None)
            failures += 1
            await asyncio.sleep(BROKER_POLICY.delay_seconds(failures, random.random()))
        raise BrokerUnavailable(f"task {work.task} is known, but its journal can't be read")


async def begin(requests: Requests, work: TurnWork, traceparent: str | None) -> TaskState | None:
    """Write a journal's first event, from the message that was accepted; None if it has begun. Raises as `append`.

    Who slept since it was accepted asks the archive first: others may have begun, ended and packed it meanwhile, and
    then nothing is left that would refuse this.
    """
    slept = work.accepted_at is None or now() - work.accepted_at > PACKED_AFTER_MIN
    if slept and await journal_of(requests, work.tenant, work.task):
        return None
    journal = Journal(requests, work.tenant, work.task, traceparent)
    try:
        await journal.append(lambda stamp: queued_event(stamp, work), lambda state: not state.exists)
    except StepLost:
        return None
    return journal.state


def _queued_of(first: Stored) -> TaskQueued | None:
    event = events.decode_event(first.payload)
    return event if isinstance(event, TaskQueued) else None


def _span_attributes(work: TurnWork) -> dict[str, str]:
    return {
        "messaging.system": "nats",
        "messaging.destination.name": "TASKS",
        "taskmesh.task": work.task,
        "taskmesh.tenant": work.tenant,
        "taskmesh.pool": work.pool,
        "taskmesh.priority": work.priority,
    }


def _accepted(work: TurnWork) -> Submitted:
    accepted_at = work.accepted_at or now()
    return Submitted(work.task, work.tenant, work.pool, work.priority, accepted_at, "queued", existing=False)


def _existing(queued: TaskQueued, request: TaskRequest) -> Submitted:
    if queued.fingerprint != fingerprint(request):
        raise IdempotencyMismatch(f"the key belongs to task {queued.task}, which asked for something else")
    return _known(queued)


def _known(queued: TaskQueued) -> Submitted:
    return Submitted(
        queued.task, queued.tenant, queued.pool, queued.priority, queued.accepted_at, "queued", existing=True
    )


def _deadline(request: TaskRequest, limits: PoolConfiguration, accepted_at: datetime) -> datetime | None:
    seconds = lesser(request.deadline_seconds, limits.deadline_seconds)
    return None if seconds is None else accepted_at + timedelta(seconds=seconds)


def lesser(asked: N | None, limit: N | None) -> N | None:
    """What a request asks for, within its pool's limit; None if neither says anything."""
    return min((each for each in (asked, limit) if each is not None), default=None)
