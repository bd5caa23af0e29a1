"""What is due after a step: calls, timers, the next turn, news of the end; and what ends a task, as tables."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from contracts.actors import BY_MESH
from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.journal.events import StepReleased, TaskCompleted, TaskFailed
from contracts.journal.parts import FinishReason, Incomplete, Parent, Timings, ToolCall, Usage
from contracts.messages import control
from contracts.messages.control import RetryCommand, decode_control
from contracts.messages.work import ToolWork, TurnWork
from contracts.tasks import TaskRequest
from mesh.task.budget import budget_left, was_budget_left
from mesh.task.decisions import Settle, decide
from mesh.task.limits import (
    MAX_TURNS,
    incomplete_after,
    is_last_turn,
    max_turns,
    output_tokens_max,
    tokens_left,
)
from mesh.task.outbox import OutboxMessage, deadline_timer, messages_after, messages_to_go_on, unasked
from mesh.task.state import TaskState
from mesh.task.subtasks import child_work
from steward.command_decisions import CarriedOut, decide_command
from tests.unit.journals import CHILD, EXPIRES_AT, MESSAGE, PARENT, START, TASK, TENANT, HandMadeJournal, turn_work

Telling = Callable[[HandMadeJournal], object]

PLAIN = ToolCall("1-0", "add", {"a": 1})
PLAIN_1 = ToolCall("1-1", "add", {"a": 2})
GUARDED = ToolCall("1-0", "wipe", {"path": "/"}, approval=True)
QUESTION = ToolCall("1-0", "ask_user", {"question": "Which one?"})
CHILD_CALL = ToolCall("1-0", "spawn_task", {"input": "hi"})
NO = ErrorInfo("invalid-script", "no")
UNKNOWN = ToolCall("1-0", "nope", {}, error=ErrorInfo("tool-unknown", "no such tool"))


def journal_of(*tellings: Telling, request: TaskRequest | None = None) -> HandMadeJournal:
    """A journal whose first turn is claimed, and what else is told."""
    journal = HandMadeJournal()
    journal.queued(request)
    journal.claimed()
    for telling in tellings:
        telling(journal)
    return journal


def asks(*asked: ToolCall) -> Telling:
    return lambda journal: journal.asks(*asked)


def call_work(asked: ToolCall, gen: int = 0) -> OutboxMessage:
    work = ToolWork(
        task=TASK, tenant=TENANT, turn=1, call=asked.call, gen=gen, tool=asked.tool, arguments=asked.arguments
    )
    return OutboxMessage(f"tools.{asked.tool}", work, f"{TASK}.1.{asked.call}.g{gen}")


def turn_due(turn: int, gen: int = 0) -> OutboxMessage:
    work = TurnWork(task=TASK, tenant=TENANT, turn=turn, gen=gen, pool="default", priority="normal")
    return OutboxMessage(f"turns.default.normal.{TENANT}", work, f"{TASK}.{turn}.g{gen}")


def retry_timer(step: str, tries: int, seconds: int) -> OutboxMessage:
    """`seconds`: from the start of the journal to the event, whose delay is 30 s."""
    command = RetryCommand(task=TASK, tenant=TENANT, by="taskmesh", step=step, gen=0, tries=tries)
    place = f"retry.{TENANT}.{TASK}.{step}-g0-t{tries}"
    at = START + timedelta(seconds=seconds + 30)
    return OutboxMessage(f"timers.at.{place}", command, f"{TASK}.{step}.g0.t{tries}", at, f"timers.fired.{place}")


def timer(call: str = "1-0") -> OutboxMessage:
    command = control.ApprovalCommand(
        task=TASK, tenant=TENANT, by=BY_MESH, call=call, decision="expired", reason="nobody decided in time"
    )
    place = f"approval.{TENANT}.{TASK}.{call}"
    return OutboxMessage(
        f"timers.at.{place}", command, f"{TASK}.approval.{call}.timer", EXPIRES_AT, f"timers.fired.{place}"
    )


@pytest.mark.parametrize(
    ("tellings", "step", "dues"),
    [
        # Nothing is due after a turn that is not completed, or that is the last.
        ([], "1", []),
        ([lambda j: j.turn_completed()], "1", []),
        # The calls of a turn, those that have no result yet.
        ([asks(PLAIN, PLAIN_1)], "1", [call_work(PLAIN), call_work(PLAIN_1)]),
        ([asks(PLAIN, PLAIN_1), lambda j: j.tool_completed("1-0")], "1", [call_work(PLAIN_1)]),
        ([asks(PLAIN, PLAIN_1), lambda j: j.claimed("1-1")], "1", [call_work(PLAIN), call_work(PLAIN_1)]),
        # A replayed call is published as what it is now.
        (
            [asks(PLAIN), lambda j: j.dead_lettered("1-0"), lambda j: j.replayed(("1-0", 0))],
            "1-0",
            [call_work(PLAIN, gen=1)],
        ),
        # After a call: nothing while others are open, then the next turn, whoever was the last.
        ([asks(PLAIN, PLAIN_1), lambda j: j.tool_completed("1-0")], "1-0", []),
        ([asks(PLAIN, PLAIN_1), lambda j: j.tool_completed("1-0")], "1-1", [call_work(PLAIN_1)]),
        (
            [asks(PLAIN, PLAIN_1), lambda j: j.tool_completed("1-0"), lambda j: j.tool_failed("1-1")],
            "1-0",
            [turn_due(2)],
        ),
        ([asks(PLAIN), lambda j: j.tool_completed("1-0")], "1-0", [turn_due(2)]),
        ([asks(PLAIN), lambda j: j.tool_completed("1-0")], "1", [turn_due(2)]),
        # A next turn that was replayed is the replayed one.
        (
            [
                asks(PLAIN),
                lambda j: j.tool_completed("1-0"),
                lambda j: j.dead_lettered("2"),
                lambda j: j.replayed(("2", 0)),
            ],
            "1-0",
            [turn_due(2, gen=1)],
        ),
        # A call that needs an approval: a timer, then its work, then nothing but what comes after its result.
        ([asks(GUARDED)], "1", []),
        ([asks(GUARDED), lambda j: j.approval_requested()], "1", [timer()]),
        ([asks(GUARDED), lambda j: j.approval_requested(), lambda j: j.resolved()], "1-0", [call_work(GUARDED)]),
        (
            [asks(GUARDED), lambda j: j.approval_requested(), lambda j: j.resolved("denied")],
            "1-0",
            [turn_due(2)],
        ),
        # A question: a timer, and the next turn once it is answered.
        ([asks(QUESTION)], "1", []),
        ([asks(QUESTION), lambda j: j.input_requested()], "1", [timer()]),
        ([asks(QUESTION), lambda j: j.input_requested(), lambda j: j.told(call="1-0")], "1-0", [turn_due(2)]),
        # A sub-task that runs is waited for; its end is the call's.
        ([asks(CHILD_CALL)], "1", [call_work(CHILD_CALL)]),
        ([asks(CHILD_CALL), lambda j: j.child_started(), lambda j: j.child_ended()], "1-0", [turn_due(2)]),
        # A call that can't be carried out is never published.
        ([asks(UNKNOWN)], "1", []),
        ([asks(UNKNOWN), lambda j: j.tool_failed("1-0", "nope")], "1", [turn_due(2)]),
        # What the user said too late for a turn makes another one.
        ([lambda j: j.told(), lambda j: j.turn_completed()], "1", [turn_due(2)]),
        ([lambda j: j.turn_completed(), lambda j: j.told()], "1", [turn_due(2)]),
        # A step that waits for its next try: its timer, whoever settles, and nothing once it is claimed.
        ([lambda j: j.retrying(1, timer=True)], "1", [retry_timer("1", 1, seconds=2)]),
        ([lambda j: j.retrying(1)], "1", []),
        ([lambda j: j.retrying(1, timer=True), lambda j: j.claimed()], "1", []),
        ([asks(PLAIN), lambda j: j.retrying(2, "1-0", timer=True)], "1-0", [retry_timer("1-0", 2, seconds=3)]),
        ([asks(PLAIN), lambda j: j.retrying(2, "1-0", timer=True)], "1", [retry_timer("1-0", 2, seconds=3)]),
        (
            [lambda j: j.told(), lambda j: j.turn_completed(), lambda j: j.retrying(1, "2", timer=True)],
            "1",
            [retry_timer("2", 1, seconds=4)],
        ),
        # The end of a task that has no parent and no children.
        ([lambda j: j.turn_completed(), lambda j: j.completed()], "1", []),
        ([asks(PLAIN), lambda j: j.cancelled()], "1", []),
    ],
)
def test_what_is_due_after_a_step(tellings: list[Telling], step: str, dues: list[OutboxMessage]) -> None:
    assert messages_after(journal_of(*tellings).state, step) == dues


def test_the_timer_of_the_deadline_comes_after_who_is_at_work_could_end_the_task() -> None:
    journal = HandMadeJournal()
    assert deadline_timer(journal.state) == []
    journal.queued(deadline=EXPIRES_AT)
    (due,) = deadline_timer(journal.state)
    place = f"deadline.{TENANT}.{TASK}.task"
    assert (due.subject, due.fires_on) == (f"timers.at.{place}", f"timers.fired.{place}")
    assert due.message_id == f"{TASK}.deadline"
    assert due.at == EXPIRES_AT + timedelta(seconds=1)
    assert decode_control(encode(due.payload), due.fires_on or "") == due.payload


def test_nothing_of_a_task_that_has_ended_goes_on() -> None:
    state = journal_of(asks(PLAIN), lambda j: j.cancelled()).state
    assert messages_to_go_on(state, "1") == messages_to_go_on(state, "1-0") == []


def test_a_call_that_waits_for_a_person_does_not_go_on_but_waits() -> None:
    state = journal_of(asks(GUARDED), lambda j: j.approval_requested()).state
    assert messages_to_go_on(state, "1-0") == [timer()]


def test_a_try_that_a_timer_brings_says_so_in_its_message_and_its_id() -> None:
    state = journal_of(asks(PLAIN), lambda j: j.retrying(2, "1-0", timer=True)).state
    (due,) = messages_to_go_on(state, "1-0")
    assert due.message_id == f"{TASK}.1-0.g0.t2"
    assert isinstance(due.payload, ToolWork)
    assert (due.payload.tries, due.payload.gen) == (2, 0)


@pytest.mark.parametrize("step", ["1", "1-0"])
def test_a_step_that_is_released_at_its_next_try_goes_on_by_a_message_and_not_by_the_timer(step: str) -> None:
    """The timer has fired: published again it is a duplicate."""
    journal = journal_of(asks(PLAIN)) if step == "1-0" else journal_of()
    journal.retrying(2, step, timer=True)
    journal.add(StepReleased, step=step, gen=0, reason="drain")
    (due,) = messages_after(journal.state, step)
    assert (due.at, due.message_id) == (None, f"{TASK}.{step}.g0.t2.r1")
    again = RetryCommand(task=TASK, tenant=TENANT, by=BY_MESH, step=step, gen=0, tries=2)
    assert decide_command(journal.state, again) == CarriedOut((), late=True)


@pytest.mark.parametrize("calls", [(), (GUARDED,)])
def test_a_turn_that_is_released_with_nothing_but_its_end_to_write_goes_on_by_another_message(
    calls: tuple[ToolCall, ...],
) -> None:
    journal = journal_of(asks(*calls))
    journal.add(StepReleased, step="1", gen=0, reason="drain")
    assert [due.message_id for due in messages_after(journal.state, "1")] == [f"{TASK}.1.g0.r1"]


@pytest.mark.parametrize("step", ["1", "1-0"])
def test_a_sub_task_that_is_recorded_is_submitted_by_whoever_settles(step: str) -> None:
    journal = journal_of(asks(CHILD_CALL))
    journal.child_started()
    (due,) = messages_after(journal.state, step)
    assert isinstance(due.payload, TurnWork)
    assert (due.subject, due.message_id) == (f"tasks.default.normal.{TENANT}", f"{CHILD}.1.g0")
    assert (due.payload.task, due.payload.parent) == (CHILD, Parent(TASK, "1-0", 1))


@pytest.mark.parametrize("step", ["1", "1-0", "2"])
def test_the_end_of_a_task_calls_off_the_children_that_still_run(step: str) -> None:
    journal = journal_of(asks(CHILD_CALL, ToolCall("1-1", "spawn_task", {})))
    journal.child_started("1-0")
    journal.child_started("1-1", PARENT)
    journal.child_ended("1-1", PARENT)
    journal.cancelled()
    (due,) = messages_after(journal.state, step)
    assert (due.subject, due.message_id) == (f"control.cancel.{TENANT}", f"{CHILD}.cancel")
    assert isinstance(due.payload, control.CancelCommand)
    assert (due.payload.task, due.payload.by) == (CHILD, BY_MESH)


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (lambda j: j.completed("42"), "completed", {"output": "42"}),
        (lambda j: j.completed("4", "content_filter"), "completed", {"output": "4", "incomplete": "content_filter"}),
        (lambda j: j.cancelled(), "cancelled", {"output": "so far"}),
        (lambda j: j.add(TaskFailed, error=NO), "failed", {"error": NO}),
    ],
)
def test_the_end_of_a_sub_task_is_told_to_its_parent(end: Telling, status: str, said: dict[str, Any]) -> None:
    journal = HandMadeJournal()
    journal.queued(parent=Parent(PARENT, "3-1", 1))
    journal.claimed()
    journal.delta("so far")
    end(journal)
    (due,) = messages_after(journal.state, "1")
    assert (due.subject, due.message_id) == (f"control.child_done.{TENANT}", f"{TASK}.done")
    assert due.payload == control.ChildDoneCommand(
        task=PARENT, tenant=TENANT, by=BY_MESH, call="3-1", child=TASK, status=status, usage=Usage(), **said
    )


def test_nothing_is_due_in_a_journal_that_has_not_begun() -> None:
    assert messages_after(TaskState(TENANT, TASK), "1") == []


def test_work_that_is_due_has_the_deadline_of_its_task() -> None:
    journal = HandMadeJournal()
    deadline = START + timedelta(hours=1)
    journal.queued(TaskRequest(input="hi", pool="gpu", priority="high"), deadline=deadline)
    journal.claimed()
    journal.asks(PLAIN)
    (call,) = messages_after(journal.state, "1")
    journal.tool_completed()
    (turn,) = messages_after(journal.state, "1-0")
    assert isinstance(call.payload, ToolWork)
    assert isinstance(turn.payload, TurnWork)
    assert (call.payload.deadline, turn.payload.deadline) == (deadline, deadline)
    assert turn.subject == f"turns.gpu.high.{TENANT}"


# Which call is to be asked for


@pytest.mark.parametrize(
    ("tellings", "call"),
    [
        ([asks(PLAIN)], None),
        ([asks(CHILD_CALL)], None),
        ([asks(UNKNOWN)], "1-0"),
        ([asks(UNKNOWN), lambda j: j.tool_failed("1-0", "nope")], None),
        ([asks(QUESTION)], "1-0"),
        ([asks(QUESTION), lambda j: j.input_requested()], None),
        ([asks(GUARDED)], "1-0"),
        ([asks(GUARDED), lambda j: j.approval_requested()], None),
        ([asks(GUARDED), lambda j: j.approval_requested(), lambda j: j.resolved()], None),
        ([asks(GUARDED), lambda j: j.approval_requested(), lambda j: j.resolved("denied")], None),
        ([asks(PLAIN, ToolCall("1-1", "wipe", {}, approval=True))], "1-1"),
        ([asks(GUARDED, ToolCall("1-1", "ask_user", {})), lambda j: j.approval_requested()], "1-1"),
    ],
)
def test_which_call_is_to_be_asked_for_next(tellings: list[Telling], call: str | None) -> None:
    state = journal_of(*tellings).state
    completed = state.turn(1).completed
    assert completed is not None
    asked = unasked(state, completed)
    assert (asked.call if asked else None) == call


@pytest.mark.parametrize("asked", [UNKNOWN, QUESTION, GUARDED])
def test_nothing_is_asked_for_in_a_last_turn(asked: ToolCall) -> None:
    state = journal_of(asks(asked), request=TaskRequest(input="hi", max_turns=1)).state
    completed = state.turn(1).completed
    assert completed is not None
    assert unasked(state, completed) is None
    assert messages_after(state, "1") == []


# Limits


@pytest.mark.parametrize(
    ("request_fields", "calls", "finish_reason", "said", "last", "incomplete"),
    [
        ({}, 0, "stop", False, True, None),
        ({}, 1, "tool_calls", False, False, None),
        ({}, 0, "stop", True, False, None),
        ({}, 0, "content_filter", False, True, "content_filter"),
        ({}, 0, "content_filter", True, False, None),
        ({}, 1, "content_filter", False, False, None),
        ({"max_turns": 1}, 1, "content_filter", False, True, "content_filter"),
        ({}, 0, "length", False, True, "max_output_tokens"),
        ({}, 1, "length", False, True, "max_output_tokens"),
        ({}, 0, "length", True, True, "max_output_tokens"),
        ({"max_turns": 1}, 0, "stop", False, True, None),
        ({"max_turns": 1}, 1, "tool_calls", False, True, "max_turns"),
        ({"max_turns": 1}, 0, "stop", True, True, "max_turns"),
        ({"max_turns": 2}, 1, "tool_calls", False, False, None),
        ({"max_output_tokens": 2}, 0, "stop", False, True, None),
        ({"max_output_tokens": 2}, 1, "tool_calls", False, True, "max_output_tokens"),
        ({"max_output_tokens": 1}, 1, "tool_calls", False, True, "max_output_tokens"),
        ({"max_output_tokens": 3}, 1, "tool_calls", False, False, None),
        ({"budget_tokens": 3}, 0, "stop", False, True, None),
        ({"budget_tokens": 3}, 0, "stop", True, True, "budget"),
        ({"budget_tokens": 3}, 1, "tool_calls", False, True, "budget"),
        ({"budget_tokens": 2}, 1, "tool_calls", False, True, "budget"),
        ({"budget_tokens": 4}, 1, "tool_calls", False, False, None),
        ({"budget_tokens": 3}, 0, "length", False, True, "budget"),
        ({"budget_tokens": 4}, 0, "length", False, True, "max_output_tokens"),
        ({"budget_tokens": 3, "max_output_tokens": 2}, 1, "tool_calls", False, True, "max_output_tokens"),
        ({"budget_tokens": 3, "max_turns": 1}, 1, "tool_calls", False, True, "max_turns"),
    ],
)
def test_what_ends_a_task(
    request_fields: dict[str, int],
    calls: int,
    finish_reason: FinishReason,
    said: bool,
    last: bool,
    incomplete: Incomplete | None,
) -> None:
    """A turn that reads one token and puts out two."""
    journal = journal_of(request=TaskRequest(input="hi", **request_fields))  # type: ignore[arg-type]  # they are limits
    completed = journal.turn_completed(calls=calls, finish_reason=finish_reason, usage=Usage(1, 2))
    if said:
        journal.told()
    assert is_last_turn(journal.state, completed) == last
    if last:
        assert incomplete_after(journal.state, completed) == incomplete


@pytest.mark.parametrize(("seconds", "incomplete"), [(60, "max_output_tokens"), (2, "deadline"), (1, "deadline")])
def test_a_turn_that_was_cut_after_the_deadline_was_cut_by_it(seconds: int, incomplete: Incomplete) -> None:
    journal = HandMadeJournal()
    journal.queued(deadline=START + timedelta(seconds=seconds))
    journal.claimed()
    completed = journal.turn_completed(finish_reason="length", time=START + timedelta(seconds=2))
    assert incomplete_after(journal.state, completed) == incomplete


def test_limits_that_a_request_does_not_name() -> None:
    state = journal_of().state
    assert (max_turns(state), tokens_left(state)) == (MAX_TURNS, None)


def test_tokens_are_counted_over_all_turns_and_never_less_than_none_are_left() -> None:
    journal = journal_of(request=TaskRequest(input="hi", max_output_tokens=5))
    assert tokens_left(journal.state) == 5
    journal.asks(PLAIN, usage=Usage(100, 2))
    assert tokens_left(journal.state) == 3
    journal.tool_completed()
    journal.claimed("2", message=8)
    journal.turn_completed(turn=2, usage=Usage(100, 7))
    assert tokens_left(journal.state) == 0


def test_a_budget_is_of_what_is_read_and_put_out_and_bounds_what_a_turn_may_put_out() -> None:
    journal = journal_of(request=TaskRequest(input="hi", budget_tokens=50, max_output_tokens=40))
    assert (budget_left(journal.state), output_tokens_max(journal.state)) == (50, 40)
    first = journal.asks(PLAIN, usage=Usage(15, 5))
    assert (budget_left(journal.state), output_tokens_max(journal.state)) == (30, 30)
    journal.tool_completed()
    journal.claimed("2", message=8)
    journal.turn_completed(turn=2, usage=Usage(100, 7))
    assert (budget_left(journal.state), was_budget_left(journal.state, first)) == (0, 30)


def test_a_turn_that_led_on_is_not_the_last_because_a_later_one_has_used_up_the_budget() -> None:
    journal = journal_of(request=TaskRequest(input="hi", budget_tokens=10))
    first = journal.asks(PLAIN, usage=Usage(1, 2))
    journal.tool_completed()
    journal.claimed("2", message=8)
    journal.turn_completed(turn=2, usage=Usage(10, 7))
    assert not is_last_turn(journal.state, first)


def test_a_child_that_a_runner_of_before_has_started_may_use_up_as_much_as_its_parent() -> None:
    journal = journal_of(request=TaskRequest(input="hi", budget_tokens=10, tools=["spawn_task"]))
    journal.asks(CHILD_CALL)
    assert child_work(journal.state, CHILD_CALL, journal.child_started()).budget_tokens == 10


def test_a_turn_that_led_on_is_not_the_last_because_a_later_one_has_used_up_the_tokens() -> None:
    """Else a redelivery of its message would end the task with its text in the later one's place."""
    journal = journal_of(request=TaskRequest(input="hi", max_output_tokens=4))
    first = journal.asks(PLAIN, usage=Usage(1, 2))
    journal.claimed("1-0")
    journal.tool_completed()
    journal.claimed("2", message=8)
    second = journal.turn_completed("the answer", turn=2, calls=1, usage=Usage(1, 2))
    assert not is_last_turn(journal.state, first)
    assert is_last_turn(journal.state, second)
    assert decide(journal.state, turn_work(), MESSAGE, START) == Settle()
    journal.add(TaskCompleted, output="the answer", usage=Usage(2, 4), timings=Timings())
    assert not is_last_turn(journal.state, first)
