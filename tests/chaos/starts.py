"""A run of tasks that nobody asks for: one is started by a signal, one by a schedule."""

from __future__ import annotations

from tests.chaos.points import Point
from tests.chaos.scenario import Asked, End, Scenario

BY_SIGNAL = Asked(
    name="by-signal",
    body={"input": "!say 2"},
    ends=(End("task.completed", "t0 t1 "),),
    begun_by="signal",
)
BY_SCHEDULE = Asked(
    name="by-schedule",
    body={"input": "!say 3"},
    ends=(End("task.completed", "t0 t1 t2 "),),
    begun_by="schedule",
)


def _is_chosen(point: Point) -> bool:
    return not point.held and point.service == "steward"


STARTS = Scenario(
    name="starts",
    tasks=(BY_SIGNAL, BY_SCHEDULE),
    stored={"TASKS": (2, 2), "TURNS": (0, 0), "TOOLS": (0, 0)},
    chosen=_is_chosen,
    meshes=2,
)
