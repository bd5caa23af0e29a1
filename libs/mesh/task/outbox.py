"""The outbox: the messages that a journal calls for. Pure; `mesh.journal.settling.publish_outbox` sends them.

Whoever settles a step publishes what is due after it. Any of it may be sent twice: the message id sees to that within
the duplicate window, and the binding of a claimed step to its message after it (rule 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from contracts import subjects
from contracts.actors import BY_MESH
from contracts.identifiers import call_message_id, turn_message_id, turn_of, turn_step
from contracts.journal import events, parts
from contracts.messages import control
from contracts.messages.control import retry_message_id, retry_timer_name
from contracts.messages.work import ToolWork, TurnWork
from contracts.records.tools import ASK_USER
from mesh.task.budget import tree_usage, uncounted_tokens
from mesh.task.limits import is_last_turn
from mesh.task.state import TaskState
from mesh.task.subtasks import child_work

DEADLINE_GRACE_SECONDS = 1.0
"""How long after the deadline its timer fires: who is at work ends the task itself, and sooner."""


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """A message to publish. `at`: a timer, which fires then onto `fires_on`.

    `refused`: what a timer brings instead if its stream has no room; None for what can't wait so.
    """

    subject: str
    payload: TurnWork | ToolWork | control.AnyCommand
    message_id: str
    at: datetime | None = None
    fires_on: str | None = None
    refused: control.RoomCommand | None = field(default=None, compare=False)


def unasked(state: TaskState, completed: events.TurnCompleted) -> parts.ToolCall | None:
    """The first call of a turn for which its worker has still to record a refusal, a question or an approval."""
    if is_last_turn(state, completed):
        return None
    for asked in completed.calls:
        if asked.call in state.call_results:
            continue
        if asked.error is not None:
            return asked
        if asked.tool == ASK_USER and asked.call not in state.questions:
            return asked
        if asked.approval and asked.call not in state.approvals:
            return asked
    return None


def lacks_its_end(state: TaskState, step: str) -> bool:
    """Whether a step is a completed turn of which its worker has still to record the end, or what is `unasked`."""
    completed = state.turn(turn_of(step)).completed if "-" not in step else None
    return completed is not None and (is_last_turn(state, completed) or unasked(state, completed) is not None)


def messages_after(state: TaskState, step: str) -> list[OutboxMessage]:
    """What is due once a step is done: a turn's calls, a turn after the last result, or news of the task's end.

    Of a step that waits for its next try: the timer that brings it; of one that was released: its message.
    """
    if state.terminal is not None:
        return _after_the_end(state)
    if (step, state.gen(step)) in state.retry_at:
        return _retry_timer(state, step)
    if (step, state.gen(step)) in state.released and (not state.has_result(step) or lacks_its_end(state, step)):
        return messages_to_go_on(state, step)
    completed = state.turn(turn_of(step)).completed
    if completed is None or is_last_turn(state, completed):
        return []
    open_calls = [asked for asked in completed.calls if asked.call not in state.call_results]
    if not open_calls:
        return _next_turn(state, completed.turn + 1)
    if "-" in step:
        open_calls = [asked for asked in open_calls if asked.call == step]
    return [
        due
        for asked in open_calls
        for due in (
            _retry_timer(state, asked.call)
            if (asked.call, state.gen(asked.call)) in state.retry_at
            else _of_call(state, completed.turn, asked)
        )
    ]


def messages_of_replayed(state: TaskState, step: str) -> list[OutboxMessage]:
    """What is due of a step that was replayed: its message, or the timer of its next try if it has failed since."""
    if state.terminal is None and (step, state.gen(step)) in state.retry_at:
        # Its message would come too early, and then the timer's own would be its duplicate.
        return _retry_timer(state, step)
    return messages_to_go_on(state, step)


def messages_to_go_on(state: TaskState, step: str) -> list[OutboxMessage]:
    """The message of a step that goes on: after a replay, or for its next try."""
    asked = state.asked_for(step) if "-" in step else None
    if state.terminal is not None or ("-" in step and asked is None):
        return []
    return _turn(state, turn_of(step)) if asked is None else _of_call(state, turn_of(step), asked)


def messages_refused(state: TaskState, command: control.RoomCommand) -> list[OutboxMessage]:
    """What was refused for want of room, if it is still due: a step's own message, or news of the task's end.

    Nothing if somebody has published it since, and the step has moved on.
    """
    if state.terminal is not None:
        return _after_the_end(state)
    step, gen = command.step, state.gen(command.step)
    moved_on = (gen, state.message_epoch(step)) != (command.gen, (command.tries, command.releases))
    # A call that became a task of its own was claimed for that: it is the child's message that is due.
    claimed = (step, gen) in state.bindings and step not in state.children
    # A turn that has its result may have been replayed for what it leads to.
    if moved_on or claimed or step in state.call_results:
        return []
    return messages_to_go_on(state, step)


def room_timer(command: control.RoomCommand, at: datetime) -> OutboxMessage:
    """The timer of what was refused. Without a message id: one that is published again takes the other's place."""
    place = ("room", command.tenant, command.task, command.step)
    return OutboxMessage(subjects.timer_at(*place), command, "", at, subjects.timer_fired(*place))


