"""Refusals that say what stands in the way, and when it is worth while to come again.

Who is refused gets a time of its own: of those who come at once each is told a later one, as far apart as room comes
free. So they do not come back together. For a moment after the broker has refused, only as many are let through as were
told to be there by now: what comes free is theirs, and no newcomer's. Each ingress knows its own alone, and takes the
others to refuse as many.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from contracts.tasks import TaskRequest
from ingress.lane_statistics import Lanes
from ingress.pool_availability import Refusal
from ingress.waiting import PauseOf, paused_text
from mesh.clock import lease_clock, now
from mesh.errors import QueueFull
from mesh.serving.http import RequestRefused

UNKNOWN_SECONDS: Final = 5.0
"""When to come again while nothing was measured, and up to as long again."""
PAUSED_SECONDS: Final = 60.0
"""The same while people have paused what is full, and nobody knows for how long."""
STORAGE_SECONDS: Final = 30.0
"""Room comes from retention, and from people: not at once."""
SECONDS_MAX: Final = 600.0
"""Nobody is sent away for longer: what is measured now says little of then. They come back spread over the second half
of that."""
HEADROOM: Final = 0.8
"""The part of what comes free that is promised: some comes later than it was thought to."""
STEP_SECONDS: Final = 1.0
"""Room comes free in steps of about so long, where stewards bring on what waits: nobody is promised what comes between
two of them."""
LINES_MAX: Final = 10_000
"""So many lines of those who were refused are kept. The one that was added to longest ago goes."""
FULL_SECONDS: Final = 2.0
"""So long a lane that was full is taken to be so, but for those who were told to come by now. If there is room after
all, these are not refused, and it ends."""
FULL_SECONDS_UNKNOWN: Final = 0.1
"""The same of a lane whose speed is not known: nobody was told a time."""
TOLD_MAX: Final = 10_000
"""So many times of one line are kept."""


class Told(NamedTuple):
    """When to come again, and how many were told to come before."""

    seconds: float
    before: int


class _Line:
    """Those who were refused for one reason: what comes free until `last` is promised, and `expected` is when they come
    to get it, the next first."""

    __slots__ = ("expected", "last")

    def __init__(self) -> None:
        self.last = 0.0
        self.expected: list[float] = []


class ComeBack:
    """When each of those who are refused may come again. Times are seconds on any clock that only goes forward."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._lines: OrderedDict[str, _Line] = OrderedDict()

    def take(self, line: str, at: float, per_second: float | None, *, after_seconds: float = 0.0) -> Told:
        """A time for one more of a line that goes so fast, `after_seconds` from now at the soonest."""
        if not per_second:
            return Told((after_seconds or UNKNOWN_SECONDS) * (1 + self._chance()), 0)
        known = self._lines.setdefault(line, _Line())
        self._lines.move_to_end(line)
        if len(self._lines) > LINES_MAX:
            self._lines.popitem(last=False)
        before = len(known.expected)
        due = max(known.last, at + after_seconds + STEP_SECONDS) + 1 / (per_second * HEADROOM)
        if due - at > SECONDS_MAX or before >= TOLD_MAX:
            return Told(min(due - at, SECONDS_MAX) * (1 + self._chance()) / 2, before)
        known.last = due
        # The header has whole seconds, rounded up.
        seconds = float(math.ceil(due - at))
        heapq.heappush(known.expected, at + seconds)
        return Told(seconds, before)

    def came(self, line: str, at: float) -> bool:
        """Somebody comes: whether one was told to be there by now, who then has come."""
        known = self._lines.get(line)
        if known is None or not known.expected or known.expected[0] > at:
            return False
        heapq.heappop(known.expected)
        if not known.expected:
            del self._lines[line]
        return True


