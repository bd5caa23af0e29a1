"""Refusals that say what stands in the way, and when it is worth while to come again.

Who is refused gets a time of its own: of those who come at once each is told a later one, as far apart as room comes
free. So they do not come back together, and find what they were promised, unless others have come meanwhile. Each
ingress knows its own alone, and takes the others to refuse as many.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from contracts.tasks import TaskRequest
from ingress.lane_statistics import Lanes
from ingress.pool_availability import Refusal
from mesh.clock import lease_clock
from mesh.errors import QueueFull
from mesh.serving.http import RequestRefused

UNKNOWN_SECONDS: Final = 5.0
"""When to come again while nothing was measured, and up to as long again."""
STORAGE_SECONDS: Final = 30.0
"""Room comes from retention, and from people: not at once."""
SECONDS_MAX: Final = 600.0
"""Nobody is sent away for longer: what is measured now says little of then. They come back spread over the second half
of that."""
HEADROOM: Final = 0.9
"""The part of what comes free that is promised: some comes later than it was thought to."""
LINES_MAX: Final = 10_000
"""So many lines of those who were refused are kept. The one that was added to longest ago goes."""
FULL_SECONDS_MAX: Final = 0.1
"""So long a lane that was full is taken to be so, without asking the broker."""


class Told(NamedTuple):
    """When to come again, and how many were told to come before."""

    seconds: float
    before: int


class ComeBack:
    """When each of those who are refused may come again. Times are seconds on any clock that only goes forward."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._last: OrderedDict[str, float] = OrderedDict()
        """When the last of a line was told to come."""

    def take(self, line: str, at: float, per_second: float | None, *, after_seconds: float = 0.0) -> Told:
        """A time for one more of a line that goes so fast, `after_seconds` from now at the soonest."""
        if not per_second:
            return Told((after_seconds or UNKNOWN_SECONDS) * (1 + self._chance()), 0)
        apart = 1 / (per_second * HEADROOM)
        soonest = at + after_seconds
        last = max(self._last.get(line, 0.0), soonest)
        due = last + apart
        if due - at > SECONDS_MAX:
            return Told(SECONDS_MAX * (1 + self._chance()) / 2, round((last - soonest) / apart))
        self._last[line] = due
        self._last.move_to_end(line)
        if len(self._last) > LINES_MAX:
            self._last.popitem(last=False)
        return Told(due - at, round((last - soonest) / apart))


class Refusals:
    """Says no for the ingress: with a cause, a depth and a time."""

    def __init__(self, lanes: Lanes, clock: Callable[[], float] = lease_clock) -> None:
        self._lanes = lanes
        self._clock = clock
        self._come_back = ComeBack()
        self._full_until: OrderedDict[str, float] = OrderedDict()

    def known_full(self, request: TaskRequest, tenant: str) -> RequestRefused | None:
        """A refusal for a lane that was full a moment ago: the broker need not say so to each of many."""
        until = self._full_until.get(_lane_of(request, tenant))
        if until is None or self._clock() >= until:
            return None
        return self._full(request, tenant)

    def queue_full(self, error: QueueFull, request: TaskRequest, tenant: str) -> RequestRefused:
        """For a task that there is no room for."""
        if error.cause != "lane":
            return self._no_room(error, request)
        lane, per_second = _lane_of(request, tenant), self._per_second(request, tenant)
        seconds = min(FULL_SECONDS_MAX, 0.5 / per_second) if per_second else FULL_SECONDS_MAX
        self._full_until[lane] = self._clock() + seconds
        self._full_until.move_to_end(lane)
        if len(self._full_until) > LINES_MAX:
            self._full_until.popitem(last=False)
        return self._full(request, tenant)

    def storage(self, detail: str, request: TaskRequest) -> RequestRefused:
        """While a stream, or the disk, is nearly full."""
        told = self._come_back.take("storage", self._clock(), None, after_seconds=STORAGE_SECONDS)
        return RequestRefused(
            "queue-full",
            detail,
            retry_after_seconds=told.seconds,
            cause="storage",
            depth=self._lanes.depth(request.pool, request.priority),
        )

    def pool_unavailable(self, refusal: Refusal, request: TaskRequest) -> RequestRefused:
        """While no provider of a pool can be called."""
        told = self._come_back.take(
            f"{request.pool}.{request.priority}",
            self._clock(),
            self._per_second(request),
            after_seconds=refusal.retry_after_seconds,
        )
        return RequestRefused(
            "pool-unavailable",
            refusal.reason,
            retry_after_seconds=told.seconds,
            cause="no-provider",
            depth=self._lanes.depth(request.pool, request.priority),
        )

    def _full(self, request: TaskRequest, tenant: str) -> RequestRefused:
        line = _lane_of(request, tenant)
        told = self._come_back.take(line, self._clock(), self._per_second(request, tenant))
        return RequestRefused(
            "queue-full",
            f"lane {request.pool}.{request.priority} takes no more of tenant {tenant}",
            retry_after_seconds=told.seconds,
            cause="lane",
            depth=self._lanes.depth(request.pool, request.priority),
        )

    def _no_room(self, error: QueueFull, request: TaskRequest) -> RequestRefused:
        is_queue = error.cause == "tasks"
        told = self._come_back.take(
            error.cause,
            self._clock(),
            self._per_second(request) if is_queue else None,
            after_seconds=0.0 if is_queue else STORAGE_SECONDS,
        )
        return RequestRefused(
            "queue-full",
            str(error),
            retry_after_seconds=told.seconds,
            cause=error.cause,
            depth=self._lanes.depth(request.pool, request.priority),
        )

    def _per_second(self, request: TaskRequest, tenant: str | None = None) -> float | None:
        """How fast room comes free, of which each ingress promises its part."""
        speed = self._lanes.tasks_per_second(request.pool, request.priority, tenant)
        return speed / self._lanes.fleet.ingresses if speed is not None else None


def _lane_of(request: TaskRequest, tenant: str) -> str:
    return f"{request.pool}.{request.priority}.{tenant}"
