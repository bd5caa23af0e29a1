"""What a command to a task comes to: pure functions of the folded journal and the command.

Each answers with the next event to append, or that nothing is left to append. They are asked again after each append,
so that a command may lead to several events, and a steward that died in between is made up for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from contracts.errors import ErrorInfo
from contracts.identifiers import turn_of
from contracts.journal import events
from contracts.journal.parts import StepGen
from contracts.messages.control import (
    AnyCommand,
    ApprovalCommand,
    CancelCommand,
    ChildDoneCommand,
    DeadlineCommand,
    InputCommand,
    ReplayCommand,
    RetryCommand,
    RoomCommand,
)
from contracts.records.tools import ASK_USER, SPAWN_TASK
from mesh.journal.journal import Build
from mesh.task.budget import accounts_cut_short
from mesh.task.endings import ended_by_deadline
from mesh.task.outbox import OutboxMessage, messages_of_replayed, messages_refused, messages_to_go_on
from mesh.task.replays import edits_error
from mesh.task.state import TaskState

SUPERSEDED_REASON = "the user has said something else"


@dataclass(frozen=True, slots=True)
class ToAppend:
    """This event is next. `what` tells one decision from another: the event's type, and its call if it has one."""

    what: tuple[str, str]
    build: Build = field(compare=False)


@dataclass(frozen=True, slots=True)
class CarriedOut:
    """Nothing to append (any more): project, publish what is due after each of `steps`, ack."""

    steps: tuple[str, ...] = ()
    late: bool = False
    """The command changed nothing: somebody else was faster, or the task was over."""
    again: tuple[OutboxMessage, ...] = ()
    """Messages of steps that go on."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """As far as can be seen there is no such task, or no such call: true if the stream's leader says so too."""

    error: ErrorInfo


Outcome = ToAppend | CarriedOut | Unknown


def decide_command(state: TaskState, command: AnyCommand) -> Outcome:
    """What is next for a command."""
    if state.queued is None:
        return Unknown(ErrorInfo("task-unknown", f"there is no task {command.task}"))
    match command:
        case CancelCommand():
            return _cancel(state, command)
        case ApprovalCommand():
            return _approve(state, command)
        case InputCommand():
            return _receive(state, command)
        case ChildDoneCommand():
            return _join(state, command)
        case ReplayCommand():
            return _replay(state, command)
        case RetryCommand():
            return _retry(state, command)
        case RoomCommand():
            return _publish_what_was_refused(state, command)
        case DeadlineCommand():
            return _end_at_the_deadline(state)


def _cancel(state: TaskState, command: CancelCommand) -> Outcome:
    if state.terminal is not None:
        return CarriedOut(("1",))
    # Built anew for each try, so that it holds every token that lies before it.
    return ToAppend(
        ("task.cancelled", ""),
        lambda stamp: events.TaskCancelled(
            *stamp,
            output=state.output_so_far,
            by=command.by,
            reason=command.reason,
            **accounts_cut_short(state),
        ),
    )


def _approve(state: TaskState, command: ApprovalCommand) -> Outcome:
    call = command.call
    if state.terminal is not None:
        return CarriedOut(("1",), late=True)
    if call in state.resolutions or call in state.call_results:
        return CarriedOut((call,), late=True)
    if call in state.approvals:
        return ToAppend(
            ("approval.resolved", call),
            lambda stamp: events.ApprovalResolved(
                *stamp, call=call, decision=command.decision, by=command.by, reason=command.reason
            ),
        )
    if call in state.questions and command.decision == "expired":
        return ToAppend(("tool.failed", call), _unanswered(call, "input-expired", "nobody answered in time"))
    return Unknown(ErrorInfo("call-unknown", f"no approval was asked for call {call}"))


def _receive(state: TaskState, command: InputCommand) -> Outcome:
    if command.command in state.commands:
        answered = [call for call, result in state.call_results.items() if _is_of(result, command)]
        return CarriedOut((*answered, *state.refused_calls))
    if state.terminal is not None:
        return CarriedOut(("1",), late=True)
    questions = [asked.call for asked in state.open_questions if asked.call is not None]
    if command.mode == "redirect":
        # What waits for a person is called off first: with the input itself the command is done.
        for asked in state.open_approvals:
            return ToAppend(("approval.resolved", asked.call), _denied_by_message(asked.call, command))
        for call in questions[1:]:
            return ToAppend(("tool.failed", call), _unanswered(call, "called-off", SUPERSEDED_REASON))
    answers = questions[0] if questions else None
    return ToAppend(
        ("input.received", answers or ""),
        lambda stamp: events.InputReceived(
            *stamp, text=command.text, by=command.by, mode=command.mode, call=answers, command=command.command
        ),
    )


