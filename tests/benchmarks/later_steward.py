"""`python -m tests.benchmarks.later_steward`: the steward, whose retention looks from a later day.

The broker stamps what it stores with the time at which it does so: what is to be old only becomes so in this way.
"""

from __future__ import annotations

import os
from datetime import datetime
from functools import partial
from unittest import mock

from mesh.serving.service import run
from steward import __main__ as steward
from steward.retention import Retention

LATER_VARIABLE = "BENCHMARK_LATER"
"""The time by which retention goes all the while, in RFC 3339."""

if __name__ == "__main__":
    later = datetime.fromisoformat(os.environ[LATER_VARIABLE])
    with mock.patch.object(steward, "Retention", partial(Retention, clock=lambda: later)):
        run("steward", steward.main)
