"""How long what is in hand takes, measured: so long a drain waits for it. Pure."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable

RECENT_MAX = 100
"""So many of the last ones of a consumer are remembered."""
MARGIN = 1.25
"""The next one may take somewhat longer than the longest of them."""
PATIENCE_SECONDS_MIN = 5.0
"""A drain waits for so long at least, however short all of them were."""


class StepTimes:
    """The seconds that deliveries of each consumer took, from their being begun to their answer."""

    def __init__(self) -> None:
        self._recent: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT_MAX))

    def add(self, consumer: str, seconds: float) -> None:
        """One of this consumer has come to its answer."""
        self._recent[consumer].append(seconds)

    def patience_seconds(self, running: Iterable[tuple[str, float]], bound_seconds: float) -> float:
        """How long to wait for these, each a consumer and the seconds that it has been running: until the last may end.

        Never more than the bound, and so long where nothing is known.
        """
        left = max((self._left(consumer, age) for consumer, age in running), default=0.0)
        return min(bound_seconds, max(PATIENCE_SECONDS_MIN, left))

    def _left(self, consumer: str, age_seconds: float) -> float:
        """How much longer one may take. One that has outlived all others may take as long again as up to now."""
        recent = self._recent.get(consumer)
        if not recent:
            return math.inf
        longest = MARGIN * max(recent)
        return longest - age_seconds if age_seconds < longest else age_seconds
