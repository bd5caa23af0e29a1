"""How many more of a tenant may wait in a lane, without a question to the broker for each of them."""

from __future__ import annotations

from typing import Final

from contracts.subjects import LaneSubject

COUNTED_SECONDS: Final = 1.0
"""So long a count is good."""
SHARE: Final = 32
"""And for this part of the room that it found: the less room there is, the sooner it is counted again, and at last for
each task. One ingress keeps to the bound. Each further one may go so much of it beyond, if it counted before the others
filled the lane within that moment."""
LANES_MAX: Final = 10_000


class CountedRooms:
    """The rooms that were counted lately. Times are seconds on any clock."""

    def __init__(self) -> None:
        self._counted: dict[tuple[LaneSubject, int], list[float]] = {}
        """By lane and bound: until when a count is good, and for how many more."""

    def takes(self, lane: LaneSubject, bound: int, at: float) -> bool:
        """Whether there is room for one more, by what is known; then it has taken it."""
        counted = self._counted.get((lane, bound))
        if counted is None or at >= counted[0] or counted[1] < 1:
            return False
        counted[1] -= 1
        return True

    def count(self, lane: LaneSubject, bound: int, waiting: int, at: float) -> bool:
        """Go by a count from now on. Whether there is room for the one that it was made for."""
        if len(self._counted) >= LANES_MAX:
            self._counted.clear()
        self._counted[lane, bound] = [at + COUNTED_SECONDS, (bound - waiting) // SHARE - 1]
        return waiting < bound