def deadline_timer(state: TaskState) -> list[OutboxMessage]:
    """The timer of the task's deadline, if it has one."""
    deadline = state.queued.deadline if state.queued else None
    if deadline is None:
        return []
    command = control.DeadlineCommand(task=state.task, tenant=state.tenant, by=BY_MESH)
    place = ("deadline", state.tenant, state.task, "task")
    at = deadline + timedelta(seconds=DEADLINE_GRACE_SECONDS)
    message_id = control.deadline_message_id(state.task)
    return [OutboxMessage(subjects.timer_at(*place), command, message_id, at, subjects.timer_fired(*place))]


def timers_over(state: TaskState, steps: tuple[str, ...]) -> list[str]:
    """Filters of timers that nobody waits for any more: a task's at its end, a call's with its answer.

    Only where the fold says that there can be any: most tasks have none. What is left all the same fires in vain.
    """
    if state.terminal is not None:
        deadline = state.queued is not None and state.queued.deadline is not None
        there = {
            "deadline": deadline,
            "approval": bool(state.approvals or state.questions),
            "retry": bool(state.timer_tries),
        }
        return [subjects.timers_of(kind, state.tenant, state.task) for kind, any_is in there.items() if any_is]
    answered = (
        step
        for step in steps
        if (step in state.approvals and step in state.resolutions)
        or (step in state.questions and step in state.call_results)
    )
    return [subjects.timer_at("approval", state.tenant, state.task, call) for call in answered]


def _retry_timer(state: TaskState, step: str) -> list[OutboxMessage]:
    gen = state.gen(step)
    tries = state.timer_tries[step, gen]
    command = control.RetryCommand(task=state.task, tenant=state.tenant, by=BY_MESH, step=step, gen=gen, tries=tries)
    place = ("retry", state.tenant, state.task, retry_timer_name(step, gen, tries))
    message_id = retry_message_id(state.task, step, gen, tries)
    return [
        OutboxMessage(
            subjects.timer_at(*place), command, message_id, state.retry_at[step, gen], subjects.timer_fired(*place)
        )
    ]


def _next_turn(state: TaskState, turn: int) -> list[OutboxMessage]:
    step = turn_step(turn)
    if (step, state.gen(step)) in state.retry_at:
        return _retry_timer(state, step)
    return _turn(state, turn)


def _turn(state: TaskState, turn: int) -> list[OutboxMessage]:
    queued = state.queued
    if queued is None:
        return []
    step = turn_step(turn)
    gen = state.gen(step)
    tries, releases = state.message_epoch(step)
    work = TurnWork(
        task=state.task,
        tenant=state.tenant,
        turn=turn,
        gen=gen,
        tries=tries,
        releases=releases,
        pool=state.pool,
        priority=queued.priority,
        deadline=queued.deadline,
    )
    subject = subjects.turns(state.pool, queued.priority, state.tenant)
    first = turn_message_id(state.task, turn, gen)
    return [OutboxMessage(subject, work, _message_id(state, step, first), refused=_refused(state, step))]


