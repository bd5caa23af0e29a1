"""Replays, next tries and deadlines: what the steward appends and publishes, as tables."""

from __future__ import annotations

from typing import Any

import pytest

from contracts.journal.events import TaskCompleted, TaskExpired, TaskReplayed
from contracts.journal.parts import StepGen
from contracts.messages import control
from contracts.messages.control import AnyCommand
from contracts.messages.work import ToolWork, TurnWork
from steward.command_decisions import CarriedOut, Outcome, Unknown, decide_command
from tests.unit.commanded import GUARDED, PLAIN, PLAIN_1, SPAWN, Telling, approval_asked, asks, carried_out, journal_of
from tests.unit.journals import CHILD, TASK, TENANT


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
    assert isinstance(outcome, CarriedOut)
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
    assert isinstance(outcome, CarriedOut)
    assert isinstance(outcome.again[0].payload, ToolWork)
    assert (outcome.again[0].payload.arguments, outcome.again[0].payload.gen) == ({"a": 2}, 1)


def test_the_first_turn_goes_on_in_the_queue_of_later_ones_in_the_pool_that_the_replay_names() -> None:
    journal = journal_of(dead())
    _, outcome = carried_out(journal, replay(("1", 0), pool="small", input="again"))
    assert isinstance(outcome, CarriedOut)
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
    assert isinstance(outcome, CarriedOut)
    assert outcome.late


@pytest.mark.parametrize(("claimed", "subjects"), [(False, ["timers.at.retry"]), (True, ["turns.default.normal"])])
def test_a_replay_that_comes_again_leaves_a_later_try_to_its_timer(claimed: bool, subjects: list[str]) -> None:
    journal = journal_of(dead(), replayed(("1", 0)), lambda j: j.claimed(gen=1), later(gen=1))
    if claimed:
        journal.claimed(gen=1, message=99)
    _, outcome = carried_out(journal, replay(("1", 0)))
    assert isinstance(outcome, CarriedOut)
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


def refused(step: str = "2", gen: int = 0, tries: int = 0) -> control.RoomCommand:
    return control.RoomCommand(task=TASK, tenant=TENANT, by="taskmesh", step=step, gen=gen, tries=tries)


JOINED: list[Telling] = [asks(PLAIN), lambda j: j.tool_completed("1-0")]


@pytest.mark.parametrize(
    ("tellings", "command", "again"),
    [
        # The next turn, a call, a replayed step, a later try.
        (JOINED, refused(), [".2.g0"]),
        ([asks(PLAIN)], refused("1-0"), [".1.1-0.g0"]),
        ([dead(), replayed(("1", 0))], refused("1", 1), [".1.g1"]),
        ([later()], refused("1", 0, 1), [".1.g0.t1"]),
        # A turn that was replayed for its end alone.
        ([lambda j: j.turn_completed(), dead(), replayed(("1", 0))], refused("1", 1), [".1.g1"]),
        # It was claimed since, or has its result.
        ([*JOINED, lambda j: j.claimed("2")], refused(), []),
        (JOINED, refused("1-0"), []),
        # It was published since, and failed, and what brings it now is another message.
        ([later(), lambda j: j.claimed(), later(2)], refused("1", 0, 1), []),
        ([asks(PLAIN), dead("1-0"), replayed(("1-0", 0))], refused("1-0"), []),
        # It has become a timer's: its message would be too early, and then the timer's own a duplicate of it.
        ([later()], refused("1"), []),
    ],
)
def test_what_was_refused_for_want_of_room_is_published_if_nobody_has_since(
    tellings: list[Telling], command: AnyCommand, again: list[str]
) -> None:
    appended, outcome = carried_out(journal_of(*tellings), command)
    assert appended == []
    assert ids(outcome) == again


def test_a_call_that_became_a_task_has_the_childs_first_turn_published() -> None:
    journal = journal_of(asks(SPAWN), lambda j: j.claimed("1-0"), lambda j: j.child_started())
    appended, outcome = carried_out(journal, refused("1-0"))
    assert appended == []
    assert isinstance(outcome, CarriedOut)
    assert [due.message_id for due in outcome.again] == [f"{CHILD}.1.g0"]
    assert all(due.refused == refused("1-0") for due in outcome.again)


def test_what_a_step_of_the_future_was_refused_is_looked_into() -> None:
    outcome = decide_command(journal_of().state, refused("1", 1))
    assert isinstance(outcome, Unknown)
    assert outcome.error.code == "step-unknown"


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
    assert outcome == CarriedOut(("1",), late=True)
