"""Sub-tasks: the task that a call of `spawn_task` becomes. Pure: whoever makes it, however often, it is the same."""

from __future__ import annotations

import msgspec

from contracts.identifiers import derived_id
from contracts.journal import events, parts
from contracts.journal.parts import Parent
from contracts.messages.work import TurnWork
from contracts.records.tools import SpawnArguments
from contracts.tasks import TaskRequest
from mesh.task.state import TaskState


def child_id(task: str, call: str, gen: int) -> str:
    """The id of the task that a call becomes: a crash while spawning makes no twin (rule 15)."""
    return derived_id("child", task, call, str(gen))


def depth(state: TaskState) -> int:
    """How deep a child of this task lies."""
    parent = state.queued.parent if state.queued else None
    return (parent.depth if parent else 0) + 1


def child_work(state: TaskState, asked: parts.ToolCall, started: events.SubtaskStarted) -> TurnWork:
    """The child's first turn, as it goes into TASKS. Raises `msgspec.ValidationError` for arguments that are none."""
    queued, parents = state.queued, state.request
    if queued is None or parents is None:
        raise ValueError("there is no journal")
    arguments = msgspec.convert(asked.arguments, SpawnArguments)
    # A model gives no more than it has.
    allowed = set(parents.tools or ())
    tools = [tool for tool in arguments.tools or () if tool in allowed]
    named_pool = None if queued.pool_bound else arguments.pool
    request = TaskRequest(
        input=arguments.input,
        pool=named_pool or parents.pool,
        model=arguments.model or (None if named_pool else parents.model),
        priority=queued.priority,
        instructions=arguments.instructions,
        tools=tools or None,
        approval=parents.approval,
        max_turns=parents.max_turns,
        max_output_tokens=parents.max_output_tokens,
        temperature=parents.temperature,
    )
    return TurnWork(
        task=started.child,
        tenant=state.tenant,
        turn=1,
        pool=request.pool,
        priority=request.priority,
        request=request,
        accepted_at=started.time,
        deadline=queued.deadline,
        # A runner of before has not shared the budget out: each child had all of it.
        budget_tokens=queued.budget_tokens if started.budget_tokens is None else started.budget_tokens,
        parent=Parent(state.task, asked.call, depth(state)),
        # Whose task it is does not change with who carries it out: nobody approves the calls of their own.
        by=queued.by,
        pool_bound=queued.pool_bound,
        # What a child sends is as much of the rule's doing as what its parent does.
        trigger=queued.trigger,
    )