class Refusals:
    """Says no for the ingress: with a cause, a depth and a time."""

    def __init__(self, lanes: Lanes, pause_of: PauseOf, clock: Callable[[], float] = lease_clock) -> None:
        self._lanes = lanes
        self._pause_of = pause_of
        self._clock = clock
        self._come_back = ComeBack()
        self._full_until: OrderedDict[str, float] = OrderedDict()

    def known_full(self, request: TaskRequest, tenant: str) -> RequestRefused | None:
        """A refusal for a lane that was full a moment ago, of whoever was not told to come by now; else None."""
        if not self._full_until:
            return None
        line, at = _line_of(request, tenant), self._clock()
        was_due = self._come_back.came(line, at)
        if was_due or at >= self._full_until.get(line, 0.0):
            return None
        return self._full(request, tenant)

    def queue_full(self, error: QueueFull, request: TaskRequest, tenant: str) -> RequestRefused:
        """For a task that there is no room for."""
        if error.cause != "lane":
            return self._no_room(error, request)
        line, per_second = _line_of(request, tenant), self._per_second(request, tenant)
        if self._pause_of(request.pool, request.priority, tenant) is not None:
            per_second = 0.0  # It may go on at any time: nobody was told one.
        self._full_until[line] = self._clock() + (FULL_SECONDS if per_second else FULL_SECONDS_UNKNOWN)
        self._full_until.move_to_end(line)
        if len(self._full_until) > LINES_MAX:
            self._full_until.popitem(last=False)
        return self._full(request, tenant)

    def storage(self, detail: str, request: TaskRequest) -> RequestRefused:
        """While a stream, or the disk, is nearly full."""
        told = self._come_back.take("storage", self._clock(), None, after_seconds=STORAGE_SECONDS)
        return self._refusal("queue-full", detail, "storage", told, request)

    def pool_unavailable(self, refusal: Refusal, request: TaskRequest) -> RequestRefused:
        """While no provider of a pool can be called. Room is there: how fast the lane goes, or went, says nothing."""
        told = self._come_back.take("no-provider", self._clock(), None, after_seconds=refusal.retry_after_seconds)
        return self._refusal("pool-unavailable", refusal.reason, "no-provider", told, request)

    def _full(self, request: TaskRequest, tenant: str) -> RequestRefused:
        line = _line_of(request, tenant)
        detail = f"lane {request.pool}.{request.priority} takes no more of tenant {tenant}"
        pause = self._pause_of(request.pool, request.priority, tenant)
        if pause is None:
            told = self._come_back.take(line, self._clock(), self._per_second(request, tenant))
        else:
            # Nothing drains until then, whatever was measured.
            detail += f", and {paused_text(pause)}"
            seconds = (pause.until - now()).total_seconds() if pause.until is not None else PAUSED_SECONDS
            told = self._come_back.take(line, self._clock(), None, after_seconds=min(seconds, SECONDS_MAX / 2))
        return self._refusal("queue-full", detail, "lane", told, request)

    def _no_room(self, error: QueueFull, request: TaskRequest) -> RequestRefused:
        is_queue = error.cause == "queues"
        told = self._come_back.take(
            error.cause,
            self._clock(),
            self._per_second(request) if is_queue else None,
            after_seconds=0.0 if is_queue else STORAGE_SECONDS,
        )
        return self._refusal("queue-full", str(error), error.cause, told, request)

    def _refusal(self, code: str, detail: str, cause: str, told: Told, request: TaskRequest) -> RequestRefused:
        depth = self._lanes.depth(request.pool, request.priority)
        return RequestRefused(code, detail, retry_after_seconds=told.seconds, cause=cause, depth=depth)

    def _per_second(self, request: TaskRequest, tenant: str | None = None) -> float | None:
        """How fast room comes free, of which each ingress promises its part."""
        speed = self._lanes.tasks_per_second(request.pool, request.priority, tenant)
        return speed / self._lanes.fleet.ingresses if speed is not None else None


def _line_of(request: TaskRequest, tenant: str) -> str:
    return f"{request.pool}.{request.priority}.{tenant}"
