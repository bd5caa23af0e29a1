"""How the queues stand: what waits in lanes, for tools and for stewards, who has some, and how old the oldest is.

A consumer's leader counts: any other replica may be behind.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from contracts import subjects
from contracts.streams import (
    ADVISORIES,
    BACKLOG,
    CONTROL,
    DEAD_LETTERS,
    EVENTS,
    SIGNALS,
    TASKS,
    TIMERS,
    TOOLS,
    TURNS,
    lane_consumer,
    tool_consumer,
)
from mesh.admission.backlog import waiting_by_lane
from mesh.archive.writing import in_flight
from mesh.broker.consumer_lists import all_consumers
from mesh.broker.direct_get import read_next, subjects_of
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.telemetry import figures

_OF_STEWARDS = (CONTROL.name, TIMERS.name, SIGNALS.name, ADVISORIES.name, DEAD_LETTERS.name, EVENTS.name)
_TOOL = tool_consumer("x").removesuffix("x")


class Queue(NamedTuple):
    """A durable consumer. `waiting`: messages that nobody has had; `running`: delivered, and not done.

    What was never delivered lies behind `delivered`, a sequence, under `subject`.
    """

    stream: str
    name: str
    subject: str
    waiting: int
    running: int
    delivered: int
    paused: bool = False

    @property
    def lane(self) -> tuple[str, str, str] | None:
        """Stream, pool and priority of a lane; None of any other."""
        pool, _, priority = self.name.rpartition("-")
        is_lane = self.stream in (TASKS.name, BACKLOG.name, TURNS.name) and pool and priority in subjects.PRIORITIES
        return (self.stream, pool, priority) if is_lane else None

    @property
    def tool(self) -> tuple[str] | None:
        """The tool whose calls wait here; None of any other."""
        is_tool = self.stream == TOOLS.name and self.name.startswith(_TOOL)
        return (self.name.removeprefix(_TOOL),) if is_tool else None


async def tell(requests: Requests) -> None:
    """Tell how they stand. Raises `BrokerUnavailable`, `BrokerError`."""
    queues = [
        queue
        for stream in (TASKS.name, TURNS.name, TOOLS.name, *_OF_STEWARDS)
        for queue in await _queues(requests, stream)
    ]
    queues += await _without_consumer(requests, queues)
    queues += await _behind(requests)
    ages = await _oldest_ages(requests, [queue for queue in queues if queue.lane or queue.tool], now())
    lanes = {queue.lane: queue for queue in queues if queue.lane}
    tools = {queue.tool: queue for queue in queues if queue.tool}
    others = {(queue.stream, queue.name): queue for queue in queues if not (queue.lane or queue.tool)}
    figures.lane_depth.tell({key: queue.waiting for key, queue in lanes.items()})
    figures.lane_running.tell({key: queue.running for key, queue in lanes.items() if queue.stream != BACKLOG.name})
    figures.lane_oldest.tell({key: ages.get(queue, 0.0) for key, queue in lanes.items()})
    figures.tool_depth.tell({key: queue.waiting for key, queue in tools.items()})
    figures.tool_running.tell({key: queue.running for key, queue in tools.items()})
    figures.tool_oldest.tell({key: ages.get(queue, 0.0) for key, queue in tools.items()})
    figures.consumer_depth.tell({key: queue.waiting for key, queue in others.items()})
    figures.consumer_running.tell({key: queue.running for key, queue in others.items()})
    figures.timers_due.tell({(): sum(q.waiting + q.running for q in queues if q.stream == TIMERS.name)})
    figures.consumers_paused.tell(
        {
            (stream,): sum(queue.paused for queue in queues if queue.stream == stream)
            for stream in {queue.stream for queue in queues}
        }
    )


async def _queues(requests: Requests, stream: str) -> list[Queue]:
    return [
        _queue(stream, info)
        for info in await all_consumers(requests, stream)
        if info["config"].get("durable_name") or stream == TOOLS.name
    ]


def _queue(stream: str, info: dict[str, Any]) -> Queue:
    return Queue(
        stream,
        str(info["name"]),
        str(info["config"].get("filter_subject", "")),
        int(info["num_pending"]),
        int(info["num_ack_pending"]),
        int(info["delivered"]["stream_seq"]),
        bool(info.get("paused")),
    )


async def _without_consumer(requests: Requests, queues: list[Queue]) -> list[Queue]:
    """Tools of which something waits, and whose consumer is gone, or was never there."""
    pulled = {queue.subject for queue in queues}
    counts = await subjects_of(requests, TOOLS.name, "tools.*")
    return [
        Queue(TOOLS.name, _TOOL + subject.removeprefix("tools."), subject, count, 0, 0)
        for subject, count in counts.items()
        if subject not in pulled
    ]


async def _behind(requests: Requests) -> list[Queue]:
    """The lanes of BACKLOG, which has no consumer: those of TASKS, so that one where nothing waits tells 0."""
    lanes = dict.fromkeys((consumer["name"] for consumer in await all_consumers(requests, TASKS.name)), 0)
    for lane, count in (await waiting_by_lane(requests)).items():
        name = lane_consumer(TASKS.name, lane.pool, lane.priority)
        lanes[name] = lanes.get(name, 0) + count
    return [
        Queue(BACKLOG.name, name, f"backlog.{'.'.join(name.rpartition('-')[::2])}.*", count, 0, 0)
        for name, count in lanes.items()
    ]


async def _oldest_ages(requests: Requests, queues: list[Queue], at: datetime) -> dict[Queue, float]:
    """How old the first message is that nobody has had, in seconds, where one waits."""
    ages: dict[Queue, float] = {}

    async def look(queue: Queue) -> None:
        first = await read_next(requests, queue.stream, queue.subject, queue.delivered)
        if first is not None:
            ages[queue] = max(0.0, (at - first.stored_at).total_seconds())

    await in_flight([queue for queue in queues if queue.waiting], look)
    return ages
