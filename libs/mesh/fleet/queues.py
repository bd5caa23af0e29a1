"""The queues of work: how much waits in each lane and for each tool, whether it is paused, and which lanes are full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from contracts import subjects
from contracts.codec import decode
from contracts.errors import InvalidName, InvalidPayload
from contracts.records.backlog import BacklogRecord
from contracts.streams import BACKLOG, LANES_BUCKET, TASKS, TOOLS, TURNS
from mesh.broker import key_value
from mesh.broker.consumer_lists import all_consumers
from mesh.broker.direct_get import subjects_of
from mesh.broker.levels import stream_info
from mesh.broker.requests import Requests

SUBJECTS_MAX: Final = 1_000
"""Lanes of tenants that are looked at one by one: of more, the server would count for too long."""
_NANOSECONDS: Final = 1e9


class Queue(NamedTuple):
    """A lane of a pool, or a tool's queue (`priority` is then empty).

    `waiting`: messages that nobody has; `running`: delivered, and not done. `paused_seconds`: how much longer it gives
    nothing to anybody; 0 if it is not paused. `pulls`: requests that wait there for a message, of whoever.
    `has_consumer`: whether anybody could pull.
    """

    name: str
    priority: str
    waiting: int = 0
    running: int = 0
    paused_seconds: float = 0.0
    pulls: int = 0
    has_consumer: bool = True

    @property
    def is_lane(self) -> bool:
        """Whether it is a lane of a pool."""
        return bool(self.priority)

    @property
    def label(self) -> str:
        """Its name, for people."""
        return f"lane {self.name}, {self.priority}" if self.is_lane else f"tool {self.name}"


class FullLane(NamedTuple):
    """Why BACKLOG, behind TASKS, takes no more: from one tenant in one lane (`label`), or from anybody."""

    label: str
    messages: int
    messages_max: int


class Queues(NamedTuple):
    """All queues, and what is full."""

    queues: list[Queue]
    full: list[FullLane]


async def read_queues(requests: Requests) -> Queues:
    """How the queues stand, by their consumers and streams. Raises `BrokerUnavailable`, `BrokerError`."""
    found: dict[tuple[str, str], Queue] = {}
    for stream in (TASKS, TURNS, TOOLS):
        for info in await all_consumers(requests, stream.name):
            key = _place(str(info.get("config", {}).get("filter_subject", "")))
            if key is not None:
                found[key] = _and(found.get(key), key, info)
    accepted = await stream_info(requests, TASKS.name)
    counts = await _few_subjects(requests, TASKS.name, accepted)
    waiting = await stream_info(requests, BACKLOG.name)
    behind = await _few_subjects(requests, BACKLOG.name, waiting)
    behind_lanes = _by_place(behind) if behind else await _told(requests, waiting)
    # What TASKS has no room for goes by BACKLOG, so that a lane is full once that is.
    full = _full(BACKLOG.name, waiting, behind)
    for key, messages in behind_lanes.items():
        one = found.get(key) or Queue(*key, has_consumer=False)
        found[key] = one._replace(waiting=one.waiting + messages)
    # What has no consumer shows in its stream alone.
    stored = [*counts.items(), *(await subjects_of(requests, TOOLS.name, "tools.*")).items()]
    for subject, messages in stored:
        key = _place(subject)
        if key is not None and (key not in found or not found[key].has_consumer):
            before = found[key].waiting if key in found else 0
            found[key] = Queue(*key, waiting=before + messages, has_consumer=False)
    return Queues(sorted(found.values()), full)


async def _few_subjects(requests: Requests, stream: str, info: dict[str, Any] | None) -> dict[str, int]:
    if info is None or int(info["state"].get("num_subjects", 0)) > SUBJECTS_MAX:
        return {}
    return await subjects_of(requests, stream, ">")


async def _told(requests: Requests, info: dict[str, Any] | None) -> Counter[tuple[str, str]]:
    """What waits in BACKLOG by lane, as the stewards have told lately."""
    told: Counter[tuple[str, str]] = Counter()
    if info is not None and int(info["state"]["messages"]):
        entry = await key_value.get(requests, LANES_BUCKET.name, subjects.BACKLOG_KEY)
        if entry is not None and entry.value:
            with suppress(InvalidPayload):  # Another version's.
                for lane in decode(entry.value, BacklogRecord).lanes:
                    told[lane.pool, lane.priority] = lane.waiting
    return told


def _by_place(counts: Mapping[str, int]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for subject, messages in counts.items():
        key = _place(subject)
        if key is not None:
            found[key] += messages
    return found


def _place(subject: str) -> tuple[str, str] | None:
    """The lane or tool of a subject, or of a consumer's filter; None if it is of neither."""
    first, _, rest = subject.partition(".")
    names = rest.split(".")
    try:
        if first in ("tasks", "turns", "backlog") and len(names) == 3:  # noqa: PLR2004 - pool, priority, tenant
            return subjects.check_pool(names[0]), subjects.check_priority(names[1])
        if first == "tools" and len(names) == 1:
            return subjects.check_tool(names[0]), ""
    except InvalidName:
        pass
    return None


def _and(before: Queue | None, key: tuple[str, str], info: dict[str, Any]) -> Queue:
    """A queue with one more consumer: a lane has one on TASKS, and one on TURNS."""
    one = before or Queue(*key)
    paused_seconds = float(info.get("pause_remaining") or 0) / _NANOSECONDS if info.get("paused") else 0.0
    return one._replace(
        waiting=one.waiting + int(info.get("num_pending", 0)),
        running=one.running + int(info.get("num_ack_pending", 0)),
        paused_seconds=max(one.paused_seconds, paused_seconds),
        pulls=one.pulls + int(info.get("num_waiting", 0)),
    )


def _full(stream: str, info: dict[str, Any] | None, counts: dict[str, int]) -> list[FullLane]:
    if info is None:
        return []
    lane_max, all_max = int(info["config"].get("max_msgs_per_subject", -1)), int(info["config"].get("max_msgs", -1))
    messages = int(info["state"].get("messages", 0))
    full = [FullLane(stream, messages, all_max)] if 0 < all_max <= messages else []
    return full + [
        FullLane(_lane_of(subject), count, lane_max) for subject, count in counts.items() if 0 < lane_max <= count
    ]


def _lane_of(subject: str) -> str:
    _, pool, priority, tenant = (subject.split(".") + [""] * 3)[:4]
    return f"lane {pool}, {priority} of tenant {tenant}"


def pools_with_work(queues: Iterable[Queue]) -> set[str]:
    """Pools in whose lanes something waits or runs."""
    return {queue.name for queue in queues if queue.is_lane and queue.waiting + queue.running}
