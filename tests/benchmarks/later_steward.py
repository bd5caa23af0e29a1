"""`python -m tests.benchmarks.later_steward`: the steward, whose retention looks from a later day, at any pace.

The broker stamps what it stores with the time at which it does so: what is to be old only becomes so in this way.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from unittest import mock

import structlog

from mesh.broker.requests import Requests
from mesh.configuration.settings import Settings
from mesh.serving.service import run
from steward import __main__ as steward
from steward import retention
from steward.retention import Retention, time_of_the_broker
from steward.walks import walking

STEWARD = "tests.benchmarks.later_steward"
AHEAD_VARIABLE = "BENCHMARK_AHEAD_SECONDS"
"""How far its retention is ahead of the broker's clock."""
LATER_VARIABLE = "BENCHMARK_LATER"
"""Or the time by which it goes all the while, in RFC 3339. It has to be the only steward: no lease ends then."""
SHARE_VARIABLE = "BENCHMARK_SHARE"
"""How much of the time its rounds may take, 1 for all; else as ever."""
ROUND_EVENT = "benchmark.round"
"""What it logs of each round: `seconds`, and whether there was `more`."""

log = structlog.get_logger("benchmark")


class LaterRetention(Retention):
    """Retention that is ahead of its time, and tells how long its rounds take."""

    def __init__(self, requests: Requests, settings: Settings, owner: str) -> None:
        super().__init__(requests, settings, owner, later)

    async def round(self) -> bool:
        """One round."""
        began_at = time.monotonic()
        more = await super().round()
        log.info(ROUND_EVENT, seconds=time.monotonic() - began_at, more=more)
        return more


def later() -> datetime | None:
    """The time that it goes by."""
    if LATER_VARIABLE in os.environ:
        return datetime.fromisoformat(os.environ[LATER_VARIABLE])
    at = time_of_the_broker()
    return at + timedelta(seconds=float(os.environ[AHEAD_VARIABLE])) if at is not None else None


if __name__ == "__main__":
    share = float(os.environ.get(SHARE_VARIABLE, retention.SHARE_MAX))
    lease = timedelta() if LATER_VARIABLE in os.environ else walking.LEASE
    with (
        mock.patch.object(steward, "Retention", LaterRetention),
        mock.patch.object(retention, "SHARE_MAX", share),
        mock.patch.object(walking, "LEASE", lease),
    ):
        run("steward", steward.main)
