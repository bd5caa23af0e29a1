"""Carries out commands to tasks: pulls CONTROL, and timers that have fired, and appends what each command comes to.

The order is a worker's: append → project → publish what is due → ack. A steward may die between any two of these,
and any number of stewards may run: the fence of the append sees to it that a task ends once.
"""

from __future__ import annotations

import asyncio
from functools import partial

import structlog
from opentelemetry.trace import SpanKind

from contracts import headers, subjects
from contracts.actors import BY_MESH
from contracts.errors import ErrorInfo, InvalidPayload, TaskmeshError
from contracts.journal.events import TERMINAL_TYPES
from contracts.messages.control import (
    AnyCommand,
    ApprovalCommand,
    CancelCommand,
    InputCommand,
    RoomCommand,
    decode_control,
)
from contracts.streams import TIMERS
from mesh.access.approvals import FOUR_EYES, Approvals
from mesh.admission.withdrawing import Withdrawals
from mesh.broker.answers import NOT_VISIBLE_YET, Ack, Answer, Nak, Term
from mesh.broker.connection import Connection
from mesh.broker.consumption import Consumption
from mesh.broker.deliveries import Delivery
from mesh.budgets.accounts import Accounts
from mesh.budgets.holding import give_back
from mesh.configuration.settings import Settings
from mesh.errors import JournalBusy
from mesh.journal import dead_letter_records, giving_up, holds
from mesh.journal.journal import Append
from mesh.journal.settling import purge_timers, settle
from mesh.journal.warm import WarmJournals
from mesh.task.state import TaskState
from mesh.telemetry import audit, traces
from steward.command_decisions import CarriedOut, ToAppend, Unknown, decide_command

log = structlog.get_logger("steward.control_loop")

AT_ONCE_MAX = 256
"""Commands in hand: they wait for the broker more than they work, and one that has to wait must not hold up others."""
FAR_SECONDS = 0.01
"""A read that takes longer than this comes from a distance at which an owner that streams is faster."""
BUSY_SECONDS = 0.2
"""Delay of a command whose task's owner would not let it in."""


