"""A run of repairs and clocks: replays with edits, tries that a timer brings, what nobody answers, and a deadline."""

from __future__ import annotations

from tests.chaos.points import Point
from tests.chaos.scenario import Asked, End, Scenario, no_drains

TOOLS = ("mend", "patient", "charge", "spawn_task")
WAITING_SECONDS = 2.5
"""Longer than the deadline and its grace, with a second for timers that fire in whole ones: the overdue task is still
in its wait then."""
PAUSE_SECONDS = 1.5
"""What is delivered again after a lease is told to wait for its timer."""
TRIES_MAX = 2
CHILD_OUTPUT = "t0 t1 "

# Nobody agrees to the charge, and nobody answers.
MENDED_SCRIPT = """!rate 50
!say 2
!call mend {"good": false, "key": "KEY.0"}
!call patient {"seconds": PAUSE, "key": "KEY.1"}
!call charge {"cents": 5, "key": "KEY.2"}
!call spawn_task {"input": "!fail rate_limit 1 PAUSE\\n!say 2"}
!ask Which quarter?
!then
All is mended.
""".replace("PAUSE", str(PAUSE_SECONDS))
MENDED = Asked(
    name="mended",
    body={"input": MENDED_SCRIPT, "tools": list(TOOLS)},
    ends=(End("task.completed", "All is mended.\n"),),
    child_outputs=(CHILD_OUTPUT,),
    results={
        "1-0": ("tool.completed", "mended"),
        "1-1": ("tool.completed", "in the end"),
        "1-2": ("approval.resolved", "expired"),
        "1-3": ("subtask.completed", CHILD_OUTPUT),
        "1-4": ("tool.failed", "input-expired"),
    },
    repairs={("1-0", 0): {"arguments": {"1-0": {"good": True, "key": "KEY.0"}}}},
    repaired_from_record=False,
    late_steps=frozenset({"1-1"}),
)
REWRITTEN = Asked(
    name="rewritten",
    body={"input": f"!fail server_error {TRIES_MAX}\n!say 9"},
    ends=(End("task.completed", "t0 t1 t2 "),),
    repairs={("1", 0): {"input": "!say 3", "instructions": "Count."}},
)
OVERDUE = Asked(
    name="overdue",
    body={"input": "!say 1\n!ask Who is there?", "deadline_seconds": 0.4},
    ends=(
        End("task.completed", "t0 ", "deadline"),
        End("task.completed", "", "deadline"),
        End("task.expired", None),
    ),
    racing_call="1-0",
)
NEWS = ("timers.", "dead", "task.retrying", "task.replayed")
"""By these names a point of another service than the steward is one that an agent's run does not come to."""


def _is_chosen(point: Point) -> bool:
    return (
        not point.held and no_drains(point) and (point.service == "steward" or any(news in point.what for news in NEWS))
    )


REPAIRS = Scenario(
    name="repairs",
    tasks=(MENDED, REWRITTEN, OVERDUE),
    tools=TOOLS,
    variables={
        "MESH_WAITING_HOURS": f"{WAITING_SECONDS / 3600:.6f}",
        "MESH_MAX_TRIES": str(TRIES_MAX),
    },
    # The tasks and a child; the second turn and a replayed one, and the child's second try; the calls, one of them
    # replayed and one tried again.
    stored={"TASKS": (4, 4), "TURNS": (3, 3), "TOOLS": (5, 5)},
    timers_fire=True,
    chosen=_is_chosen,
    meshes=2,
)
