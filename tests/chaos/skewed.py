"""The run of repairs and clocks, with a worker whose wall clock is an hour ahead."""

from __future__ import annotations

from dataclasses import replace

from mesh import faults
from tests.chaos.points import Point
from tests.chaos.repairs import REPAIRS

AHEAD_SECONDS = 3600.0
TIMED = ("timers.", "append:task.retrying", "append:approval.resolved", "append:task.completed")
"""By these names a point is one at which a time is set, or has come."""


def _is_chosen(point: Point) -> bool:
    return not point.held and any(name in point.what for name in TIMED)


SKEWED = replace(
    REPAIRS,
    name="skewed",
    variables_of={"inference_worker": {faults.CLOCK_VARIABLE: str(AHEAD_SECONDS)}},
    chosen=_is_chosen,
)
