"""Carries out commands to tasks: pulls CONTROL, and appends what each command comes to.

The order is a worker's: append → project → ack. A steward may die between any two of these, and any number
of stewards may run: the fence of the append sees to it that a task ends once.
"""

from __future__ import annotations

import asyncio

import structlog

from contracts import events
from contracts.control import CancelCommand, decode_control
from contracts.errors import ErrorInfo, TaskmeshError
from contracts.events import JournalEvent, Stamp
from mesh import dead_letters
from mesh.background import background
from mesh.connection import Connection
from mesh.decisions import Cancel, Settle, Unknown, decide_cancel
from mesh.deliveries import Delivery, Leases
from mesh.errors import BrokerUnavailable, StepLost
from mesh.fold import TaskState, record
from mesh.journal import Journal
from mesh.lanes import Lane, LaneUnavailable
from mesh.projection import project
from mesh.settings import Settings

log = structlog.get_logger("steward.control")

COMMANDS_AT_ONCE_MAX = 32
LATER_SECONDS = 0.2
"""Delay of a command whose task can't be seen yet."""
LANE_RETRY_SECONDS = 0.5


class ControlLoop:
    """Everything between CONTROL and the journals, in one process."""

    def __init__(self, connection: Connection, settings: Settings, worker: str) -> None:
        self._requests = connection.requests
        self._settings = settings
        self._worker = worker
        self._leases = Leases(settings.ack_wait_seconds)
        self._running: set[asyncio.Task[None]] = set()
        self._lane = Lane(
            connection, "CONTROL", "steward", COMMANDS_AT_ONCE_MAX, settings.ack_wait_seconds, self._start
        )

    async def run(self) -> None:
        """Carry out commands until cancelled; then let those in hand end, within `MESH_DRAIN_SECONDS`."""
        try:
            async with background(self._leases.run()):
                await self._pull()
        finally:
            await self._lane.close()
            if self._running:
                # What does not end in time comes back after its lease, to any steward.
                _, late = await asyncio.wait(self._running, timeout=self._settings.drain_seconds)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)

    async def _pull(self) -> None:
        await self._lane.open()
        complained = False
        while True:
            room = COMMANDS_AT_ONCE_MAX - len(self._running)
            if room <= 0:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                await self._lane.pull(room, wait=True)
                complained = False
            except LaneUnavailable as error:
                if not complained:
                    log.warning("lane.unavailable", stream="CONTROL", consumer="steward", error=str(error))
                complained = True
                await asyncio.sleep(LANE_RETRY_SECONDS)

    def _start(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._run(delivery))
        self._running.add(task)
        self._leases.add(delivery, task)
        task.add_done_callback(self._running.discard)

    async def _run(self, delivery: Delivery) -> None:
        """Handle a delivery, whatever happens. What is not answered here comes back after ack_wait."""
        try:
            await self._handle(delivery)
        except (BrokerUnavailable, StepLost) as error:
            log.warning("command.abandoned", message=delivery.sequence, error=str(error))
        except Exception:
            log.exception("command.crashed", message=delivery.sequence)
        finally:
            delivery.give_up()
            self._leases.remove(delivery)

    async def _handle(self, delivery: Delivery) -> None:
        try:
            command = decode_control(delivery.payload, delivery.subject)
        except TaskmeshError as error:
            await self._refuse(delivery, ErrorInfo("malformed-message", str(error)))
            return
        with structlog.contextvars.bound_contextvars(task=command.task, tenant=command.tenant):
            await self._cancel(command, delivery)

    async def _cancel(self, command: CancelCommand, delivery: Delivery) -> None:
        journal = await Journal.load(self._requests, command.tenant, command.task)
        while True:
            match decide_cancel(journal.state):
                case Cancel():
                    await self._append_end(journal, command, delivery)
                case Settle():
                    await project(self._requests, record(journal.state))
                    await delivery.ack()
                    return
                case Unknown():
                    # Only the stream's leader knows that there is no such task (rule 11).
                    if await journal.is_behind():
                        await delivery.nak(LATER_SECONDS)
                    else:
                        await self._refuse(delivery, ErrorInfo("task-unknown", f"there is no task {command.task}"))
                    return

    async def _append_end(self, journal: Journal, command: CancelCommand, delivery: Delivery) -> None:
        """End the task, unless it has ended meanwhile."""

        def may_append(state: TaskState) -> bool:
            return delivery.lease_held and decide_cancel(state) == Cancel()

        def build(stamp: Stamp) -> JournalEvent:
            # Built anew for each try, so that it holds every token that lies before it.
            return events.TaskCancelled(
                *stamp, output=journal.state.output_so_far, by=command.by, reason=command.reason
            )

        try:
            await journal.append(build, may_append)
            log.info("task.cancelled", by=command.by)
        except StepLost:
            if not delivery.lease_held:
                raise

    async def _refuse(self, delivery: Delivery, error: ErrorInfo) -> None:
        await dead_letters.refuse(self._requests, delivery, error, self._worker)
