"""Shares: which lanes the free places of a process go to, so that each lane that has messages gets its share. Pure.

    pool a   high 16   normal 8   low 2
    pool b   high 16   normal 8   low 2

Two levels of stride scheduling. Pools share alike, however many of their lanes hold messages, or by weights that may
change at any time; the lanes of a pool share by weight. What a lane was given is kept from one call to the next, so
shares hold with a single place, too. A lane that was idle has saved nothing up: it starts where the others are.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

LANE_WEIGHTS: Final = {"high": 16, "normal": 8, "low": 2}
"""Shares of a pool's places while all of its lanes are backed up. Pools share by what waits (`capacity.shifting`)."""


class Share(NamedTuple):
    """Whose share it is: a lane's of its pool. `weight`: messages that it gets for each of those of a lane of 1."""

    pool: str
    lane: str
    weight: int = 1


NOTHING_HAD: Mapping[str, int] = MappingProxyType({})


def _alike(_: str) -> float:
    return 1.0


def _any(_: str, __: Mapping[str, int]) -> bool:
    return True


class Shares:
    """What each lane was given, in messages over weight. `weight`: that of a pool, at present."""

    def __init__(self, weight: Callable[[str], float] = _alike) -> None:
        self._weight = weight
        self._pools = _Level()
        self._lanes: dict[str, _Level] = {}

    def picks(
        self,
        waiting: Iterable[Share],
        places: int,
        has_room: Callable[[str, Mapping[str, int]], bool] = _any,
        had: Mapping[str, int] = NOTHING_HAD,
    ) -> list[Share]:
        """Who gets each of the places, in order, of those who have messages. Nothing is given by it: see `give`.

        `has_room`: whether a pool may have one more while each has so many, those of `had` and those that were picked.
        """
        by_pool: dict[str, dict[str, Share]] = {}
        for share in waiting:
            by_pool.setdefault(share.pool, {})[share.lane] = share
        pools = [(given, order, name) for order, (name, given) in enumerate(self._pools.of(by_pool).items())]
        heapq.heapify(pools)
        lanes: dict[str, list[tuple[float, int, str]]] = {}
        picked: list[Share] = []
        counts, strides = Counter(had), {pool: 1 / self._weight(pool) for pool in by_pool}
        while pools and len(picked) < places:
            given, order, pool = pools[0]
            if not has_room(pool, counts):
                heapq.heappop(pools)
                continue
            counts[pool] += 1
            heapq.heapreplace(pools, (given + strides[pool], order, pool))
            if pool not in lanes:
                level = self._lanes.setdefault(pool, _Level()).of(by_pool[pool])
                # Of equals the first: urgent lanes are named first.
                lanes[pool] = [(given, order, name) for order, (name, given) in enumerate(level.items())]
                heapq.heapify(lanes[pool])
            given, order, lane = lanes[pool][0]
            share = by_pool[pool][lane]
            heapq.heapreplace(lanes[pool], (given + 1 / share.weight, order, lane))
            picked.append(share)
        return picked

    def give(self, share: Share) -> None:
        """A message of the lane was taken."""
        self._pools.give(share.pool, 1 / self._weight(share.pool))
        self._lanes.setdefault(share.pool, _Level()).give(share.lane, 1 / share.weight)


class _Level:
    """Those that share with one another, and what was given to each."""

    def __init__(self) -> None:
        self._given: dict[str, float] = {}
        self._waiting: set[str] = set()
        self._floor = 0.0
        """The least that was given to any of those who waited."""

    def of(self, waiting: Iterable[str]) -> dict[str, float]:
        """What was given to those that wait. One that did not before is taken to have had as much as any other."""
        names = list(waiting)
        stayed = [self._given.get(name, 0.0) for name in names if name in self._waiting]
        self._floor = max(self._floor, min(stayed, default=max(self._given.values(), default=0.0)))
        for name in names:
            if name not in self._waiting:
                self._given[name] = max(self._given.get(name, 0.0), self._floor)
        self._waiting = set(names)
        return {name: self._given[name] for name in names}

    def give(self, name: str, amount: float) -> None:
        self._given[name] = max(self._given.get(name, 0.0), self._floor) + amount
