"""A run of tasks that all go by BACKLOG, with two stewards of which one moves them at a time."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.points import MOVING, Point
from tests.chaos.scenario import Asked, End, Scenario

CHILD_OUTPUT = "t0 "
PLAIN = tuple(
    Asked(name=f"plain-{number}", body={"input": f"!say {number}"}, ends=(End("task.completed", output),))
    for number, output in ((1, "t0 "), (2, "t0 t1 "), (3, "t0 t1 t2 "))
)
PARENT = Asked(
    name="parent",
    body={"input": '!call spawn_task {"input": "!say 1"}\n!then\nIt is said.\n', "tools": ["spawn_task"]},
    ends=(End("task.completed", "It is said.\n"),),
    child_outputs=(CHILD_OUTPUT,),
    results={"1-0": ("subtask.completed", CHILD_OUTPUT)},
)
ACCEPTED = ("after-publish:backlog", "before-publish:backlog", "after-publish:tasks", "before-publish:tasks")


def _is_chosen(point: Point) -> bool:
    if point.held:
        return False
    return point.what.startswith((*MOVING, *ACCEPTED)) and point.service in ("ingress", "steward")


MOVES = Scenario(
    name="moves",
    tasks=(*PLAIN, PARENT),
    tools=("spawn_task",),
    variables={"MESH_CONFIG": str(Path(__file__).with_suffix(".toml"))},
    # The tasks, and a child, which may go straight into its lane; the parent's second turn; its call.
    stored={"BACKLOG": (4, 5), "TASKS": (5, 5), "TURNS": (1, 1), "TOOLS": (1, 1)},
    modules={"steward": "tests.chaos.moving_steward"},
    beside=("steward",),
    chosen=_is_chosen,
    meshes=2,
)
