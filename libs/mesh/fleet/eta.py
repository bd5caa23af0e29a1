"""A task's place in line, and about how long until it begins. Pure.

Three measures say how fast a lane goes, the best first: how many of its tasks began a second while some waited; the
same of the pool's other lanes, of which this one gets its share by weight; and how many places there are, with how
long a task has one. Each counts tasks by their first turns: later turns go first, and take what they take. While
nothing of a pool waits, and a place is free, a task begins at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Final, NamedTuple

from contracts.records.backlog import LaneBacklog
from contracts.records.status import EtaBasis, LaneStatistics, QueueState, WorkerRecord
from mesh.broker.shares import LANE_WEIGHTS

PLACES_SLACK: Final = 1.25
"""What was measured trembles: only if it takes so many times the places that there are, some of them have gone."""


class PoolView(NamedTuple):
    """What is known of a pool: fresh statistics of its lanes, by priority, and the places of its workers.

    `places` is None where nobody knows how many there are. `taken`: places of these workers that turns of other pools
    have.
    """

    lanes: Mapping[str, LaneStatistics]
    places: int | None = None
    taken: float = 0.0

    @property
    def depth(self) -> int:
        """Turns that wait, in all lanes."""
        return sum(lane.depth for lane in self.lanes.values())

    @property
    def waits(self) -> bool:
        """Whether any turn waits for a place, and for nothing else."""
        return any(map(_waits, self.lanes.values()))

    @property
    def free(self) -> int | None:
        """Places that nobody has; None where nobody knows."""
        if self.places is None:
            return None
        running = sum(lane.running for lane in self.lanes.values())
        return max(0, int(self.places - self.taken - running)) if not self.waits else 0


def pool_view(pool: str, statistics: Iterable[LaneStatistics], workers: Iterable[WorkerRecord] | None) -> PoolView:
    """A pool, of fresh statistics of all lanes, and of the workers that live; None where nobody knows these."""
    statistics = list(statistics)
    lanes: dict[str, LaneStatistics] = {lane.priority: lane for lane in statistics if lane.pool == pool}
    if workers is None:
        return PoolView(lanes)
    serving = [worker for worker in workers if not worker.draining and worker.concurrency]
    own = [worker for worker in serving if pool in worker.pools]
    taken = 0.0
    for other in {name for worker in own for name in worker.pools} - {pool}:
        running = sum(lane.running for lane in statistics if lane.pool == other)
        shared = sum(worker.concurrency or 0 for worker in own if other in worker.pools)
        # Where its turns run nobody counts: they are taken to be spread over its places.
        taken += running * shared / sum(worker.concurrency or 0 for worker in serving if other in worker.pools)
    return PoolView(lanes, sum(places_of(worker, pool) for worker in own), taken)


def places_of(worker: WorkerRecord, pool: str) -> int:
    """How many turns of a pool a worker takes at once.

    How it shares its places out among its pools is left out: that follows what waits, within moments.
    """
    places, bears = worker.concurrency or 0, worker.capacity.get(pool)
    return places if bears is None else min(places, bears.limit)


class Speed(NamedTuple):
    """How many tasks of a lane begin a second, and what that was worked out from."""

    per_second: float | None
    basis: EtaBasis


NOT_MEASURED = Speed(None, "unknown")


def speed_of(view: PoolView, priority: str) -> Speed:
    """How fast a lane goes while something waits there."""
    lane = view.lanes.get(priority)
    if lane is None:
        return NOT_MEASURED
    slowed = _slowed(view, priority)
    if lane.tasks_per_second:
        return Speed(lane.tasks_per_second * slowed, "drain")
    share = _share(view, priority)
    others = sum(each.tasks_per_second or 0.0 for each in _backed_up(view, priority))
    if others:
        return Speed(others * share * slowed, "pool")
    seconds = lane.task_seconds or _mean_task_seconds(view)
    if view.places and seconds:
        return Speed(view.places * share / seconds, "places")
    # What drains while nothing waits is what came: no less can be done.
    return Speed(lane.drain_per_second, "drain") if lane.drain_per_second else NOT_MEASURED


def queue_state(view: PoolView, priority: str, *, more: float = 0.0, before: float | None = None) -> QueueState:
    """The place of a task that comes now, or of one before which `before` others are known to stand.

    `more`: how many tasks more, or fewer, wait in the lane than when its statistics were written.
    """
    lane = view.lanes.get(priority)
    if lane is None:
        return QueueState(depth=None, position=_position(before), eta_seconds=None, basis="unknown")
    waiting = lane.depth if lane.waiting_tasks is None else lane.waiting_tasks
    ahead = float(before) if before is not None else max(0.0, waiting + more)
    free = view.free
    if free is None:
        free = 0 if view.waits else int(ahead) + 1
    speed = speed_of(view, priority)
    if ahead < free:
        # Those before it have a place each, and so no place in line.
        position = 1 if before is None else int(before) + 1
        return QueueState(depth=lane.depth, position=position, eta_seconds=0.0, basis="free")
    ahead -= free
    position = int(ahead if before is None else before) + 1
    eta_seconds = round((ahead + 1) / speed.per_second, 3) if speed.per_second else None
    return QueueState(depth=lane.depth, position=position, eta_seconds=eta_seconds, basis=speed.basis)


class InTurns:
    """A lane's backlog, whose tenants take turns by their weights. Tasks are taken to cost alike.

    It is put together once for each record of the stewards: an acceptance asks for one place among many tenants.
    """

    def __init__(self, backlog: LaneBacklog, weight: Callable[[str], float]) -> None:
        self._weight = weight
        named = {name: (backlog.tenants[name], weight(name)) for name in backlog.tenants.keys() - backlog.held_tenants}
        self._named = named
        lines = sorted((count / its, count, its) for count, its in named.values())
        self._turns = [turns for turns, _, _ in lines]
        """After so many turns of weight 1 each of them has none left, the first one first."""
        self._counts = [0, *accumulate(count for _, count, _ in lines)]
        self._weights = [0.0, *accumulate(its for _, _, its in lines)]
        self._unnamed = max(0, backlog.tenants_waiting - len(backlog.tenants))
        self._rest = max(0, backlog.waiting - backlog.held_waiting - self._counts[-1])
        self._held = frozenset(backlog.held_tenants)

    def before(self, own: float, tenant: str) -> float:
        """How many messages go before one that has `own` of its own tenant before it.

        Each other tenant gets as many times its weight in until then, if it has as much, and gets any.
        """
        turns = (own + 1) / self._weight(tenant)
        gone = bisect_right(self._turns, turns)
        others = self._counts[gone] + turns * (self._weights[-1] - self._weights[gone])
        count, weight = self._named.get(tenant, (0, 0.0))
        return own + others - min(count, turns * weight) + min(self._rest, self._unnamed * turns)

    def behind_all(self, own: float, tenant: str, gone: float) -> float:
        """The same of a tenant's next task, which has `own` before it, once `gone` of all messages have gone on.

        Stewards bring on what waits as places get free: of what is before a task they leave as much as there was, but
        for its own tenant's part.
        """
        left = own if tenant in self._held else max(0.0, own - gone * self.part(tenant))
        all_of_it = self._counts[-1] + self._rest + own - self._named.get(tenant, (0, 0.0))[0]
        return min(self.before(left, tenant), max(left, all_of_it - gone))

    def part(self, tenant: str) -> float:
        """A tenant's part of the lane, beside those that wait and get any."""
        own = self._weight(tenant)
        others = self._weights[-1] - self._named.get(tenant, (0, 0.0))[1]
        return own / (own + others + self._unnamed)


