"""Commands to a task: what the steward appends, and after which steps it publishes what is due, as tables."""

from __future__ import annotations

import pytest

from contracts.errors import ErrorInfo
from contracts.journal.events import (
    ApprovalResolved,
    InputReceived,
    SubtaskCompleted,
    SubtaskStarted,
    TaskCancelled,
    ToolFailed,
    event_type,
)
from contracts.journal.parts import ToolCall
from contracts.messages import control
from contracts.messages.control import AnyCommand
from mesh.task.state import TaskState
from steward.command_decisions import SUPERSEDED_REASON, CarriedOut, ToAppend, Unknown, decide_command
from tests.unit.commanded import (
    CANCEL,
    GUARDED,
    PLAIN,
    QUESTION,
    QUESTION_1,
    SPAWN,
    Telling,
    answered,
    approval_asked,
    approved,
    asked_user,
    asks,
    carried_out,
    child_done,
    child_ended,
    child_started,
    denied,
    ended,
    journal_of,
)
from tests.unit.journals import CHILD, PARENT, TASK, TENANT, HandMadeJournal


def says(text: str = "and this?", mode: control.InputMode = "append", command: str = "c") -> control.InputCommand:
    return control.InputCommand(task=TASK, tenant=TENANT, by="user", text=text, mode=mode, command=command)


def decides(decision: control.Decision, call: str = "1-0") -> control.ApprovalCommand:
    return control.ApprovalCommand(task=TASK, tenant=TENANT, by="user", call=call, decision=decision, reason="why")


@pytest.mark.parametrize("command", [CANCEL, says(), says(mode="redirect"), decides("approved"), child_done()])
def test_a_command_to_a_task_that_is_not_there_is_unknown(command: AnyCommand) -> None:
    outcome = decide_command(TaskState(TENANT, TASK), command)
    assert isinstance(outcome, Unknown)
    assert outcome.error.code == "task-unknown"


@pytest.mark.parametrize(
    ("command", "late"),
    [
        # A cancel that finds the task over has got what it wanted, and must not be told as late.
        (CANCEL, False),
        (says(), True),
        (says(mode="redirect"), True),
        (decides("approved"), True),
        (child_done(), True),
    ],
)
def test_a_command_that_comes_after_the_end_only_sees_to_what_is_due(command: AnyCommand, late: bool) -> None:
    journal = journal_of(asks(GUARDED), approval_asked, ended)
    assert decide_command(journal.state, command) == CarriedOut(("1",), late)


@pytest.mark.parametrize(
    ("tellings", "command", "code"),
    [
        # Nobody has asked for an approval of this call, or there is no such call at all.
        ([asks(PLAIN)], decides("approved"), "call-unknown"),
        ([asks(GUARDED)], decides("approved"), "call-unknown"),
        ([asks(GUARDED), approval_asked], decides("approved", "1-1"), "call-unknown"),
        ([asks(GUARDED), approval_asked], decides("denied", "7-0"), "call-unknown"),
        # A question is answered, not approved.
        ([asks(QUESTION), asked_user], decides("approved"), "call-unknown"),
        ([asks(QUESTION), asked_user], decides("denied"), "call-unknown"),
        # A sub-task of no call, of a call that is none of a sub-task, or another one than the call's.
        ([], child_done(), "call-unknown"),
        ([asks(PLAIN)], child_done(), "call-unknown"),
        ([asks(SPAWN)], child_done("1-1"), "call-unknown"),
        ([asks(SPAWN), child_started], child_done(child=PARENT), "call-unknown"),
    ],
)
def test_a_command_about_what_was_never_asked_for_is_unknown(
    tellings: list[Telling], command: AnyCommand, code: str
) -> None:
    outcome = decide_command(journal_of(*tellings).state, command)
    assert isinstance(outcome, Unknown)
    assert outcome.error.code == code


def test_a_cancel_is_the_end_with_the_output_so_far_also_of_what_came_in_between() -> None:
    journal = journal_of(lambda j: j.delta("so "))
    outcome = decide_command(journal.state, CANCEL)
    assert isinstance(outcome, ToAppend)
    journal.delta("far")
    event = outcome.build(journal.stamp())
    assert isinstance(event, TaskCancelled)
    assert (event.output, event.by, event.reason) == ("so far", "user", "enough")
    journal.fold(event)
    assert decide_command(journal.state, CANCEL) == CarriedOut(("1",))


# Approvals


