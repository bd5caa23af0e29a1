"""Fair order: which tenant of a lane goes next, by the tokens that each was served over its weight. Pure.

The one that was served least goes next (virtual token counters; Sheng et al., "Fairness in Serving Large Language
Models", OSDI 2024). A task counts by its estimate when it goes, set right by how far the tenant's estimates were off of
late, and by what it has used once that is known. A tenant that had nothing waiting has saved nothing up: it begins
where the others are by what is known of them. What they have under way counts for them alone: it was only thought to
cost so much, and whoever began behind that would pay for it for as long as it was wrong.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

EXPECTED_MIN = 64
EXPECTED_MAX = 10_000
"""Tasks of a tenant whose usage is still awaited, at most. Of more the oldest are taken to have cost what was thought.

How many there are goes by what the lane has under way, twice that: reports are a second behind, some are lost, and
older workers write none.
"""
TENANTS_MAX = 20_000
"""Tenants that are remembered. Of more, those that wait no longer are forgotten: they begin where the others are."""
NEWEST_PART = 0.1
"""What the newest task counts for in how much dearer a tenant's tasks are than they are thought to be."""
DEARER_MAX = 100.0
"""An estimate is not set right by more than so many times, either way."""


@dataclass(slots=True)
class _Tenant:
    """What a tenant was served, in tokens over weight, and what its tasks that are under way were thought to cost."""

    used: float = 0.0
    expected: deque[float] = field(default_factory=deque)
    expected_sum: float = 0.0
    dearer: float = 1.0
    """How many times more its tasks have cost of late than they were thought to."""
    since: int = 0
    """When it began to wait: who came later has a larger number."""

    @property
    def served(self) -> float:
        """What was used, and what is under way."""
        return self.used + self.dearer * self.expected_sum


class FairOrder:
    """One lane's tenants."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._waiting: set[str] = set()
        self._dearer = 1.0
        """That of the lane's tasks altogether, for tenants of whom nothing is known."""
        self._came = 0
        self._expected_max = EXPECTED_MAX

    def under_way(self, messages: int) -> None:
        """The lane has so many that lie ready, or that somebody works on."""
        self._expected_max = min(EXPECTED_MAX, EXPECTED_MIN + 2 * messages)

    def wait(self, tenants: Iterable[str]) -> None:
        """These have tasks that wait and may go, and no others.

        Who comes anew begins where the one is that was served least of those who waited all along; if there is none,
        where the one is that was served most. What it was served more than that before stays.
        """
        names = dict.fromkeys(tenants)
        new = [name for name in names if name not in self._waiting]
        if new:
            stayed = [self._tenants[name].used for name in names if name in self._waiting]
            known = (tenant.used for tenant in self._tenants.values())
            begin = min(stayed) if stayed else max(known, default=0.0)
            for name in new:
                tenant = self._of(name)
                tenant.used += max(0.0, begin - tenant.served)
                self._came += 1
                tenant.since = self._came
        self._waiting = set(names)
        if len(self._tenants) > TENANTS_MAX:
            self._tenants = {name: self._tenants[name] for name in names}

    def turns(self, candidates: Iterable[str]) -> Turns:
        """These take turns from now on."""
        return Turns(self, candidates)

    def moved(self, tenant: str, tokens: int, weight: float) -> None:
        """A task of the tenant goes that is thought to cost so much."""
        known, cost = self._of(tenant), tokens / weight
        known.expected.append(cost)
        known.expected_sum += cost
        while len(known.expected) > self._expected_max:
            self._ended(known, 1, known.dearer * known.expected[0])

    def used(self, tenant: str, tasks: int, tokens: int, weight: float) -> None:
        """The first turns of so many tasks have ended, and all turns of the tenant have used so many tokens.

        Nothing counts of a tenant that has nothing waiting, and whose tasks did not: nobody else waited for it.
        """
        known = self._tenants.get(tenant)
        if known is None or (tenant not in self._waiting and not known.expected):
            return
        self._ended(known, tasks, tokens / weight)

    def took_back(self, tenant: str) -> None:
        """A task that went last has not gone."""
        known = self._tenants.get(tenant)
        if known is not None and known.expected:
            known.expected_sum -= known.expected.pop()

    def served(self, tenant: str) -> float:
        """Tokens over weight."""
        known = self._tenants.get(tenant)
        return 0.0 if known is None else known.served

    def since(self, tenant: str) -> int:
        """When it began to wait, as a number that grows."""
        known = self._tenants.get(tenant)
        return 0 if known is None else known.since

    def _of(self, tenant: str) -> _Tenant:
        known = self._tenants.get(tenant)
        if known is None:
            known = self._tenants[tenant] = _Tenant(dearer=self._dearer)
        return known

    def _ended(self, known: _Tenant, tasks: int, cost: float) -> None:
        ended = min(tasks, len(known.expected))
        thought = sum(known.expected.popleft() for _ in range(ended))
        known.expected_sum = max(0.0, known.expected_sum - thought) if known.expected else 0.0
        known.used += cost
        if thought > 0:
            dearer = min(DEARER_MAX, max(1 / DEARER_MAX, cost / thought))
            part = 1 - (1 - NEWEST_PART) ** ended
            known.dearer += (dearer - known.dearer) * part
            self._dearer += (dearer - self._dearer) * part


class Turns:
    """Who goes next of some tenants; of equals, who has waited for longest."""

    def __init__(self, order: FairOrder, candidates: Iterable[str]) -> None:
        self._order = order
        self._heap = [(order.served(name), order.since(name), name) for name in candidates]
        heapq.heapify(self._heap)
        self._passed: dict[str, float] = {}

    def next(self) -> str | None:
        """The one whose turn it is; None if nobody is left."""
        return self._heap[0][2] if self._heap else None

    def soon(self, count: int) -> list[str]:
        """The first so many, if each goes once."""
        return [name for _, _, name in heapq.nsmallest(count, self._heap)]

    def went(self, tokens: int, weight: float) -> None:
        """A task of theirs goes that is thought to cost so much."""
        name = self._heap[0][2]
        self._order.moved(name, tokens, weight)
        self._replace(name)

    def passed(self, tokens: int, weight: float) -> None:
        """A later turn of theirs goes, of which nothing is awaited. It counts for so much in these turns alone."""
        name = self._heap[0][2]
        self._passed[name] = self._passed.get(name, 0.0) + tokens / weight
        self._replace(name)

    def _replace(self, name: str) -> None:
        key = self._order.served(name) + self._passed.get(name, 0.0)
        heapq.heapreplace(self._heap, (key, self._order.since(name), name))

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
