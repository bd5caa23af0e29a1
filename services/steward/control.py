"""Carries out commands to tasks: pulls CONTROL, and timers that have fired, and appends what each command comes to.

The order is a worker's: append → project → publish what is due → ack. A steward may die between any two of these,
and any number of stewards may run: the fence of the append sees to it that a task ends once.
"""

from __future__ import annotations

import structlog
from opentelemetry.trace import SpanKind

from contracts import headers, subjects
from contracts.errors import ErrorInfo, TaskmeshError
from contracts.journal.events import JournalEvent, Stamp
from contracts.messages.control import AnyCommand, CancelCommand, decode_control
from mesh.broker.connection import Connection
from mesh.broker.consumption import Consumption
from mesh.broker.deliveries import Delivery
from mesh.configuration.settings import Settings
from mesh.errors import StepLost
from mesh.journal import dead_letter_records
from mesh.journal.journal import Journal
from mesh.journal.settling import settle
from mesh.task.outbox import BY_MESH
from mesh.task.state import TaskState
from mesh.telemetry import traces
from steward.command_decisions import Append, Settle, Unknown, decide_command

log = structlog.get_logger("steward.control")

LATER_SECONDS = 0.2
"""Delay of a command whose task can't be seen yet."""


class ControlLoop:
    """Everything between a stream of commands, CONTROL or TIMERS, and the journals, in one process."""

    def __init__(self, connection: Connection, settings: Settings, worker: str, stream: str = "CONTROL") -> None:
        self._requests = connection.requests
        self._worker = worker
        self._consumption = Consumption(connection, settings, stream, "steward", self._handle)

    async def run(self) -> None:
        """Carry out commands until cancelled; then let those in hand end, within `MESH_DRAIN_SECONDS`."""
        await self._consumption.run()

    async def _handle(self, delivery: Delivery) -> None:
        if delivery.subject.startswith(subjects.CRON_FIRED_PREFIX):
            await delivery.ack()  # No command: a rule's schedule, which `Triggers` reads by a consumer of its own.
            return
        try:
            command = decode_control(delivery.payload, delivery.subject)
        except TaskmeshError as error:
            malformed = ErrorInfo("malformed-message", str(error))
            await dead_letter_records.refuse(self._requests, delivery, malformed, self._worker)
            return
        incoming = delivery.headers.get(headers.TRACEPARENT)
        with (
            structlog.contextvars.bound_contextvars(task=command.task, tenant=command.tenant),
            traces.span(_kind(command), incoming, SpanKind.CONSUMER, {"taskmesh.task": command.task}),
        ):
            await self._carry_out(command, delivery)

    async def _carry_out(self, command: AnyCommand, delivery: Delivery) -> None:
        traceparent = traces.current_traceparent()
        journal = await Journal.load(self._requests, command.tenant, command.task, traceparent=traceparent)
        appended = False
        while True:
            match decide_command(journal.state, command):
                case Append() as append:
                    appended |= await self._append(journal, command, append, delivery)
                case Settle() as outcome:
                    if outcome.late and not appended:
                        log.info("command.late", kind=_kind(command), by=command.by, status=journal.state.status)
                    await settle(
                        self._requests, journal.state, outcome.steps, traces.current_traceparent(), outcome.again
                    )
                    await delivery.ack()
                    return
                case Unknown() if isinstance(command, CancelCommand) and command.by == BY_MESH:
                    # A sub-task that has not begun finds by itself that its parent is over.
                    await delivery.ack()
                    return
                case Unknown() as unknown:
                    # Only the stream's leader knows that there is no such task or call (rule 11).
                    if await journal.is_behind():
                        await delivery.nak(LATER_SECONDS)
                    else:
                        await dead_letter_records.refuse(self._requests, delivery, unknown.error, self._worker)
                    return

    async def _append(self, journal: Journal, command: AnyCommand, append: Append, delivery: Delivery) -> bool:
        """Append what the command comes to. False if the journal has moved on so that it comes to something else."""

        def may_append(state: TaskState) -> bool:
            return delivery.lease_held and decide_command(state, command) == append

        def build(stamp: Stamp) -> JournalEvent:
            now_so = decide_command(journal.state, command)
            return (now_so if isinstance(now_so, Append) else append).build(stamp)

        try:
            await journal.append(build, may_append)
            log.info("command.carried_out", kind=_kind(command), appended=append.what[0], by=command.by)
            return True
        except StepLost:
            if not delivery.lease_held:
                raise
            return False


def _kind(command: AnyCommand) -> str:
    return str(command.__struct_config__.tag)
