"""Clocks: wall time for what people read, and one that counts suspension for leases."""

from __future__ import annotations

import time
from datetime import UTC, datetime

_SUSPENSION_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def lease_clock() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one (Linux CLOCK_BOOTTIME)."""
    return time.clock_gettime(_SUSPENSION_CLOCK)
