"""Which pools the free places of a worker go to: where backlog x weight is largest, with a minimum for each. Pure.

    share of a pool = half of its part by weight + half of its part by weight x backlog

of the pools that have work. So a pool with work has at least half of what its weight alone gives it, however much
others have waiting, and none starves. A share that has changed by less than a quarter is left as it is: backlogs that
go up and down by a few move nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

MINIMUM_PART = 0.5
CHANGE_PART = 0.25


def shares_of(weights: Mapping[str, float], backlogs: Mapping[str, int]) -> dict[str, float]:
    """The parts of 1 of those pools that have work; without any, those of all by weight."""
    busy = [pool for pool in weights if backlogs.get(pool, 0) > 0] or list(weights)
    alone = sum(weights[pool] for pool in busy)
    demand = sum(weights[pool] * backlogs.get(pool, 0) for pool in busy)
    return {
        pool: MINIMUM_PART * weights[pool] / alone
        + (1 - MINIMUM_PART) * (weights[pool] * backlogs.get(pool, 0) / demand if demand else weights[pool] / alone)
        for pool in busy
    }


def shifted(before: Mapping[str, float], wanted: Mapping[str, float]) -> dict[str, float]:
    """The shares that hold from now on: those before, unless one has changed by enough, or other pools have work."""
    if before.keys() == wanted.keys() and all(
        abs(wanted[pool] - share) <= CHANGE_PART * share for pool, share in before.items()
    ):
        return dict(before)
    return dict(wanted)


def allotted(places: int, shares: Mapping[str, float], most: Mapping[str, int]) -> dict[str, int]:
    """Whole places by pool: by share, no pool more than `most`; what one can't take goes to the others."""
    given = dict.fromkeys(most, 0)
    left = places
    open_pools = {pool: shares.get(pool, 0.0) for pool in most if most[pool] > 0}
    while left > 0 and open_pools:
        # Who is furthest behind its share gets the next one; of those without a share the first.
        pool = min(open_pools, key=lambda each: (given[each] + 1) / max(open_pools[each], 1e-9))
        given[pool] += 1
        left -= 1
        if given[pool] >= most[pool]:
            del open_pools[pool]
    return given
