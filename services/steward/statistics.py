"""Statistics of one lane over the last minute: pure, fed with samples and times."""

from __future__ import annotations

import math
from collections import deque
from datetime import datetime

from contracts.records.status import LaneSample, LaneStatistics
from contracts.tasks import Priority

WINDOW_SECONDS = 60.0
SAMPLES_MAX = 4096
OUTPUTS_MAX = 1024
"""Turns whose output is remembered: the last ones, however long ago. A lane that was quiet has no other median."""


class LaneWindow:
    """What workers reported of a lane; times are seconds on any clock that only goes forward."""

    def __init__(self, pool: str, priority: Priority) -> None:
        self.pool = pool
        self.priority: Priority = priority
        self._finished: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)
        self._waits: deque[tuple[float, float]] = deque(maxlen=SAMPLES_MAX)
        self._outputs: deque[int] = deque(maxlen=OUTPUTS_MAX)

    def add(self, at: float, sample: LaneSample) -> None:
        """Take in a worker's report."""
        self._finished.append((at, sample.finished))
        self._waits.extend((at, wait) for wait in sample.wait_seconds)
        self._outputs.extend(sample.output_tokens)

    def statistics(self, at: float, time: datetime, depth: int, running: int, backlog: int = 0) -> LaneStatistics:
        """The lane as it stands."""
        for samples in (self._finished, self._waits):
            while samples and samples[0][0] < at - WINDOW_SECONDS:
                samples.popleft()
        finished = sum(count for _, count in self._finished)
        # A lane that has just begun is measured over the time it has been seen, but never over less than a second.
        seconds = max(1.0, at - self._finished[0][0]) if self._finished else WINDOW_SECONDS
        waits = sorted(wait for _, wait in self._waits)
        outputs = sorted(self._outputs)
        return LaneStatistics(
            pool=self.pool,
            priority=self.priority,
            time=time,
            depth=depth,
            running=running,
            drain_per_second=round(finished / seconds, 4) if finished else None,
            wait_seconds_p50=_percentile(waits, 0.50),
            wait_seconds_p95=_percentile(waits, 0.95),
            backlog=backlog,
            output_tokens_p50=outputs[(len(outputs) - 1) // 2] if outputs else None,
        )


def _percentile(ordered: list[float], fraction: float) -> float | None:
    """The nearest-rank percentile."""
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(fraction * len(ordered)) - 1)], 4)
