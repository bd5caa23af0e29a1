"""What a task waits for: what its journal says, and what the ingress knows of queues, workers and models."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import msgspec

from contracts import subjects
from contracts.errors import TaskmeshError
from contracts.identifiers import turn_of
from contracts.records.status import Pause, QueueState, TaskRecord, Waiting
from contracts.streams import TASKS, TOOLS, TURNS, lane_consumer, tool_consumer
from ingress.budgets import Budgets
from ingress.lane_statistics import Lanes
from ingress.pool_availability import Providers
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.fleet.eta import begun, without_eta
from mesh.fleet.findings import Fleet
from mesh.fleet.places import ahead_of, before_of_tenant
from mesh.fleet.queues import Queue
from mesh.task.state import TaskState
from mesh.task.waiting import clock, waiting_of

PauseOf = Callable[[str, str, str | None], Pause | None]

PLACES_AT_ONCE_MAX: Final = 8
"""Places in queues that are looked up at the same time: who asks beyond that is told without one."""


class Waits:
    """Says of tasks what they wait for."""

    def __init__(
        self, requests: Requests, lanes: Lanes, providers: Providers, budgets: Budgets, pause_of: PauseOf
    ) -> None:
        """`pause_of`: what people have paused that keeps a turn of a pool, priority and tenant from being begun."""
        self._requests = requests
        self._pause_of = pause_of
        self._lanes = lanes
        self._fleet = lanes.fleet
        self._providers = providers
        self._budgets = budgets
        self._looking = 0

    async def told(self, record: TaskRecord, state: TaskState) -> TaskRecord:
        """A task's record with what it waits for, what is paused, if it is that, and its place while it is queued."""
        waiting = await self.of(state)
        if waiting is None:
            return record
        paused = self._pause_for(waiting, state) if waiting.on == "pause" else None
        place = self.place_of(state, waiting) if record.status == "queued" else None
        return msgspec.structs.replace(record, waiting=waiting, queue=place, pause=paused)

    def _pause_for(self, waiting: Waiting, state: TaskState) -> Pause | None:
        if waiting.tool is not None:
            return None  # A call is no turn.
        name, priority = _queue_of(waiting, state)
        return self._pause_of(name, priority, state.tenant)

    async def of(self, state: TaskState) -> Waiting | None:
        """What a task waits for; None if it has ended. Costs two requests for one that waits in a queue."""
        waiting = waiting_of(state)
        if waiting is None:
            return None
        fleet = self._fleet.fleet
        if waiting.on == "retry":
            waiting = _after_its_time(waiting, fleet)
        if waiting.on == "provider" or (waiting.on == "retry" and waiting.until is None and waiting.tool is None):
            paused = self._pause_for(waiting, state)
            if paused is not None:
                return _paused(waiting, paused)
            down = self._providers.down(state.pool)
            return waiting if down is None else _instead(waiting, "provider", f"and {down}.")
        if waiting.on == "step":
            return waiting if fleet is None else _with_worker(waiting, state, fleet)
        if waiting.on in ("worker", "runner"):
            return await self._in_queue(waiting, state, fleet)
        return waiting

    def place(self, pool: str, priority: str, before: float | None = None, *, tenant: str | None = None) -> QueueState:
        """Where a task that comes now stands, or one before which so many others stand. Costs no request."""
        state = self.held_up(pool, priority, tenant, self._lanes.queue(pool, priority, before, tenant=tenant))
        if tenant is not None and state.eta_seconds is not None and self._budgets.known_blocked(tenant) is not None:
            return without_eta(state, "paused")
        return state

    def held_up(self, pool: str, priority: str, tenant: str | None, state: QueueState) -> QueueState:
        """A place, as it is while people have paused what a task of this tenant needs, or no provider is called."""
        if state.basis in ("no-worker", "paused"):
            return state
        if self._pause_of(pool, priority, tenant) is not None:
            return without_eta(state, "paused")
        return state if self._providers.down(pool) is None else without_eta(state, "no-provider")

    def is_paused(self, pool: str, priority: str, tenant: str | None) -> bool:
        """Whether people have paused what a task of this tenant needs, or of any tenant."""
        return self._pause_of(pool, priority, tenant) is not None

    def place_of(self, state: TaskState, waiting: Waiting) -> QueueState:
        """Where a task stands that has not begun, and waits for this."""
        _, priority = _queue_of(waiting, state)
        if waiting.on in ("worker", "no-worker", "pause", "provider"):
            place = self._lanes.queue(state.pool, priority, waiting.ahead, tenant=state.tenant)
            place = self.held_up(state.pool, priority, state.tenant, place)
            if waiting.on == "pause" and place.eta_seconds is not None:
                place = without_eta(place, "paused")  # By its tenant's budget.
            return place if waiting.ahead is not None else msgspec.structs.replace(place, position=None)
        # Somebody has it already, or a timer brings it.
        return begun(self._lanes.depth(state.pool, priority))

    async def _in_queue(self, waiting: Waiting, state: TaskState, fleet: Fleet | None) -> Waiting:
        name, priority = _queue_of(waiting, state)
        queue = fleet.queue(name, priority) if fleet is not None else None
        label = (queue or Queue(name, priority)).label
        ahead = await self._ahead(waiting, state)
        waiting = msgspec.structs.replace(waiting, ahead=ahead)
        paused = self._pause_for(waiting, state)
        if paused is not None:
            return _paused(waiting, paused)
        if queue is not None and queue.paused_seconds:
            until = now() + timedelta(seconds=queue.paused_seconds)
            return _instead(waiting, "pause", f"and {label} is paused until {clock(until)}.", until=until)
        if fleet is not None and not fleet.serves(queue or Queue(name, priority)):
            who = f"worker of pool {name}" if priority else f"runner of {name}"
            return _instead(waiting, "no-worker" if priority else "no-runner", f"and no {who} answers.")
        blocked = await self._budgets.blocked(state.tenant) if priority else None
        if blocked is not None:
            used_up = f"and its tenant's budget of {blocked.limit.told()} is used up until {clock(blocked.until)}."
            return _instead(waiting, "pause", used_up, until=blocked.until)
        down = self._providers.down(state.pool) if priority else None
        if down is not None:
            return _instead(waiting, "provider", f"and no provider of pool {name} is called at present: {down}.")
        if ahead is None:
            return waiting
        before = f"{ahead:,} message{'' if ahead == 1 else 's'}"
        return msgspec.structs.replace(
            waiting, detail=f"{waiting.detail.removesuffix('.')}, with {before} before it in {label}."
        )

    async def _ahead(self, waiting: Waiting, state: TaskState) -> int | None:
        if self._looking >= PLACES_AT_ONCE_MAX:
            return None
        self._looking += 1
        try:
            stream, consumer, subject_filter = _place_of(waiting, state)
            stored_at = waiting.until or waiting.since
            ahead = await ahead_of(self._requests, stream, consumer, subject_filter, state.task, stored_at)
            if ahead is not None or stream != TASKS.name:
                return ahead
            return await self._ahead_in_backlog(state, _queue_of(waiting, state)[1], stored_at)
        except TaskmeshError:
            return None  # It waits all the same.
        finally:
            self._looking -= 1

    async def _ahead_in_backlog(self, state: TaskState, priority: str, stored_at: datetime) -> int | None:
        """About how many go before a task that waits for its tenant's turn."""
        subject = subjects.backlog(state.pool, priority, state.tenant)
        own = await before_of_tenant(self._requests, subject, state.task, stored_at)
        if own is None:
            return None
        before = self._lanes.before_in_backlog(state.pool, priority, state.tenant, own)
        return None if before is None else int(before)


