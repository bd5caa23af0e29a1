"""A lane in virtual time: tenants, ingresses, TASKS with its window, BACKLOG, the steward's mover, and places. Pure.

It decided what ADR-30 says, and holds the mover's own rules (`steward.admission.fair_order`) to it.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from contracts.streams import LANE_BACKLOG_MAX
from steward.admission.fair_order import Ahead, FairOrder

Rule = Literal["arrival", "window", "fair"]
"""`arrival`: one queue, as 0.1. `window`: TASKS takes so many of each tenant, the rest is moved on. `fair`: an ingress
also leaves the order to the mover once a lane has about as much waiting as places."""


class Turning(Protocol):
    """Tenants that take turns: as `fair_order.Turns`."""

    def next(self) -> str | None: ...
    def went(self, tokens: int, weight: float) -> None: ...
    def leave(self) -> None: ...


class Order(Protocol):
    """Who goes next: as `fair_order.FairOrder`."""

    def wait(self, tenants: Iterable[str]) -> None: ...
    def turns(self, candidates: Iterable[str]) -> Turning: ...
    def used(self, tenant: str, tasks: int, tokens: int, weight: float) -> None: ...


class DeficitRoundRobin:
    """The classic (Shreedhar and Varghese, 1996), by estimates alone: what the counters are compared with."""

    def __init__(self, quantum: float, head_cost: Callable[[str], int]) -> None:
        self._quantum, self._head_cost = quantum, head_cost
        self._deficits: dict[str, float] = {}
        self._ring: deque[str] = deque()
        self._fresh = True

    def wait(self, tenants: Iterable[str]) -> None:
        names = set(tenants)
        self._ring = deque([each for each in self._ring if each in names])
        self._ring.extend(sorted(names - set(self._ring)))
        self._deficits = {name: self._deficits.get(name, 0.0) for name in names}

    def turns(self, candidates: Iterable[str]) -> DeficitRoundRobin:
        self._allowed = set(candidates)
        return self

    def next(self) -> str | None:
        if not self._allowed & set(self._ring):
            return None
        while True:
            name = self._ring[0]
            if self._fresh:
                self._deficits[name] += self._quantum
                self._fresh = False
            if name in self._allowed and self._head_cost(name) <= self._deficits[name]:
                return name
            self._ring.rotate(-1)
            self._fresh = True

    def went(self, tokens: int, weight: float) -> None:
        self._deficits[self._ring[0]] -= tokens / weight

    def leave(self) -> None:
        self._allowed.discard(self._ring[0])

    def used(self, tenant: str, tasks: int, tokens: int, weight: float) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Task:
    """A task of one turn. `estimate` and `tokens`: what it is thought to cost, and what it does. `ends_at`: virtual."""

    tenant: str
    at: float
    seconds: float
    estimate: int = 1_000
    tokens: int = 1_000


@dataclass(slots=True)
class Outcome:
    """What came of it, in virtual seconds."""

    waits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ended: list[tuple[float, str, int]] = field(default_factory=list)
    moved: int = 0
    busy_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """When the last one ended."""
        return self.ended[-1][0]

    def end_of(self, tenant: str) -> float:
        """When the tenant's last one ended."""
        return max(at for at, name, _ in self.ended if name == tenant)

    def tokens(self, begin: float, end: float) -> Counter[str]:
        """By tenant, of what ended in between."""
        used: Counter[str] = Counter()
        for at, tenant, tokens in self.ended:
            if begin <= at < end:
                used[tenant] += tokens
        return used


