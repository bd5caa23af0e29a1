"""Statistics of one lane over the last minute: pure, fed with samples and times."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Mapping
from datetime import datetime

from contracts.records.status import TENANTS_TOLD_MAX, LaneSample, LaneStatistics, TenantRate
from contracts.tasks import Priority

WINDOW_SECONDS = 60.0
SAMPLES_MAX = 4096
MEMORY_EVENTS = 50
"""A rate is over about so many events: of fewer it would tremble, of more it would be late."""
MEMORY_SECONDS_MIN = 15.0
MEMORY_SECONDS_MAX = 300.0
"""A rate is over no less and no more than about these."""
TOLD_FROM_EVENTS = 10
"""No rate is told of fewer: places that are filled at once empty at once, too."""
STALLED_SECONDS = 5.0
"""Something has to wait for so long before it is said that little goes: reports come a second late."""
STALLED_FACTOR = 3
"""So much slower than it could be is slow."""
FORGOTTEN_SECONDS = 300.0
"""So long after something waited last, how fast it went says nothing any more."""
TENANT_SECONDS = 60.0
"""What a tenant began so long ago counts a third of what it begins now."""
TENANTS_MAX = 1_024
"""Tenants that are counted in a lane, and twice as many for a while. Those with the least go."""
WORTH_SECONDS = 300.0
"""So often what is old is counted anew, and what has come to nothing forgotten."""
NOTHING = 0.001
"""A task, or a token, that counts no more than this is no longer there."""


class Drain:
    """How many a second, while something waited; newer ones count more. What drains while nothing waits says how much
    comes, and nothing of how much could."""

    def __init__(self) -> None:
        self._events = 0.0
        self._seconds = 0.0
        self._seen = 0
        self._new = 0
        self._looked_at: float | None = None
        self._waited = False
        self._measured_at = float("-inf")

    def add(self, count: int) -> None:
        """So many more since the last look."""
        self._new += count

    def look(self, at: float, *, waits: bool) -> None:
        """Take note of whether something waits at this time."""
        seconds = at - self._looked_at if self._looked_at is not None else 0.0
        if at - self._measured_at > FORGOTTEN_SECONDS:
            self._events = self._seconds = self._seen = 0
        if self._waited and waits and seconds > 0:
            kept = math.exp(-seconds / self._memory_seconds())
            self._events = self._events * kept + self._new
            self._seconds = self._seconds * kept + seconds
            self._seen += self._new
            self._measured_at = at
        self._new, self._looked_at, self._waited = 0, at, waits

    @property
    def per_second(self) -> float | None:
        """The rate; None until enough were seen."""
        return self._events / self._seconds if self._seen >= TOLD_FROM_EVENTS and self._seconds else None

    def slower_than(self, per_second: float) -> float | None:
        """Of too few for a rate, no more than which it is, if that is far below what is thought to be possible."""
        if self._seconds < STALLED_SECONDS:
            return None
        bound = (self._events + 1) / self._seconds
        return bound if bound < per_second / STALLED_FACTOR else None

    def _memory_seconds(self) -> float:
        if not self._events:
            return MEMORY_SECONDS_MAX
        return min(MEMORY_SECONDS_MAX, max(MEMORY_SECONDS_MIN, MEMORY_EVENTS * self._seconds / self._events))


class TaskSeconds:
    """How long a task has a place, all of its turns together, over about the last 50 turns."""

    def __init__(self) -> None:
        self._busy_seconds = 0.0
        self._tasks = 0.0

    def add(self, sample: LaneSample) -> None:
        """Take in a worker's report."""
        kept = math.exp(-sample.finished / MEMORY_EVENTS)
        self._busy_seconds = self._busy_seconds * kept + sample.busy_seconds
        self._tasks = self._tasks * kept + sum(sample.begun.values())

    @property
    def seconds(self) -> float | None:
        """The mean; None while none was seen."""
        return self._busy_seconds / self._tasks if self._tasks else None