def _message_id(state: TaskState, step: str, first: str) -> str:
    """The message id of a step's work; `first` is that of the one before all timers and releases."""
    tries, releases = state.message_epoch(step)
    timed = retry_message_id(state.task, step, state.gen(step), tries) if tries else first
    return f"{timed}.r{releases}" if releases else timed


def _of_call(state: TaskState, turn: int, asked: parts.ToolCall) -> list[OutboxMessage]:
    """A call's work, the timer of what it waits for, or the sub-task that it has become."""
    if asked.error is not None:
        return []
    started = state.children.get(asked.call)
    if started is not None:
        child = child_work(state, asked, started)
        subject = subjects.tasks(child.pool, child.priority, child.tenant)
        message_id = turn_message_id(child.task, 1, 0)
        return [OutboxMessage(subject, child, message_id, refused=_refused(state, asked.call))]
    if asked.tool == ASK_USER:
        question = state.questions.get(asked.call)
        return _timer(state, asked.call, question.expires_at) if question else []
    if asked.approval and asked.call not in state.resolutions:
        approval = state.approvals.get(asked.call)
        return _timer(state, asked.call, approval.expires_at) if approval else []
    gen = state.gen(asked.call)
    tries, releases = state.message_epoch(asked.call)
    work = ToolWork(
        task=state.task,
        tenant=state.tenant,
        turn=turn,
        call=asked.call,
        gen=gen,
        tries=tries,
        releases=releases,
        tool=asked.tool,
        arguments=asked.arguments,
        deadline=state.queued.deadline if state.queued else None,
    )
    first = call_message_id(state.task, turn, asked.call, gen)
    message_id = _message_id(state, asked.call, first)
    return [OutboxMessage(subjects.tools(asked.tool), work, message_id, refused=_refused(state, asked.call))]


def _refused(state: TaskState, step: str) -> control.RoomCommand:
    tries, releases = state.message_epoch(step)
    return control.RoomCommand(
        task=state.task,
        tenant=state.tenant,
        by=BY_MESH,
        step=step,
        gen=state.gen(step),
        tries=tries,
        releases=releases,
    )


def _timer(state: TaskState, call: str, at: datetime | None) -> list[OutboxMessage]:
    if at is None:
        return []
    command = control.ApprovalCommand(
        task=state.task, tenant=state.tenant, by=BY_MESH, call=call, decision="expired", reason="nobody decided in time"
    )
    place = ("approval", state.tenant, state.task, call)
    message_id = control.approval_message_id(state.task, call, "timer")
    return [OutboxMessage(subjects.timer_at(*place), command, message_id, at, subjects.timer_fired(*place))]


def _after_the_end(state: TaskState) -> list[OutboxMessage]:
    """News for the parent, and cancels for the children that still run."""
    dues: list[OutboxMessage] = []
    end, queued = state.terminal, state.queued
    if queued is not None and queued.parent is not None:
        output = None if isinstance(end, events.TaskFailed) else getattr(end, "output", None)
        done = control.ChildDoneCommand(
            task=queued.parent.task,
            tenant=state.tenant,
            by=BY_MESH,
            call=queued.parent.call,
            child=state.task,
            status=state.status,
            output=output,
            incomplete=end.incomplete if isinstance(end, events.TaskCompleted) else None,
            error=end.error if isinstance(end, events.TaskFailed) else None,
            usage=tree_usage(state),
            uncounted_tokens=uncounted_tokens(state) or None,
        )
        subject = subjects.control("child_done", state.tenant)
        message_id = control.child_done_message_id(state.task)
        dues.append(OutboxMessage(subject, done, message_id, refused=_refused(state, turn_step(1))))
    for call, started in state.children.items():
        if call not in state.call_results:
            cancel = control.CancelCommand(
                task=started.child, tenant=state.tenant, by=BY_MESH, reason="the task that it belongs to is over"
            )
            subject = subjects.control("cancel", state.tenant)
            message_id = control.cancel_message_id(started.child)
            dues.append(OutboxMessage(subject, cancel, message_id, refused=_refused(state, turn_step(1))))
    return dues