@dataclass
class Lane:
    """One lane of one pool."""

    places: int
    rule: Rule = "fair"
    window: int = LANE_BACKLOG_MAX
    ingresses: int = 1
    mover_seconds: float = 0.05
    depth_age_seconds: float = 1.0
    report_seconds: float = 1.0
    crowd_min: int = 16
    weights: dict[str, float] = field(default_factory=dict)
    order: Order = field(default_factory=FairOrder)
    trues_up: bool = True
    seed: int = 0

    def run(self, tasks: Iterable[Task]) -> Outcome:
        """Let it all happen."""
        self._random = random.Random(self.seed)
        self._outcome = Outcome()
        self._tasks: deque[Task] = deque()
        self._held: Counter[str] = Counter()  # In TASKS, by tenant: those that run included.
        self._backlog: dict[str, deque[Task]] = defaultdict(deque)
        self._free = self.places
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = iter(range(10**9))
        self._depth, self._published = 0, [0] * self.ingresses
        self._flagged, self._ahead = False, Ahead()
        self._reports: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._mover_at: float | None = None
        self._left = 0
        for task in tasks:
            self._left += 1
            self._at(task.at, lambda at, task=task: self._accept(at, task))  # type: ignore[misc]
        self._at(0.0, self._look)
        self._at(0.0, self._report)
        while self._left and self._events:
            at, _, event = heapq.heappop(self._events)
            event(at)
        return self._outcome

    def _at(self, at: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._number), event))

    def _accept(self, at: float, task: Task) -> None:
        ingress = self._random.randrange(self.ingresses)
        # Each ingress knows of the others only what lies there: so it takes its part of what there is room for.
        room = max(self.crowd_min, self.places) - self._depth
        crowded = self._published[ingress] * self.ingresses >= room
        by_backlog = self.rule == "fair" and (self._flagged or crowded)
        refused = self.rule != "arrival" and self._held[task.tenant] >= self.window
        if self.rule == "window" and self._backlog[task.tenant]:
            by_backlog = True
        if by_backlog or refused:
            self._backlog[task.tenant].append(task)
            self._flagged = True
            if self._mover_at is None:
                self._mover_at = at
                self._at(at + 0.002, self._move)
            return
        self._published[ingress] += 1
        self._put(at, task)

    def _put(self, at: float, task: Task) -> None:
        self._held[task.tenant] += 1
        self._tasks.append(task)
        self._start(at)

    def _start(self, at: float) -> None:
        while self._free and self._tasks:
            task = self._tasks.popleft()
            self._free -= 1
            self._outcome.waits[task.tenant].append(at - task.at)
            self._outcome.busy_seconds += task.seconds
            self._at(at + task.seconds, lambda at, task=task: self._end(at, task))  # type: ignore[misc]

    def _end(self, at: float, task: Task) -> None:
        self._free += 1
        self._held[task.tenant] -= 1
        self._outcome.ended.append((at, task.tenant, task.tokens))
        report = self._reports[task.tenant]
        report[0] += 1
        report[1] += task.tokens
        self._left -= 1
        self._start(at)

    def _look(self, at: float) -> None:
        self._depth, self._published = len(self._tasks), [0] * self.ingresses
        self._at(at + self.depth_age_seconds, self._look)

    def _report(self, at: float) -> None:
        for tenant, (count, tokens) in self._reports.items():
            if self.trues_up:
                self.order.used(tenant, count, tokens, self.weights.get(tenant, 1.0))
        self._reports.clear()
        self._at(at + self.report_seconds, self._report)

    def _move(self, at: float) -> None:
        waiting = [name for name, queue in self._backlog.items() if queue]
        if not waiting:
            self._flagged, self._mover_at = False, None
            return
        self.order.wait(waiting)
        room = self._ahead.look(len(self._tasks))
        turns = self.order.turns(waiting)
        while room > 0 and (name := turns.next()) is not None:
            if not self._backlog[name] or self._held[name] >= self.window:
                turns.leave()
                continue
            task = self._backlog[name].popleft()
            turns.went(task.estimate, self.weights.get(name, 1.0))
            self._outcome.moved += 1
            self._put(at, task)
            room -= 1
        self._at(at + self.mover_seconds, self._move)

    def head_cost(self, tenant: str) -> int:
        """What the tenant's next task is thought to cost."""
        return self._backlog[tenant][0].estimate if self._backlog[tenant] else 0


def burst(tenant: str, count: int, at: float = 0.0, *, seconds: float = 1.0, seed: int = 1, **costs: int) -> list[Task]:
    """So many tasks at once, each of about so many seconds: half to one and a half of them, evenly."""
    chance = random.Random(f"{tenant}{seed}")
    return [Task(tenant, at + 1e-4 * number, seconds * chance.uniform(0.5, 1.5), **costs) for number in range(count)]


def steady(tenant: str, per_second: float, until: float, *, seconds: float = 1.0, seed: int = 1) -> Iterator[Task]:
    """Tasks that come by chance, so many in a second."""
    chance, at = random.Random(f"{tenant}{seed}"), 0.0
    while (at := at + chance.expovariate(per_second)) < until:
        yield Task(tenant, at, seconds * chance.uniform(0.5, 1.5))
