"""What a task's state looks like from outside: its status record, and a snapshot of its turns. Pure."""

from __future__ import annotations

from contracts.journal import edge_events, events
from contracts.journal.parts import Usage
from contracts.records.status import Metadata, OpenApproval, OpenDeadLetter, OpenQuestion, TaskRecord
from mesh.task.budget import usage_so_far
from mesh.task.state import TaskState


def record(state: TaskState) -> TaskRecord:
    """The status record of a task whose journal has begun."""
    queued = state.queued
    if queued is None or state.changed_at is None:
        raise ValueError("there is no journal to make a record of")
    end = state.terminal
    last_claim = state.last_turn_claim
    dead_letters = state.open_dead_letters if end is None else []
    completed = end if isinstance(end, events.TaskCompleted) else None
    stopped = end if isinstance(end, events.TaskCancelled | events.TaskExpired) else None
    metadata: Metadata | None = queued.request.metadata
    failure = end.error if isinstance(end, events.TaskFailed) else None
    return TaskRecord(
        id=state.task,
        tenant=state.tenant,
        status=state.status,
        pool=state.pool,
        priority=queued.priority,
        created_at=queued.accepted_at,
        updated_at=state.changed_at,
        sequence=state.revision,
        turn=max(state.turns, default=None),
        output=completed.output if completed else (stopped.output if stopped else None),
        incomplete=completed.incomplete if completed else None,
        usage=completed.usage if completed else _used_by_ended(state),
        error=failure or (dead_letters[0].error if dead_letters else None),
        timings=completed.timings if completed else None,
        model=(state.turn(last_claim.turn).model or (None, None))[1] if last_claim else None,
        deadline=queued.deadline,
        metadata=metadata,
        approvals=[_open_approval(asked) for asked in state.open_approvals if end is None] or None,
        questions=[_open_question(asked) for asked in state.open_questions if end is None] or None,
        dead_letters=[OpenDeadLetter(step=each.step, gen=each.gen, code=each.error.code) for each in dead_letters]
        or None,
        parent=queued.parent,
        tree_usage=end.tree_usage if end else None,
        over_budget_tokens=end.over_budget_tokens if end else None,
        by=queued.by,
    )


def _used_by_ended(state: TaskState) -> Usage | None:
    """What a task has used that has ended without an output; None if nobody has told of anything."""
    if state.terminal is None:
        return None  # Each claim writes a record, and each acceptance.
    used = usage_so_far(state)
    return used if used != Usage() else None


def _open_approval(asked: events.ApprovalRequested) -> OpenApproval:
    return OpenApproval(call=asked.call, tool=asked.tool, arguments=asked.arguments, expires_at=asked.expires_at)


def _open_question(asked: events.InputRequested) -> OpenQuestion:
    return OpenQuestion(question=asked.question, call=asked.call, expires_at=asked.expires_at)


def snapshot_turns(state: TaskState) -> list[edge_events.SnapshotTurn]:
    """The turns' texts so far, for a client that missed some of the journal."""
    return [
        edge_events.SnapshotTurn(
            turn=number,
            text=turn.text,
            reasoning=turn.reasoning_text,
            completed=turn.completed is not None,
        )
        for number, turn in sorted(state.turns.items())
    ]
