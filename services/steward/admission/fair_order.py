"""Fair order: which tenant of a lane goes next, by the tokens that each was served over its weight. Pure.

The one that was served least goes next (virtual token counters; Sheng et al., "Fairness in Serving Large Language
Models", OSDI 2024). A task counts by its estimate when it goes, and by what it has used once that is known. A tenant
that had nothing waiting has saved nothing up: it begins where the others are.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

EXPECTED_MAX = 10_000
"""Tasks of a tenant whose usage is still awaited. Of more the oldest keep their estimates."""
TENANTS_MAX = 20_000
"""Tenants that are remembered. Of more, those that wait no longer are forgotten: they begin where the others are."""


@dataclass(slots=True)
class _Tenant:
    """What a tenant was served: tokens over weight, those that are expected included."""

    served: float
    expected: deque[float] = field(default_factory=lambda: deque(maxlen=EXPECTED_MAX))


class FairOrder:
    """One lane's tenants."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._waiting: set[str] = set()
        self._floor = 0.0
        """The least that any of those was served who waited. It only grows."""

    def wait(self, tenants: Iterable[str]) -> None:
        """These have tasks that wait, and no others."""
        names = set(tenants)
        stayed = [self._tenants[name].served for name in names & self._waiting]
        if stayed:
            self._floor = max(self._floor, min(stayed))
        for name in names - self._waiting:
            tenant = self._of(name)
            tenant.served = max(tenant.served, self._floor)
        self._waiting = names
        if len(self._tenants) > TENANTS_MAX:
            self._forget()

    def turns(self, candidates: Iterable[str]) -> Turns:
        """These take turns from now on."""
        return Turns(self, candidates)

    def moved(self, tenant: str, tokens: int, weight: float) -> None:
        """A task of the tenant goes that is thought to cost so much."""
        known, cost = self._of(tenant), tokens / weight
        known.served += cost
        known.expected.append(cost)

    def used(self, tenant: str, tasks: int, tokens: int, weight: float) -> None:
        """The first turns of so many tasks have ended, and all turns of the tenant have used so many tokens."""
        known = self._of(tenant)
        for _ in range(min(tasks, len(known.expected))):
            known.served -= known.expected.popleft()
        known.served += tokens / weight

    def served(self, tenant: str) -> float:
        """Tokens over weight."""
        known = self._tenants.get(tenant)
        return self._floor if known is None else known.served

    def shares(self) -> Mapping[str, float]:
        """What each tenant was served beyond the one that was served least, for people to look at."""
        return {name: round(max(0.0, known.served - self._floor), 1) for name, known in self._tenants.items()}

    def _of(self, tenant: str) -> _Tenant:
        known = self._tenants.get(tenant)
        if known is None:
            known = self._tenants[tenant] = _Tenant(self._floor)
        return known

    def _forget(self) -> None:
        for name in [each for each in self._tenants if each not in self._waiting]:
            del self._tenants[name]


class Turns:
    """Who goes next of some tenants; of equals, the first by name."""

    def __init__(self, order: FairOrder, candidates: Iterable[str]) -> None:
        self._order = order
        self._heap = [(order.served(name), name) for name in candidates]
        heapq.heapify(self._heap)

    def next(self) -> str | None:
        """The one whose turn it is; None if nobody is left."""
        return self._heap[0][1] if self._heap else None

    def went(self, tokens: int, weight: float) -> None:
        """A task of theirs goes that is thought to cost so much."""
        name = self._heap[0][1]
        self._order.moved(name, tokens, weight)
        heapq.heapreplace(self._heap, (self._order.served(name), name))

    def leave(self) -> None:
        """They have nothing more that may go now."""
        heapq.heappop(self._heap)


AHEAD_MIN = 2
"""Messages that lie ready in a lane at least: a place that is free must not wait for the mover."""
AHEAD_MAX = 2_000
AHEAD_LOW, AHEAD_HIGH = 0.25, 0.5
"""Below the one part of them the lane may run dry before the next look; above the other they only wait."""
AHEAD_GROWS, AHEAD_SHRINKS = 2.0, 0.95


class Ahead:
    """How many messages of a lane are to lie ready in TASKS: enough that no place idles, few enough to wait behind.

    More once the lane was about to run dry, and slowly less while many of them still lie there. So it fits how
    fast the lane drains and how late the mover looks, without a clock.
    """

    def __init__(self) -> None:
        self._messages = float(AHEAD_MIN)

    def look(self, ready: int) -> int:
        """How many may be added to those that lie ready now."""
        if ready < self._messages * AHEAD_LOW:
            self._messages = min(AHEAD_MAX, self._messages * AHEAD_GROWS)
        elif ready > self._messages * AHEAD_HIGH:
            self._messages = max(AHEAD_MIN, self._messages * AHEAD_SHRINKS)
        return max(0, round(self._messages) - ready)