class TenantRates:
    """How many tasks of each tenant begin a second, and how many tokens its turns use, of late."""

    def __init__(self) -> None:
        # What is old counts less. Instead of taking from all that is there, what comes is given more.
        self._begun: dict[str, float] = {}
        self._tokens: dict[str, float] = {}
        self._all_tokens = 0.0
        self._since: float | None = None
        self._at = 0.0

    def add(self, at: float, begun: Mapping[str, int], tokens: Mapping[str, int]) -> None:
        """Count tasks that have begun, and tokens that turns have used, by tenant."""
        worth = self._worth(at)
        for counts, more in ((self._begun, begun), (self._tokens, tokens)):
            for tenant, count in more.items():
                counts[tenant] = counts.get(tenant, 0.0) + count * worth
        self._all_tokens += sum(tokens.values()) * worth
        if max(len(self._begun), len(self._tokens)) > 2 * TENANTS_MAX:
            kept = self._most(TENANTS_MAX)
            self._begun = {tenant: self._begun[tenant] for tenant in kept if tenant in self._begun}
            self._tokens = {tenant: self._tokens[tenant] for tenant in kept if tenant in self._tokens}

    def told(self, at: float) -> tuple[list[TenantRate], float | None]:
        """Those with the most tokens, the most first; and the tokens of all tenants. None while nothing was seen."""
        if self._since is None:
            return [], None
        seconds = TENANT_SECONDS * (1 - math.exp(-max(1.0, at - self._since) / TENANT_SECONDS)) * self._worth(at)
        rates = [
            TenantRate(
                tenant=tenant,
                tasks_per_second=round(self._begun.get(tenant, 0.0) / seconds, 4),
                tokens_per_second=round(self._tokens.get(tenant, 0.0) / seconds, 4),
            )
            for tenant in self._most(TENANTS_TOLD_MAX)
        ]
        of_all = round(self._all_tokens / seconds, 4)
        return [each for each in rates if each.tasks_per_second or each.tokens_per_second], of_all

    def _worth(self, at: float) -> float:
        """What one that comes now counts, beside those that are there."""
        if self._since is None:
            self._since = self._at = at
        if at - self._at > WORTH_SECONDS:
            kept = math.exp(-(at - self._at) / TENANT_SECONDS)
            self._begun = {tenant: count * kept for tenant, count in self._begun.items() if count * kept > NOTHING}
            self._tokens = {tenant: count * kept for tenant, count in self._tokens.items() if count * kept > NOTHING}
            self._all_tokens, self._at = self._all_tokens * kept, at
        return math.exp(max(0.0, at - self._at) / TENANT_SECONDS)

    def _most(self, count: int) -> list[str]:
        def order(tenant: str) -> tuple[float, float, str]:
            return (-self._tokens.get(tenant, 0.0), -self._begun.get(tenant, 0.0), tenant)

        return heapq.nsmallest(count, {*self._begun, *self._tokens}, key=order)


OUTPUTS_MAX = 1024
"""Turns whose output is remembered: the last ones, however long ago. A lane that was quiet has no other median."""


class LaneWindow:
    """What workers reported of a lane; times are seconds on any clock that only goes forward."""

    def __init__(self, pool: str, priority: Priority) -> None:
        self.pool = pool
        self.priority: Priority = priority
        self._finished: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)
        self._waits: deque[tuple[float, float]] = deque(maxlen=SAMPLES_MAX)
        self._drain = Drain()
        self._task_seconds = TaskSeconds()
        self._tenants = TenantRates()
        self._outputs: deque[int] = deque(maxlen=OUTPUTS_MAX)

    def add(self, at: float, sample: LaneSample) -> None:
        """Take in a worker's report."""
        self._finished.append((at, sample.finished))
        self._waits.extend((at, wait) for wait in sample.wait_seconds)
        self._drain.add(sum(sample.begun.values()))
        self._task_seconds.add(sample)
        self._tenants.add(at, sample.begun, sample.tokens)
        self._outputs.extend(sample.output_tokens)

    def statistics(
        self,
        at: float,
        time: datetime,
        depth: int,
        running: int,
        backlog: int = 0,
        *,
        waiting_tasks: int = 0,
        held: int = 0,
        stands: bool = False,
    ) -> LaneStatistics:
        """The lane as it is. `waiting_tasks`, of `depth`, are to begin a task; `held`, of `backlog`, get no place.

        `stands`: it is paused, so that what goes on says nothing of how fast it goes.
        """
        self._drain.look(at, waits=waiting_tasks > 0 and not stands)
        for samples in (self._finished, self._waits):
            while samples and samples[0][0] < at - WINDOW_SECONDS:
                samples.popleft()
        finished = sum(count for _, count in self._finished)
        # A lane that has just begun is measured over the time it has been seen, but never over less than a second.
        seconds = max(1.0, at - self._finished[0][0]) if self._finished else WINDOW_SECONDS
        waits = sorted(wait for _, wait in self._waits)
        outputs = sorted(self._outputs)
        tenants, tokens_per_second = self._tenants.told(at)
        return LaneStatistics(
            pool=self.pool,
            priority=self.priority,
            time=time,
            depth=depth,
            running=running,
            waiting_tasks=waiting_tasks,
            drain_per_second=round(finished / seconds, 4) if finished else None,
            tasks_per_second=_rounded(self._tasks_per_second(running)),
            task_seconds=_rounded(self._task_seconds.seconds),
            wait_seconds_p50=_percentile(waits, 0.50),
            wait_seconds_p95=_percentile(waits, 0.95),
            wait_seconds_p99=_percentile(waits, 0.99),
            tenants=tenants,
            tokens_per_second=tokens_per_second,
            backlog=backlog,
            held=held,
            output_tokens_p50=outputs[(len(outputs) - 1) // 2] if outputs else None,
        )

    def _tasks_per_second(self, running: int) -> float | None:
        task_seconds = self._task_seconds.seconds
        if self._drain.per_second is not None or not task_seconds:
            return self._drain.per_second
        # Tasks like those before would have ended by now: who goes by these would promise too much.
        return self._drain.slower_than(running / task_seconds)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _percentile(ordered: list[float], fraction: float) -> float | None:
    """The nearest-rank percentile."""
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(fraction * len(ordered)) - 1)], 4)
