"""How a worker comes back to a provider that has refused, and that nothing limits: with one turn, then more. No I/O."""

from __future__ import annotations

import math

from mesh.pacing.slots import NO_LIMIT

RAMP_SECONDS, STEP_SECONDS = 5.0, 0.25
"""Twice as many turns may have begun with each step; after so long there is no bound."""


class Ramp:
    """Of one worker. `until`: when the provider was shut last; times are the mesh's, in seconds since 1970."""

    def __init__(self) -> None:
        self._until = 0.0
        self._begun = 0

    def room(self, until: float, at: float) -> int:
        """How many turns may begin now."""
        if at - until > RAMP_SECONDS:
            return NO_LIMIT
        return max(0, int(2.0 ** ((at - until) / STEP_SECONDS)) - (self._begun if until == self._until else 0))

    def take(self, until: float, at: float) -> None:
        """One begins."""
        if at - until <= RAMP_SECONDS:
            self._until, self._begun = until, self._begun + 1 if until == self._until else 1

    def changes_at(self, until: float, at: float) -> float | None:
        """When the next one may; None if one may now."""
        return None if self.room(until, at) > 0 else until + STEP_SECONDS * math.log2(self._begun + 1)