class ControlLoop:
    """Everything between a stream of commands, CONTROL or TIMERS, and the journals, in one process."""

    def __init__(self, connection: Connection, settings: Settings, worker: str, stream: str = "CONTROL") -> None:
        self._connection = connection
        self._requests = connection.requests
        self._worker = worker
        self._deliveries_max = settings.max_deliver
        self._journals = WarmJournals(connection.requests)
        self._withdrawals = Withdrawals(connection.requests)
        self._accounts = Accounts(connection.requests)
        self.take(settings)
        self._consumption = Consumption.of_one(connection, settings, stream, "steward", self._handle, AT_ONCE_MAX)

    def take(self, settings: Settings) -> None:
        """Go by these settings from the next command on."""
        self._approvals = Approvals(settings.configuration, self._journals.state_of)

    async def run(self) -> None:
        """Carry out commands until cancelled; then let those in hand end, within `MESH_DRAIN_SECONDS`."""
        await self._consumption.run()

    async def _handle(self, delivery: Delivery) -> Answer:
        if delivery.subject.startswith(subjects.CRON_FIRED_PREFIX):
            return Ack()  # No command: a rule's schedule, which `Triggers` reads by a consumer of its own.
        answer = await self._handle_command(delivery)
        if delivery.stream == TIMERS.name and isinstance(answer, Ack | Term) and delivery.lease_held:
            # No work queue: what has fired would lie there for a month, and crowd out the timers beside it.
            await self._requests.delete_message(delivery.stream, delivery.sequence)
        return answer

    async def _handle_command(self, delivery: Delivery) -> Answer:
        try:
            command = decode_control(delivery.payload, delivery.subject)
        except TaskmeshError as error:
            return await self._leave_to_another(delivery, error)
        incoming = delivery.headers.get(headers.TRACEPARENT)
        with (
            structlog.contextvars.bound_contextvars(task=command.task, tenant=command.tenant),
            traces.span(_kind(command), incoming, SpanKind.CONSUMER, {"taskmesh.task": command.task}),
        ):
            try:
                return await self._carry_out(command, delivery)
            except InvalidPayload as error:
                return await self._leave_to_another(delivery, error)

    async def _clear(self, command: AnyCommand, state: TaskState, steps: tuple[str, ...]) -> None:
        """Take away what nobody waits for any more: timers, and the message of a task that ended in the backlog.

        Never fails. Whoever gets such a message all the same settles it: this keeps room, and a tenant's bound true.
        """
        if isinstance(command, ApprovalCommand | InputCommand):
            await purge_timers(self._requests, state, steps)
        queued = state.queued
        if queued is None or state.terminal is None or state.claims:
            return
        try:
            lane = subjects.LaneSubject(queued.pool, queued.priority, state.tenant)
            await self._withdrawals.withdraw(lane, state.task, queued.accepted_at)
        except TaskmeshError as error:
            log.info("backlog.not_withdrawn", error=str(error))

    async def _give_back(self, state: TaskState) -> None:
        """Give back what was set aside of its tenant's budget for a task that has ended, and never began."""
        queued = state.queued
        if queued is not None and queued.reserved is not None and not state.claims:
            await give_back(self._accounts, state.tenant, queued.reserved, queued.accepted_at)

    async def _leave_to_another(self, delivery: Delivery, error: TaskmeshError) -> Answer:
        return await giving_up.leave_to_another(self._requests, delivery, error, self._deliveries_max, self._worker)

    async def _carry_out(self, command: AnyCommand, delivery: Delivery) -> Answer:
        traceparent = traces.current_traceparent()
        make_way = partial(holds.ask, self._connection, command.tenant, command.task)
        if not isinstance(command, RoomCommand):  # It appends nothing.
            # Asked before it is read: what its owner has under way by then is read, and nothing comes after it.
            await make_way()
        asked_at = asyncio.get_running_loop().time()
        journal = await self._journals.open(command.tenant, command.task, traceparent)
        if asyncio.get_running_loop().time() - asked_at > FAR_SECONDS and journal.folded.ends_in_delta:
            # Its owner may have stored more while the hold was on its way. A read is a round trip, a conflict is two.
            await journal.catch_up()
        if isinstance(command, RoomCommand) and await journal.is_behind():
            # Nothing fences what it publishes: from a stale read it could follow that nothing is due.
            return NOT_VISIBLE_YET
        carried_out: list[str] = []

        async def next_of(state: TaskState) -> Append | CarriedOut | Unknown:
            refusal = await self._approvals.refusal(state, command)
            outcome = decide_command(state, command) if refusal is None else Unknown(refusal)
            if not isinstance(outcome, ToAppend):
                return outcome
            return Append(outcome.build, on_appended=partial(appended, outcome.what[0]))

        def appended(event_type: str) -> None:
            carried_out.append(event_type)
            # What ends a task is its one line, as where a worker ends it.
            said = log.info if event_type in TERMINAL_TYPES else log.debug
            said("command.carried_out", kind=_kind(command), appended=event_type, by=command.by)

        try:
            outcome = await journal.advance(next_of, lambda: delivery.lease_held, make_way)
        except JournalBusy as busy:
            log.warning("command.busy", kind=_kind(command), error=str(busy))
            return Nak(BUSY_SECONDS)
        match outcome:
            case CarriedOut():
                if outcome.late and not carried_out:
                    log.info("command.late", kind=_kind(command), by=command.by, status=journal.state.status)
                refusals = command.refusals if isinstance(command, RoomCommand) else 0
                await settle(
                    self._requests, journal.state, outcome.steps, traceparent, outcome.again, refusals=refusals
                )
                await self._clear(command, journal.state, outcome.steps)
                if not TERMINAL_TYPES.isdisjoint(carried_out):
                    await self._give_back(journal.state)
                return Ack()
            case Unknown() if await journal.is_behind():
                # Only the stream's leader knows that there is no such task or call (rule 11).
                return NOT_VISIBLE_YET
            case Unknown() if isinstance(command, CancelCommand) and command.by == BY_MESH:
                # A sub-task that has not begun finds by itself that its parent is over.
                return Ack()
            case Unknown(error):
                _tell_refusal(command, error)
                return await dead_letter_records.refuse(self._requests, delivery, error, self._worker)
            case event:
                raise TypeError(f"{type(event).__name__} is no outcome")


def _tell_refusal(command: AnyCommand, error: ErrorInfo) -> None:
    if error.code == FOUR_EYES:
        # It came past every ingress, or before that took over what the configuration says now.
        audit.tell(
            what=audit.what_of(command),
            task=command.task,
            tenant=command.tenant,
            by=command.by,
            source=audit.BROKER,
            result=error.code,
        )


def _kind(command: AnyCommand) -> str:
    return str(command.__struct_config__.tag)
