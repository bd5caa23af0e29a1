"""Runs that go on until their tasks are packed, and in the second one until their packs are dropped."""

from __future__ import annotations

from dataclasses import replace

from tests.chaos.points import DROPPING, WALKING, Point
from tests.chaos.repairs import REWRITTEN, TRIES_MAX
from tests.chaos.runner import large_text
from tests.chaos.scenario import Asked, End, Scenario
from tool_runner.results import BEGINNING_BYTES

TOOLS = ("large", "spawn_task")
PACK_SECONDS = 1.5
"""After its end a task is packed. Whose lease ended meanwhile may come to its end at about that time."""
DELTA_SECONDS = 0.7
"""After its turn's end a delta is purged, where its task goes on or not."""
KEPT_SECONDS = 6.0
CHILD_OUTPUT = "t0 t1 "
SAID = Asked(
    name="said",
    body={
        "input": '!rate 100\n!say 20\n!call spawn_task {"input": "!say 2"}\n!then\nAll is said.\n',
        "tools": ["spawn_task"],
    },
    ends=(End("task.completed", "All is said.\n"),),
    child_outputs=(CHILD_OUTPUT,),
    results={"1-0": ("subtask.completed", CHILD_OUTPUT)},
)
LARGE = Asked(
    name="large",
    body={"input": '!call large {"key": "KEY.0"}\n!then\nThat was much.\n', "tools": ["large"]},
    ends=(End("task.completed", "That was much.\n"),),
    results={"1-0": ("tool.completed", f'"{large_text()}"'[:BEGINNING_BYTES])},
)
CONTINUED = Asked(
    name="continued",
    body={"input": "!say 2", "continues": "CONTINUES"},
    ends=(End("task.completed", "t0 t1 "),),
)
"""It goes on with `said`, while that is about to be packed."""


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.6f}"


TIMES_MAX = 2
"""A pack behind another one in its batch is another point than the first; a third is not."""


def _is_chosen(point: Point) -> bool:
    if point.held:
        return False
    if not point.is_of_archive:
        # Who writes last into a task, and comes back once that is packed.
        return point.fault == "pause" and point.what == "append:task.completed"
    once = point.fault != "kill" or point.what.startswith(WALKING) or point.what == "after-purge:deltas"
    return point.which <= (1 if once else TIMES_MAX)


ARCHIVE = Scenario(
    name="archive",
    tasks=(SAID, LARGE, REWRITTEN),
    tools=TOOLS,
    variables={
        "MESH_MAX_TRIES": str(TRIES_MAX),
        "MESH_PACK_AFTER_HOURS": _hours(PACK_SECONDS),
        "MESH_DELTA_RETENTION_HOURS": _hours(DELTA_SECONDS),
    },
    # The tasks, a child, the one that continues, and a first turn again; second turns and a replayed one; calls.
    stored={"TASKS": (6, 6), "TURNS": (3, 3), "TOOLS": (2, 2)},
    modules={"steward": "tests.chaos.steward"},
    archives=True,
    chosen=_is_chosen,
    meshes=2,
)


def _is_chosen_of_dropped(point: Point) -> bool:
    # Whichever of two stewards comes to it first. All walks are kept alike.
    if point.held or point.which > 1 or not point.is_of_archive:
        return False
    if "-walk:" in point.what and not point.what.endswith((":packs", ":sweep_records")):
        return False
    return point.fault == "kill" or (point.fault == "broker" and point.what.startswith(DROPPING))


DROPPED = replace(
    ARCHIVE,
    name="dropped",
    variables={**ARCHIVE.variables, "MESH_RETENTION_DAYS": f"{KEPT_SECONDS / 86_400:.8f}"},
    # No first turn again, and a message that nobody serves; less where the tasks are gone so soon.
    stored={"TASKS": (4, 5), "TURNS": (3, 3), "TOOLS": (2, 3)},
    beside=("steward",),
    kept_seconds=KEPT_SECONDS,
    chosen=_is_chosen_of_dropped,
)
