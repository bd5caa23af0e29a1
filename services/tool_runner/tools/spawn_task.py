"""The tool `spawn_task`: a call that becomes a task of its own, whose end is the call's result."""

from __future__ import annotations

import structlog

from contracts.codec import encode
from contracts.journal import events
from contracts.messages.work import ToolWork
from contracts.records.tools import DEPTH_MAX, SPAWN_TASK, SpawnArguments
from contracts.tasks import BODY_BYTES_MAX
from mesh.task.budget import share_of_budget
from mesh.task.state import TaskState
from mesh.task.subtasks import child_id, child_work, depth
from tool_runner.tools.tool import AWAITED, Call, Tool, ToolRefused, built_in

log = structlog.get_logger("tool_runner.tools.spawn_task")

TIMEOUT_SECONDS = 60.0
"""For one append. How long the sub-task takes has no bound here: the call waits for it without a runner."""


def spawn_task(pools: tuple[str, ...]) -> Tool[SpawnArguments]:
    """The tool, for a mesh with these pools."""

    async def run(arguments: SpawnArguments, call: Call) -> object:
        step, work = call.step, call.step.work
        if not isinstance(work, ToolWork):
            raise TypeError("not a claimed call")
        check(step.state, work.call, arguments, pools, step.fitting(BODY_BYTES_MAX))
        child = child_id(work.task, work.call, work.gen)
        # The child's own first turn is due from here on: who settles this call publishes it.
        started = await step.append_if(
            # What is left is known at the append alone: sub-tasks beside this one take of it as well.
            lambda stamp: events.SubtaskStarted(
                *stamp, call=work.call, child=child, budget_tokens=share_of_budget(step.state, work.call)
            ),
            lambda state: share_of_budget(state, work.call) != 0,
        )
        if started is None:
            raise _nothing_left()
        log.debug("subtask.started", child=child)
        return AWAITED

    return built_in(
        SPAWN_TASK,
        "Starts another task, and gives its output when it has ended. Several calls in one turn run in parallel. The "
        "task sees only its input and instructions, and of your tools those that you name.",
        SpawnArguments,
        run,
        timeout_seconds=TIMEOUT_SECONDS,
    )


def check(
    state: TaskState,
    call: str,
    arguments: SpawnArguments,
    pools: tuple[str, ...],
    request_bytes_max: int = BODY_BYTES_MAX,
) -> None:
    """Refuse what could never run, or may more than its parent. Raises `ToolRefused`."""
    parent, asked = state.queued, state.asked_for(call)
    if parent is None or asked is None or state.changed_at is None:
        raise ValueError("a call that no journal asks for")
    if depth(state) > DEPTH_MAX:
        raise ToolRefused(f"tasks can't be nested deeper than {DEPTH_MAX}")
    if share_of_budget(state, call) == 0:
        raise _nothing_left()
    foreign = sorted(set(arguments.tools or ()) - set(parent.request.tools or ()))
    if foreign:
        raise ToolRefused(f"this task itself has no tool {foreign[0]!r}")
    if parent.pool_bound and arguments.pool not in (None, state.pool):
        raise ToolRefused(f"this task may use no pool but {state.pool!r}: name none")
    pool = arguments.pool or parent.pool
    if pool not in pools:
        raise ToolRefused(f"there is no pool {pool!r}; {', '.join(pools)}")
    started = events.SubtaskStarted(
        state.task, state.task, state.tenant, 0, state.changed_at, call=call, child=child_id(state.task, call, 0)
    )
    if len(encode(child_work(state, asked, started).request)) > request_bytes_max:
        raise ToolRefused(f"the task is larger than {request_bytes_max} bytes")


def _nothing_left() -> ToolRefused:
    return ToolRefused("nothing is left of this task's budget of tokens for another task: finish without it")