def _join(state: TaskState, command: ChildDoneCommand) -> Outcome:
    call = command.call
    if state.terminal is not None:
        return CarriedOut(("1",), late=True)
    if call in state.call_results:
        return CarriedOut((call,))
    asked = state.asked_for(call)
    started = state.children.get(call)
    if asked is None or asked.tool != SPAWN_TASK or (started is not None and started.child != command.child):
        return Unknown(ErrorInfo("call-unknown", f"call {call} has no sub-task {command.child}"))
    if started is None:
        # It ended before its runner could say that it had begun.
        return ToAppend(
            ("subtask.started", call), lambda stamp: events.SubtaskStarted(*stamp, call=call, child=command.child)
        )
    return ToAppend(
        ("subtask.completed", call),
        lambda stamp: events.SubtaskCompleted(
            *stamp,
            call=call,
            child=command.child,
            status=command.status,
            output=command.output,
            incomplete=command.incomplete,
            error=command.error,
            usage=command.usage,
            uncounted_tokens=command.uncounted_tokens,
        ),
    )


def _replay(state: TaskState, command: ReplayCommand) -> Outcome:
    if state.terminal is not None:
        return CarriedOut(("1",), late=True)
    named = [(each.step, each.gen) for each in command.steps]
    to_repair = [StepGen(*each) for each in named if each in state.dead_letters]
    if to_repair:
        error = edits_error(state, command.edits, [each.step for each in to_repair])
        if error is not None:
            return Unknown(error)
        edits = command.edits.recorded() if command.edits else None
        return ToAppend(
            ("task.replayed", ""),
            lambda stamp: events.TaskReplayed(
                *stamp, steps=to_repair, by=command.by, edits=edits, reason=command.reason
            ),
        )
    replayed = [step for step, gen in named if state.gen(step) > gen]
    if not replayed:
        names = ", ".join(f"{step} (gen {gen})" for step, gen in named)
        return Unknown(ErrorInfo("dead-letter-unknown", f"no dead letter of step {names} is open"))
    # Also where this changed nothing: who appended the replay may have died before it could publish.
    return CarriedOut((), late=True, again=tuple(due for step in replayed for due in messages_of_replayed(state, step)))


def _retry(state: TaskState, command: RetryCommand) -> Outcome:
    if state.terminal is not None:
        return CarriedOut(("1",), late=True)
    step_gen, tries = (command.step, command.gen), state.timer_tries.get((command.step, command.gen), 0)
    if command.gen > state.gen(command.step) or command.tries > tries:
        return Unknown(ErrorInfo("retry-unknown", f"step {command.step} did not fail {command.tries} times"))
    if step_gen not in state.retry_at or state.gen(command.step) != command.gen or command.tries < tries:
        return CarriedOut((), late=True)  # It was claimed, or has ended, since.
    return CarriedOut((), again=tuple(messages_to_go_on(state, command.step)))


def _publish_what_was_refused(state: TaskState, command: RoomCommand) -> Outcome:
    if state.terminal is None:
        at = (state.gen(command.step), state.message_epoch(command.step))
        if (command.gen, (command.tries, command.releases)) > at:
            return Unknown(ErrorInfo("step-unknown", f"step {command.step} has not come to gen {command.gen}"))
    return CarriedOut((), again=tuple(messages_refused(state, command)))


def _end_at_the_deadline(state: TaskState) -> Outcome:
    if state.terminal is not None:
        return CarriedOut(("1",), late=True)
    end = "task.completed" if state.output_so_far else "task.expired"
    return ToAppend((end, ""), lambda stamp: ended_by_deadline(stamp, state))


def _denied_by_message(call: str, command: InputCommand) -> Build:
    return lambda stamp: events.ApprovalResolved(
        *stamp, call=call, decision="denied", by=command.by, reason=SUPERSEDED_REASON
    )


def _unanswered(call: str, code: str, message: str) -> Build:
    return lambda stamp: events.ToolFailed(
        *stamp,
        turn=turn_of(call),
        call=call,
        tool=ASK_USER,
        error=ErrorInfo(code, message),
        outcome="failed",
    )


def _is_of(result: object, command: InputCommand) -> bool:
    return isinstance(result, events.InputReceived) and result.command == command.command
