"""Commands to a task: what the steward appends, and after which steps it publishes what is due, as tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from contracts.errors import ErrorInfo
from contracts.journal.events import (
    ApprovalResolved,
    Event,
    InputReceived,
    StepGen,
    SubtaskCompleted,
    SubtaskStarted,
    TaskCancelled,
    TaskCompleted,
    TaskExpired,
    TaskReplayed,
    ToolCall,
    ToolFailed,
    event_type,
)
from contracts.messages import control
from contracts.messages.control import AnyCommand
from contracts.messages.work import ToolWork, TurnWork
from mesh.task.state import TaskState
from steward.command_decisions import CALLED_OFF, Append, Outcome, Settle, Unknown, decide_command
from tests.unit.journals import CHILD, PARENT, TASK, TENANT, HandMadeJournal

Telling = Callable[[HandMadeJournal], object]

PLAIN = ToolCall("1-0", "add", {"a": 1})
PLAIN_1 = ToolCall("1-1", "add", {"a": 1})
GUARDED = ToolCall("1-0", "wipe", {"path": "/"}, approval=True)
QUESTION = ToolCall("1-0", "ask_user", {"question": "Which one?"})
QUESTION_1 = ToolCall("1-1", "ask_user", {"question": "How many?"})
SPAWN = ToolCall("1-0", "spawn_task", {"input": "hi"})

CANCEL = control.CancelCommand(task=TASK, tenant=TENANT, by="user", reason="enough")


def says(text: str = "and this?", mode: control.InputMode = "append", command: str = "c") -> control.InputCommand:
    return control.InputCommand(task=TASK, tenant=TENANT, by="user", text=text, mode=mode, command=command)


def decides(decision: control.Decision, call: str = "1-0") -> control.ApprovalCommand:
    return control.ApprovalCommand(task=TASK, tenant=TENANT, by="user", call=call, decision=decision, reason="why")


def child_done(call: str = "1-0", child: str = CHILD, **fields: Any) -> control.ChildDoneCommand:
    fields = {"status": "completed", "output": "42"} | fields
    return control.ChildDoneCommand(task=TASK, tenant=TENANT, by="taskmesh", call=call, child=child, **fields)


def journal_of(*tellings: Telling) -> HandMadeJournal:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    for telling in tellings:
        telling(journal)
    return journal


def asks(*asked: ToolCall) -> Telling:
    return lambda journal: journal.asks(*asked)


def approval_asked(journal: HandMadeJournal) -> object:
    return journal.approval_requested()


def approved(journal: HandMadeJournal) -> object:
    return journal.resolved("approved")


def denied(journal: HandMadeJournal) -> object:
    return journal.resolved("denied")


def asked_user(journal: HandMadeJournal) -> object:
    return journal.input_requested()


def answered(journal: HandMadeJournal) -> object:
    return journal.told(call="1-0", command="earlier")


def child_started(journal: HandMadeJournal) -> object:
    return journal.child_started()


def child_ended(journal: HandMadeJournal) -> object:
    return journal.child_ended()


def ended(journal: HandMadeJournal) -> object:
    return journal.completed()


def carried_out(journal: HandMadeJournal, command: AnyCommand) -> tuple[list[Event], Outcome]:
    """What a steward appends for a command, one after the other, and what it ends with."""
    appended: list[Event] = []
    while isinstance(outcome := decide_command(journal.state, command), Append):
        event = outcome.build(journal.stamp())
        assert outcome.what == (event_type(event), getattr(event, "call", None) or "")
        journal.fold(event)
        appended.append(event)
    return appended, outcome


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
    assert decide_command(journal.state, command) == Settle(("1",), late)


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
    assert isinstance(outcome, Append)
    journal.delta("far")
    event = outcome.build(journal.stamp())
    assert isinstance(event, TaskCancelled)
    assert (event.output, event.by, event.reason) == ("so far", "user", "enough")
    journal.fold(event)
    assert decide_command(journal.state, CANCEL) == Settle(("1",))


# Approvals


@pytest.mark.parametrize("decision", ["approved", "denied", "expired"])
def test_a_decision_is_recorded_and_then_what_follows_it_is_due(decision: control.Decision) -> None:
    journal = journal_of(asks(GUARDED), approval_asked)
    (event,), outcome = carried_out(journal, decides(decision))
    assert isinstance(event, ApprovalResolved)
    assert (event.call, event.decision, event.by, event.reason) == ("1-0", decision, "user", "why")
    # Told as late, since whoever comes again can't tell its own decision from another's.
    assert outcome == Settle(("1-0",), late=True)
    assert ("1-0" in journal.state.call_results) == (decision != "approved")


@pytest.mark.parametrize("first", [approved, denied])
@pytest.mark.parametrize("second", ["approved", "denied", "expired"])
def test_the_first_decision_stands(first: Telling, second: control.Decision) -> None:
    journal = journal_of(asks(GUARDED), approval_asked, first)
    before = journal.state.resolutions["1-0"]
    assert carried_out(journal, decides(second)) == ([], Settle(("1-0",), late=True))
    assert journal.state.resolutions == {"1-0": before}


def test_a_question_that_nobody_answers_expires() -> None:
    journal = journal_of(asks(QUESTION), asked_user)
    (event,), outcome = carried_out(journal, decides("expired"))
    assert isinstance(event, ToolFailed)
    assert (event.turn, event.call, event.tool, event.outcome) == (1, "1-0", "ask_user", "failed")
    assert event.error.code == "input-expired"
    assert outcome == Settle(("1-0",), late=True)


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
    assert outcome == Settle()
    assert carried_out(journal, says("one", command="c1")) == ([], Settle())
    carried_out(journal, says("one", command="c2"))
    assert [told.command for told in journal.state.inputs] == ["c1", "c2"]


def test_an_input_answers_the_oldest_open_question_and_the_next_one_the_next() -> None:
    journal = journal_of(asks(QUESTION, QUESTION_1), asked_user, lambda j: j.input_requested("1-1"))
    for call, command in (("1-0", "c1"), ("1-1", "c2")):
        (event,), outcome = carried_out(journal, says(f"answer {command}", command=command))
        assert isinstance(event, InputReceived)
        assert (event.call, event.text) == (call, f"answer {command}")
        assert outcome == Settle((call,))
    # Redelivered, a command sees to what is due after its own call.
    assert carried_out(journal, says(command="c1")) == ([], Settle(("1-0",)))
    assert journal.state.inputs == []
    (event,), outcome = carried_out(journal, says("more", command="c3"))
    assert isinstance(event, InputReceived)
    assert (event.call, outcome) == (None, Settle())


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
    assert (first.decision, first.by, first.reason) == ("denied", "user", CALLED_OFF)
    assert isinstance(failed, ToolFailed)
    assert (failed.error.code, failed.tool) == ("called-off", "ask_user")
    assert isinstance(told, InputReceived)
    assert (told.mode, told.text) == ("redirect", "stop that")
    # Its own answer, and each call that was refused: whichever was the last may have the next turn due.
    assert outcome == Settle(("1-4", "1-0", "1-2", "1-5"))
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
        if isinstance(outcome, Append):
            interrupted.fold(outcome.build(interrupted.stamp()))
    _, outcome = carried_out(interrupted, command)
    assert interrupted.types() == whole.types()
    assert outcome == Settle(("1-4", "1-0", "1-2", "1-5"))


def test_a_redirect_with_nothing_open_is_just_an_input() -> None:
    journal = journal_of(lambda j: j.delta("so far"))
    (event,), outcome = carried_out(journal, says("stop that", "redirect"))
    assert isinstance(event, InputReceived)
    assert (event.mode, event.call, outcome) == ("redirect", None, Settle())


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
    assert outcome == Settle(("1-0",))
    assert carried_out(journal, child_done()) == ([], Settle(("1-0",)))


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
    assert outcome == Settle(("1-0",))


def test_news_of_a_sub_task_whose_call_has_its_result_changes_nothing() -> None:
    journal = journal_of(asks(SPAWN), child_started, child_ended)
    assert decide_command(journal.state, child_done(child=PARENT)) == Settle(("1-0",))


# Replays, and what timers bring


def dead(step: str = "1", gen: int = 0) -> Telling:
    return lambda journal: journal.dead_lettered(step, gen)


def replayed(*steps: tuple[str, int]) -> Telling:
    return lambda journal: journal.replayed(*steps)


def replay(*steps: tuple[str, int], **edits: Any) -> control.ReplayCommand:
    return control.ReplayCommand(
        task=TASK,
        tenant=TENANT,
        by="ops",
        steps=[StepGen(*each) for each in steps],
        edits=control.Edits(**edits) if edits else None,
        reason="repaired",
    )


def ids(outcome: Outcome) -> list[str]:
    """The message ids of what goes on."""
    assert isinstance(outcome, Settle)
    assert outcome.steps == ()
    return [due.message_id.removeprefix(TASK) for due in outcome.again]


def test_a_replay_is_recorded_and_its_steps_go_on_with_the_next_gen() -> None:
    journal = journal_of(asks(PLAIN), dead("1-0"))
    (event,), outcome = carried_out(journal, replay(("1-0", 0), arguments={"1-0": {"a": 2}}))
    assert isinstance(event, TaskReplayed)
    assert (event.steps, event.by, event.reason) == ([StepGen("1-0", 0)], "ops", "repaired")
    assert ids(outcome) == [".1.1-0.g1"]
    asked = journal.state.asked_for("1-0")
    assert asked is not None
    assert asked.arguments == {"a": 2}
    assert isinstance(outcome, Settle)
    assert isinstance(outcome.again[0].payload, ToolWork)
    assert (outcome.again[0].payload.arguments, outcome.again[0].payload.gen) == ({"a": 2}, 1)


def test_the_first_turn_goes_on_in_the_queue_of_later_ones_in_the_pool_that_the_replay_names() -> None:
    journal = journal_of(dead())
    _, outcome = carried_out(journal, replay(("1", 0), pool="small", input="again"))
    assert isinstance(outcome, Settle)
    (due,) = outcome.again
    assert (due.subject, due.message_id) == (f"turns.small.normal.{TENANT}", f"{TASK}.1.g1")
    assert isinstance(due.payload, TurnWork)
    assert due.payload.request is None
    assert journal.state.request is not None
    assert (journal.state.request.input, journal.state.pool) == ("again", "small")


def test_a_replay_names_what_it_repairs_and_leaves_the_rest() -> None:
    journal = journal_of(asks(PLAIN, PLAIN_1), dead("1-0"), dead("1-1"))
    (event,), outcome = carried_out(journal, replay(("1-1", 0), ("9", 4)))
    assert isinstance(event, TaskReplayed)
    assert event.steps == [StepGen("1-1", 0)]
    assert ids(outcome) == [".1.1-1.g1"]
    assert journal.state.status == "dead_lettered"


@pytest.mark.parametrize(
    "since", [[], [lambda journal: journal.claimed(gen=1)], [lambda journal: journal.claimed(gen=1), dead("1", 1)]]
)
def test_a_replay_that_comes_again_appends_nothing_and_publishes_what_it_may_have_failed_to(
    since: list[Telling],
) -> None:
    journal = journal_of(dead(), replayed(("1", 0)), *since)
    appended, outcome = carried_out(journal, replay(("1", 0)))
    assert appended == []
    assert ids(outcome) == [".1.g1"]
    assert isinstance(outcome, Settle)
    assert outcome.late


@pytest.mark.parametrize(("claimed", "subjects"), [(False, ["timers.at.retry"]), (True, ["turns.default.normal"])])
def test_a_replay_that_comes_again_leaves_a_later_try_to_its_timer(claimed: bool, subjects: list[str]) -> None:
    journal = journal_of(dead(), replayed(("1", 0)), lambda j: j.claimed(gen=1), later(gen=1))
    if claimed:
        journal.claimed(gen=1, message=99)
    _, outcome = carried_out(journal, replay(("1", 0)))
    assert isinstance(outcome, Settle)
    assert [".".join(due.subject.split(".")[:3]) for due in outcome.again] == subjects
    assert ids(outcome) == [".1.g1.t1"]


@pytest.mark.parametrize("tellings", [[], [asks(PLAIN)], [asks(PLAIN), dead("1-0"), replayed(("1-0", 0))]])
def test_a_replay_of_what_never_gave_up_is_unknown(tellings: list[Telling]) -> None:
    outcome = decide_command(journal_of(*tellings).state, replay(("1", 0)))
    assert isinstance(outcome, Unknown)
    assert outcome.error.code == "dead-letter-unknown"


@pytest.mark.parametrize("call", ["1-1", "7-0"])
def test_a_replay_edits_no_call_but_those_that_it_repairs(call: str) -> None:
    journal = journal_of(asks(PLAIN, PLAIN_1), dead("1-0"))
    outcome = decide_command(journal.state, replay(("1-0", 0), arguments={call: {}}))
    assert isinstance(outcome, Unknown)
    assert outcome.error.code == "edits-invalid"


def later(tries: int = 1, step: str = "1", gen: int = 0) -> Telling:
    return lambda journal: journal.retrying(tries, step, gen, timer=True)


def next_try(tries: int = 1, step: str = "1", gen: int = 0) -> control.RetryCommand:
    return control.RetryCommand(task=TASK, tenant=TENANT, by="taskmesh", step=step, gen=gen, tries=tries)


@pytest.mark.parametrize(
    ("tellings", "command", "again"),
    [
        ([later()], next_try(), [".1.g0.t1"]),
        ([asks(PLAIN), later(2, "1-0")], next_try(2, "1-0"), [".1-0.g0.t2"]),
        # It was claimed since, has its result, gave up, was replayed.
        ([later(), lambda j: j.claimed()], next_try(), []),
        ([later(), lambda j: j.claimed(), asks(PLAIN)], next_try(), []),
        ([later(), lambda j: j.claimed(), dead()], next_try(), []),
        ([later(), lambda j: j.claimed(), dead(), replayed(("1", 0))], next_try(), []),
        # Another timer has taken its place.
        ([later(), lambda j: j.claimed(), later(2)], next_try(), []),
        ([later(), lambda j: j.claimed(), later(2)], next_try(2), [".1.g0.t2"]),
    ],
)
def test_a_timer_brings_the_next_try_of_a_step_that_waits_for_it(
    tellings: list[Telling], command: AnyCommand, again: list[str]
) -> None:
    appended, outcome = carried_out(journal_of(*tellings), command)
    assert appended == []
    assert ids(outcome) == again


@pytest.mark.parametrize("command", [next_try(2), next_try(1, gen=1), next_try(1, "1-0")])
def test_a_timer_that_the_journal_knows_nothing_of_is_looked_into(command: AnyCommand) -> None:
    outcome = decide_command(journal_of(later()).state, command)
    assert isinstance(outcome, Unknown)
    assert outcome.error.code == "retry-unknown"


DEADLINE = control.DeadlineCommand(task=TASK, tenant=TENANT, by="taskmesh")


@pytest.mark.parametrize(
    ("tellings", "output"),
    [
        ([], None),
        ([dead()], None),
        ([lambda j: j.delta("so far")], "so far"),
        ([asks(GUARDED), approval_asked], None),
        ([lambda j: j.delta("so far"), asks(GUARDED), approval_asked], None),
        ([lambda j: j.turn_completed("so far", calls=1)], "so far"),
        ([lambda j: j.turn_completed("so far", calls=1), later(1, "1-0")], "so far"),
    ],
)
def test_the_deadline_ends_a_task_with_what_there_is(tellings: list[Telling], output: str | None) -> None:
    journal = journal_of(*tellings)
    (event,), outcome = carried_out(journal, DEADLINE)
    if output is None:
        assert isinstance(event, TaskExpired)
    else:
        assert isinstance(event, TaskCompleted)
        assert (event.output, event.incomplete) == (output, "deadline")
    assert outcome == Settle(("1",), late=True)