def without_eta(state: QueueState, basis: EtaBasis) -> QueueState:
    """A place in a line that does not move: `basis` says why."""
    return QueueState(depth=state.depth, position=state.position, eta_seconds=None, basis=basis)


def begun(depth: int | None) -> QueueState:
    """Of a task that waits for no place any more."""
    return QueueState(depth=depth, position=None, eta_seconds=None, basis="begun")


def _position(before: float | None) -> int | None:
    return None if before is None else int(before) + 1


def _backed_up(view: PoolView, priority: str) -> list[LaneStatistics]:
    """The pool's other lanes where something waits."""
    return [lane for name, lane in view.lanes.items() if name != priority and _waits(lane)]


def _waits(lane: LaneStatistics) -> bool:
    return lane.depth > lane.held


def _share(view: PoolView, priority: str) -> float:
    """The part of a pool's places that a lane gets, beside those where something waits."""
    own = LANE_WEIGHTS[priority]
    return own / (own + sum(LANE_WEIGHTS[lane.priority] for lane in _backed_up(view, priority)))


def _slowed(view: PoolView, priority: str) -> float:
    """The part of what was measured that a pool still can do: workers may have left since."""
    lanes = [view.lanes[priority], *_backed_up(view, priority)]
    taken = sum((lane.tasks_per_second or 0.0) * (lane.task_seconds or 0.0) for lane in lanes)
    return view.places / taken if view.places and taken > view.places * PLACES_SLACK else 1.0


def _mean_task_seconds(view: PoolView) -> float | None:
    known = [lane.task_seconds for lane in view.lanes.values() if lane.task_seconds]
    return sum(known) / len(known) if known else None
