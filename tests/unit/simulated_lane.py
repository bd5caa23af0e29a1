"""A lane in simulated time: tasks come, places take them, and the mesh's own statistics say when each will begin.

Nothing here waits. A steward looks once a second, workers report once a second, and an ingress reads what the steward
has written up to a second later, as they do in a mesh.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from contracts.records.status import LaneSample, LaneStatistics, QueueState
from mesh.fleet.eta import PoolView, queue_state
from steward.statistics import LaneWindow

START = datetime(2026, 1, 1, tzinfo=UTC)
TICK_SECONDS = 0.05


class Promise(NamedTuple):
    """What a task was told when it came, and how long it waited."""

    at: float
    told: QueueState
    waited: float

    @property
    def error(self) -> float | None:
        """How far off the ETA was, as a part of the wait; None if there was none."""
        if self.told.eta_seconds is None:
            return None
        return abs(self.told.eta_seconds - self.waited) / max(self.waited, 1.0)


class SimulatedLane:
    """One lane of `places`. `turn_seconds`: how long a turn takes; `turns`: how many turns a task has."""

    def __init__(self, places: int, turn_seconds: Callable[[], float], turns: int = 1) -> None:
        self.places = places
        self._turn_seconds = turn_seconds
        self._turns = turns
        self._window = LaneWindow("default", "normal")
        self._tasks: deque[tuple[float, QueueState]] = deque()
        self._later: deque[int] = deque()
        self._running: list[tuple[float, float, int]] = []
        self._finished: Counter[str] = Counter()
        self._busy_seconds = 0.0
        self._written: list[LaneStatistics] = []
        self._accepted: list[float] = []
        self.promises: list[Promise] = []
        self.places_at: dict[float, int] = {}
        """Places from a time on."""

    def run(self, arrivals: Iterable[float], until: float) -> list[Promise]:
        """Let tasks come at these times."""
        coming = deque(sorted(arrivals))
        ticks = round(until / TICK_SECONDS)
        for tick in range(ticks):
            at = tick * TICK_SECONDS
            self.places = self.places_at.get(at, self.places)
            while self._running and self._running[0][0] <= at:
                self._finish(*heapq.heappop(self._running))
            self._fill(at)
            while coming and coming[0] <= at:
                coming.popleft()
                self._tasks.append((at, self._told(at)))
                self._accepted.append(at)
                self._fill(at)
            if tick % 20 == 7:
                self._report(at)
            if tick % 20 == 13:
                self._look(at)
        return self.promises

    def _finish(self, ends_at: float, began_at: float, turn: int) -> None:
        self._finished["turns"] += 1
        self._finished["first"] += turn == 1
        self._busy_seconds += ends_at - began_at
        if turn < self._turns:
            self._later.append(turn + 1)

    def _fill(self, at: float) -> None:
        while len(self._running) < self.places and (self._later or self._tasks):
            if self._later:
                turn = self._later.popleft()
            else:
                turn = 1
                came_at, told = self._tasks.popleft()
                self.promises.append(Promise(came_at, told, at - came_at))
            heapq.heappush(self._running, (at + self._turn_seconds(), at, turn))

    def _report(self, at: float) -> None:
        sample = LaneSample(
            worker="w", finished=self._finished["turns"], wait_seconds=[],
            begun={"default": self._finished["first"]}, busy_seconds=self._busy_seconds,
        )  # fmt: skip
        if sample.finished:
            self._window.add(at, sample)
        self._finished, self._busy_seconds = Counter(), 0.0

    def _look(self, at: float) -> None:
        depth, time = len(self._tasks) + len(self._later), START + timedelta(seconds=at)
        self._written.append(
            self._window.statistics(at, time, depth, len(self._running), waiting_tasks=len(self._tasks))
        )

    def _told(self, at: float) -> QueueState:
        """As an ingress that has read what was written half a second ago or earlier."""
        read = [each for each in self._written if (each.time - START).total_seconds() <= at - 0.5]
        if not read:
            return QueueState(depth=None, eta_seconds=None)
        lane = read[-1]
        looked_at = (lane.time - START).total_seconds()
        begun = (lane.tasks_per_second or 0.0) * (at - looked_at)
        more = sum(looked_at <= accepted for accepted in self._accepted[-5_000:]) - begun
        view = PoolView({"normal": lane}, self.places)
        return queue_state(view, "normal", more=more)
