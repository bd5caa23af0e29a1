"""An agent's run: two parallel tools, an approval, a question and two sub-tasks."""

from __future__ import annotations

from tests.chaos.scenario import Answer, Asked, End, Scenario

TOOLS = ("add", "charge", "spawn_task")
CHILD_OUTPUTS = ("t0 t1 ", "t0 ")
ANSWER = "the third"
# The first child takes longer than a lease, and than a runner takes to start again: what is delivered again then meets
# a task that goes on.
SCRIPT = """!hang 0.3
!rate 50
!say 2
!call add {"a": 1, "b": 2, "key": "KEY.0"}
!call add {"a": 3, "b": 4, "key": "KEY.1"}
!call charge {"cents": 5, "key": "KEY.2"}
!then
!ask Which quarter?
!then
!call spawn_task {"input": "!rate 50\\n!say 2\\n!hang LONG"}
!call spawn_task {"input": "!say 1"}
!then
All is done.
"""
TASK = Asked(
    name="task",
    body={"input": SCRIPT, "tools": list(TOOLS)},
    ends=(End("task.completed", "All is done.\n"),),
    child_outputs=CHILD_OUTPUTS,
    results={
        "1-0": ("tool.completed", 3),
        "1-1": ("tool.completed", 7),
        "1-2": ("tool.completed", "charged 5"),
        "2-0": ("input.received", ANSWER),
        "3-0": ("subtask.completed", CHILD_OUTPUTS[0]),
        "3-1": ("subtask.completed", CHILD_OUTPUTS[1]),
    },
    answers=(
        Answer(
            {"approval.requested": 1, "tool.completed": 2}, {"kind": "approval", "call": "1-2", "decision": "approved"}
        ),
        Answer({"input.requested": 1}, {"kind": "message", "text": ANSWER}),
    ),
)
AGENT = Scenario(
    name="agent",
    chosen=lambda _: True,
    tasks=(TASK,),
    tools=TOOLS,
    # The task and its children, its later turns, its calls.
    stored={"TASKS": (3, 3), "TURNS": (3, 3), "TOOLS": (5, 5)},
)