@pytest.mark.parametrize("decision", ["approved", "denied", "expired"])
def test_a_decision_is_recorded_and_then_what_follows_it_is_due(decision: control.Decision) -> None:
    journal = journal_of(asks(GUARDED), approval_asked)
    (event,), outcome = carried_out(journal, decides(decision))
    assert isinstance(event, ApprovalResolved)
    assert (event.call, event.decision, event.by, event.reason) == ("1-0", decision, "user", "why")
    # Told as late, since whoever comes again can't tell its own decision from another's.
    assert outcome == CarriedOut(("1-0",), late=True)
    assert ("1-0" in journal.state.call_results) == (decision != "approved")


@pytest.mark.parametrize("first", [approved, denied])
@pytest.mark.parametrize("second", ["approved", "denied", "expired"])
def test_the_first_decision_stands(first: Telling, second: control.Decision) -> None:
    journal = journal_of(asks(GUARDED), approval_asked, first)
    before = journal.state.resolutions["1-0"]
    assert carried_out(journal, decides(second)) == ([], CarriedOut(("1-0",), late=True))
    assert journal.state.resolutions == {"1-0": before}


def test_a_question_that_nobody_answers_expires() -> None:
    journal = journal_of(asks(QUESTION), asked_user)
    (event,), outcome = carried_out(journal, decides("expired"))
    assert isinstance(event, ToolFailed)
    assert (event.turn, event.call, event.tool, event.outcome) == (1, "1-0", "ask_user", "failed")
    assert event.error.code == "input-expired"
    assert outcome == CarriedOut(("1-0",), late=True)


@pytest.mark.parametrize(("tellings"), [[asks(QUESTION), asked_user, answered], [asks(QUESTION), asked_user]])
def test_an_answer_and_the_clock_leave_one_result(tellings: list[Telling]) -> None:
    journal = journal_of(*tellings)
    carried_out(journal, decides("expired"))
    result = journal.state.call_results["1-0"]
    carried_out(journal, decides("expired"))
    carried_out(journal, says())
    assert journal.state.call_results["1-0"] == result


# Inputs


def test_an_input_is_recorded_once_however_often_its_command_comes() -> None:
    journal = journal_of()
    (event,), outcome = carried_out(journal, says("one", command="c1"))
    assert isinstance(event, InputReceived)
    assert (event.text, event.by, event.mode, event.call, event.command) == ("one", "user", "append", None, "c1")
    assert outcome == CarriedOut()
    assert carried_out(journal, says("one", command="c1")) == ([], CarriedOut())
    carried_out(journal, says("one", command="c2"))
    assert [told.command for told in journal.state.inputs] == ["c1", "c2"]


def test_an_input_answers_the_oldest_open_question_and_the_next_one_the_next() -> None:
    journal = journal_of(asks(QUESTION, QUESTION_1), asked_user, lambda j: j.input_requested("1-1"))
    for call, command in (("1-0", "c1"), ("1-1", "c2")):
        (event,), outcome = carried_out(journal, says(f"answer {command}", command=command))
        assert isinstance(event, InputReceived)
        assert (event.call, event.text) == (call, f"answer {command}")
        assert outcome == CarriedOut((call,))
    # Redelivered, a command sees to what is due after its own call.
    assert carried_out(journal, says(command="c1")) == ([], CarriedOut(("1-0",)))
    assert journal.state.inputs == []
    (event,), outcome = carried_out(journal, says("more", command="c3"))
    assert isinstance(event, InputReceived)
    assert (event.call, outcome) == (None, CarriedOut())


def test_an_input_leaves_open_approvals_alone_unless_it_redirects() -> None:
    journal = journal_of(asks(GUARDED), approval_asked)
    (event,), _ = carried_out(journal, says())
    assert isinstance(event, InputReceived)
    assert [asked.call for asked in journal.state.open_approvals] == ["1-0"]


def several_open(journal: HandMadeJournal) -> None:
    """Two approvals, one of them decided on, three questions, one of them answered; and a call that runs."""
    calls = [
        ToolCall("1-0", "wipe", {}, approval=True),
        ToolCall("1-1", "wipe", {}, approval=True),
        ToolCall("1-2", "wipe", {}, approval=True),
        ToolCall("1-3", "ask_user", {}),
        ToolCall("1-4", "ask_user", {}),
        ToolCall("1-5", "ask_user", {}),
        ToolCall("1-6", "add", {}),
    ]
    journal.asks(*calls)
    for call in ("1-0", "1-1", "1-2"):
        journal.approval_requested(call)
    for call in ("1-3", "1-4", "1-5"):
        journal.input_requested(call)
    journal.resolved("approved", "1-1")
    journal.told("yes", call="1-3", command="earlier")


