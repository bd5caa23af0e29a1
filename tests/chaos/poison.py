"""A run of a task that kills its worker at each delivery, until it is replayed with another input."""

from __future__ import annotations

from tests.chaos.points import Point
from tests.chaos.scenario import Asked, End, Scenario

DELIVERIES_MAX = 3
POISONED = Asked(
    name="poisoned",
    body={"input": f"!say 2\n!exit {DELIVERIES_MAX}"},
    ends=(End("task.completed", "t0 t1 t2 "),),
    repairs={("1", 0): {"input": "!say 3"}},
)


def _is_chosen(point: Point) -> bool:
    return not point.held and point.service == "steward"


POISON = Scenario(
    name="poison",
    tasks=(POISONED,),
    variables={"MESH_SCRIPTED_ALLOW_EXIT": "1", "MESH_MAX_DELIVER": str(DELIVERIES_MAX)},
    stored={"TASKS": (1, 1), "TURNS": (1, 1), "TOOLS": (0, 0)},
    dying="inference_worker",
    chosen=_is_chosen,
    meshes=2,
)