def _queue_of(waiting: Waiting, state: TaskState) -> tuple[str, str]:
    """The lane, or the tool, whose queue a step waits in."""
    priority = state.queued.priority if state.queued is not None else "normal"
    return (waiting.tool, "") if waiting.tool is not None else (state.pool, priority)


def _place_of(waiting: Waiting, state: TaskState) -> tuple[str, str, str]:
    """Stream, consumer and filter of that queue."""
    name, priority = _queue_of(waiting, state)
    if waiting.tool is not None:
        return TOOLS.name, tool_consumer(name), subjects.tools(name)
    stream = TASKS if waiting.step is None or turn_of(waiting.step) == 1 else TURNS
    return stream.name, lane_consumer(stream.name, name, priority), f"{stream.name.lower()}.{name}.{priority}.*"


def _after_its_time(waiting: Waiting, fleet: Fleet | None) -> Waiting:
    """A try whose time has come waits in its queue, if there is a steward that brings it there."""
    if waiting.until is None or waiting.until > now():
        return waiting
    if fleet is not None and not fleet.has("steward"):
        return _instead(waiting, "retry", "and no steward answers that would bring it.")
    return _instead(waiting, "worker" if waiting.tool is None else "runner", "and waits in its queue.")


def _with_worker(waiting: Waiting, state: TaskState, fleet: Fleet) -> Waiting:
    """A step that is carried out, unless by somebody who does not answer."""
    member = next((each for each in fleet.members if each.worker == waiting.worker), None)
    if member is None or member.answers:
        return waiting
    queue = Queue(*_queue_of(waiting, state))
    if fleet.serves(queue):
        return _instead(waiting, "step", "who does not answer: another takes it over once its lease has ended.")
    on = "no-worker" if queue.is_lane else "no-runner"
    return _instead(waiting, on, f"who does not answer, and nobody else does who serves {queue.label}.")


def paused_text(pause: Pause) -> str:
    """What is paused, since and until when, and why, in a few words for people."""
    until = f" until {clock(pause.until)}" if pause.until is not None else ""
    why = f" ({pause.reason.rstrip('.')})" if pause.reason is not None else ""
    name = pause.name.replace(".", ", ") if pause.kind == "lane" else pause.name
    return f"{pause.kind} {name} is paused since {clock(pause.since)}{until}{why}"


def _paused(waiting: Waiting, pause: Pause) -> Waiting:
    return _instead(waiting, "pause", f"and {paused_text(pause)}.", until=pause.until)


def _instead(waiting: Waiting, on: str, more: str, **fields: object) -> Waiting:
    return msgspec.structs.replace(waiting, on=on, detail=f"{waiting.detail.removesuffix('.')}, {more}", **fields)