def test_a_redirect_calls_off_what_waits_for_a_person_and_answers_the_first_question() -> None:
    journal = journal_of(several_open)
    appended, outcome = carried_out(journal, says("stop that", "redirect"))
    assert [(event_type(event), getattr(event, "call", None)) for event in appended] == [
        ("approval.resolved", "1-0"),
        ("approval.resolved", "1-2"),
        ("tool.failed", "1-5"),
        ("input.received", "1-4"),
    ]
    first, failed, told = appended[0], appended[2], appended[3]
    assert isinstance(first, ApprovalResolved)
    assert (first.decision, first.by, first.reason) == ("denied", "user", SUPERSEDED_REASON)
    assert isinstance(failed, ToolFailed)
    assert (failed.error.code, failed.tool) == ("called-off", "ask_user")
    assert isinstance(told, InputReceived)
    assert (told.mode, told.text) == ("redirect", "stop that")
    # Its own answer, and each call that was refused: whichever was the last may have the next turn due.
    assert outcome == CarriedOut(("1-4", "1-0", "1-2", "1-5"))
    state = journal.state
    assert (state.open_approvals, state.open_questions) == ([], [])
    assert [asked.call for asked in state.open_calls] == ["1-1", "1-6"], "what runs goes on"


@pytest.mark.parametrize("appends", range(5))
def test_a_steward_that_dies_in_a_redirect_is_made_up_for(appends: int) -> None:
    command = says("stop that", "redirect")
    whole, interrupted = journal_of(several_open), journal_of(several_open)
    carried_out(whole, command)
    for _ in range(appends):
        outcome = decide_command(interrupted.state, command)
        if isinstance(outcome, ToAppend):
            interrupted.fold(outcome.build(interrupted.stamp()))
    _, outcome = carried_out(interrupted, command)
    assert interrupted.types() == whole.types()
    assert outcome == CarriedOut(("1-4", "1-0", "1-2", "1-5"))


def test_a_redirect_with_nothing_open_is_just_an_input() -> None:
    journal = journal_of(lambda j: j.delta("so far"))
    (event,), outcome = carried_out(journal, says("stop that", "redirect"))
    assert isinstance(event, InputReceived)
    assert (event.mode, event.call, outcome) == ("redirect", None, CarriedOut())


def test_a_decision_that_changes_in_between_is_another_one() -> None:
    """What is appended is compared by its kind and call: an input that now answers a question is decided anew."""
    journal = journal_of(asks(QUESTION))
    before = decide_command(journal.state, says())
    assert before == decide_command(journal.state, says())
    journal.input_requested()
    assert decide_command(journal.state, says()) != before


# Sub-tasks


def test_the_end_of_a_sub_task_is_its_calls_result() -> None:
    journal = journal_of(asks(SPAWN), child_started)
    (event,), outcome = carried_out(journal, child_done())
    assert isinstance(event, SubtaskCompleted)
    assert (event.call, event.child, event.status, event.output) == ("1-0", CHILD, "completed", "42")
    assert outcome == CarriedOut(("1-0",))
    assert carried_out(journal, child_done()) == ([], CarriedOut(("1-0",)))


def test_half_an_answer_of_a_sub_task_says_that_it_is_one() -> None:
    journal = journal_of(asks(SPAWN), child_started)
    (event,), _ = carried_out(journal, child_done(incomplete="content_filter"))
    assert isinstance(event, SubtaskCompleted)
    assert (event.output, event.incomplete) == ("42", "content_filter")


def test_a_sub_task_that_failed_brings_its_error() -> None:
    journal = journal_of(asks(SPAWN), child_started)
    error = ErrorInfo("invalid-script", "no")
    (event,), _ = carried_out(journal, child_done(status="failed", output=None, error=error))
    assert isinstance(event, SubtaskCompleted)
    assert (event.status, event.output, event.error) == ("failed", None, error)


def test_a_sub_task_may_end_before_its_runner_could_say_that_it_has_begun() -> None:
    journal = journal_of(asks(SPAWN))
    (started, completed), outcome = carried_out(journal, child_done())
    assert isinstance(started, SubtaskStarted)
    assert isinstance(completed, SubtaskCompleted)
    assert (started.child, completed.child) == (CHILD, CHILD)
    assert outcome == CarriedOut(("1-0",))


def test_news_of_a_sub_task_whose_call_has_its_result_changes_nothing() -> None:
    journal = journal_of(asks(SPAWN), child_started, child_ended)
    assert decide_command(journal.state, child_done(child=PARENT)) == CarriedOut(("1-0",))
