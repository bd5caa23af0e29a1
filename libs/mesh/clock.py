"""Clocks: the mesh's time, which is the broker's, and one that counts suspension for leases.

A process reads no wall clock of its own for anything that others go by. It learns how far the broker's clock is ahead
of a clock that only goes forward, and tells the time by that: so whatever its own clock says, and however that jumps,
deadlines, waits and time stamps of all processes are of one clock, the one that timers fire by (ADR-8).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from mesh import faults

_SUSPENSION_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def lease_clock() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one (Linux CLOCK_BOOTTIME)."""
    return time.clock_gettime(_SUSPENSION_CLOCK)


def wall_clock() -> datetime:
    """What this machine takes the time to be, in UTC. For telling how far off it is, and until the broker is asked."""
    return datetime.fromtimestamp(time.time() + faults.clock_off_seconds(), UTC)


class MeshClock:
    """The broker's time, as learnt from its answers; before the first of them, this machine's."""

    def __init__(self) -> None:
        self._ahead_seconds: float | None = None
        """Unix time by the broker, less the lease clock."""

    @property
    def is_learnt(self) -> bool:
        """Whether the broker has told its time."""
        return self._ahead_seconds is not None

    def now(self) -> datetime:
        """The time, in UTC."""
        if self._ahead_seconds is None or not faults.BROKER_CLOCK_ON:
            return wall_clock()
        # As `lease_clock`, without a call of it: everything that is stamped asks.
        return datetime.fromtimestamp(time.clock_gettime(_SUSPENSION_CLOCK) + self._ahead_seconds, UTC)

    def learn(self, told: datetime, asked_at: float, answered_at: float) -> None:
        """Learn from an answer with the broker's time in it, asked for and come at these times of the lease clock.

        Off by half of the round trip at most. What agrees with the answer stays, so that this clock goes on evenly.
        """
        least, most = told.timestamp() - answered_at, told.timestamp() - asked_at
        if self._ahead_seconds is None or not least <= self._ahead_seconds <= most:
            self._ahead_seconds = (least + most) / 2

    def own_clock_ahead_seconds(self) -> float:
        """How far this machine's clock is ahead of the broker's; 0 before that is known."""
        if self._ahead_seconds is None:
            return 0.0
        return wall_clock().timestamp() - lease_clock() - self._ahead_seconds


MESH_CLOCK = MeshClock()
"""Of this process: it belongs to one mesh."""


def now() -> datetime:
    """The time of the mesh, in UTC: all that is decided, stamped or waited for goes by it."""
    return MESH_CLOCK.now()
