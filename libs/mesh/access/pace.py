"""How often something may be done: at once for a while, and then at a pace. Pure."""

from __future__ import annotations


class Pace:
    """So many a second, and `burst` at once (a token bucket)."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left = burst
        self._at = 0.0

    def takes(self, at: float) -> bool:
        """Whether one more may be done at this time, which is counted then."""
        self._left = min(self._burst, self._left + max(0.0, at - self._at) * self._per_second)
        self._at = at
        if self._left < 1:
            return False
        self._left -= 1
        return True
