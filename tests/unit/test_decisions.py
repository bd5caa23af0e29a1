"""Decisions: what is to be done with a delivery, as tables."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from contracts.errors import ErrorInfo
from contracts.journal import events, parts
from contracts.messages.work import Work
from contracts.tasks import TaskRequest, fingerprint
from mesh.task.decisions import (
    Begin,
    Claim,
    Decision,
    Drop,
    Expire,
    Later,
    Leave,
    Refuse,
    Settle,
    SettleDeadLetter,
    decide,
    decide_stranded,
    queued_event,
)
from mesh.task.failures import GiveUp
from mesh.task.state import TaskState
from tests.unit.journals import MESSAGE, START, TASK, TENANT, HandMadeJournal, tool_work, turn_work

Telling = Callable[[HandMadeJournal], object]

TURN_1 = turn_work()
TURN_1_REPLAYED = turn_work(gen=1)
TURN_2 = turn_work(turn=2)
CALL = tool_work("1-0")


def told(*tellings: Telling) -> TaskState:
    journal = HandMadeJournal()
    for telling in tellings:
        telling(journal)
    return journal.state


def queued(journal: HandMadeJournal) -> object:
    return journal.queued()


def queued_until(journal: HandMadeJournal) -> object:
    """With a deadline a minute after the start."""
    return journal.queued(deadline=START + timedelta(seconds=60))


def claimed(journal: HandMadeJournal) -> object:
    return journal.claimed()


def turn_1_asks_for_a_call(journal: HandMadeJournal) -> object:
    return journal.turn_completed(calls=1)


def turn_1_is_the_last(journal: HandMadeJournal) -> object:
    return journal.turn_completed()


def call_claimed(journal: HandMadeJournal) -> object:
    return journal.claimed("1-0")


def call_completed(journal: HandMadeJournal) -> object:
    return journal.tool_completed("1-0")


def call_failed(journal: HandMadeJournal) -> object:
    error = ErrorInfo("tool-timeout", "no result")
    return journal.add(events.ToolFailed, turn=1, call="1-0", tool="add", error=error, outcome="failed")


def turn_1_asks_for_agreement(journal: HandMadeJournal) -> object:
    asked = parts.ToolCall("1-0", "add", {"a": 1, "b": 2}, approval=True)
    return journal.add(
        events.TurnCompleted,
        turn=1,
        text="",
        calls=[asked],
        finish_reason="tool_calls",
        usage=parts.Usage(),
        timings=parts.Timings(),
    )


def agreement_asked(journal: HandMadeJournal) -> object:
    return journal.add(events.ApprovalRequested, call="1-0", tool="add", arguments={}, expires_at=START)


def agreed(journal: HandMadeJournal) -> object:
    return journal.add(events.ApprovalResolved, call="1-0", decision="approved", by="test")


def denied(journal: HandMadeJournal) -> object:
    return journal.add(events.ApprovalResolved, call="1-0", decision="denied", by="test")


def child_started(journal: HandMadeJournal) -> object:
    return journal.add(events.SubtaskStarted, call="1-0", child=TASK)


def said(journal: HandMadeJournal) -> object:
    return journal.add(events.InputReceived, text="and this?", by="test", mode="append", command="c")


def dead(journal: HandMadeJournal) -> object:
    return journal.dead_lettered()


def replayed(journal: HandMadeJournal) -> object:
    return journal.replayed(("1", 0))


def call_dead(journal: HandMadeJournal) -> object:
    return journal.dead_lettered("1-0")


def ended(journal: HandMadeJournal) -> object:
    return journal.completed()


def cancelled(journal: HandMadeJournal) -> object:
    return journal.add(events.TaskCancelled)


def failed(journal: HandMadeJournal) -> object:
    return journal.add(events.TaskFailed, error=ErrorInfo("invalid-script", "no"))


def expired(journal: HandMadeJournal) -> object:
    return journal.add(events.TaskExpired)


@pytest.mark.parametrize(
    ("tellings", "work", "decision"),
    [
        # No journal yet (rule 10).
        ([], TURN_1, Begin(TURN_1)),
        ([], TURN_1_REPLAYED, Later()),
        ([], TURN_2, Later()),
        ([], CALL, Later()),
        # The task has ended (rule 2).
        ([queued, claimed, ended], TURN_1, Settle()),
        ([queued, cancelled], TURN_1, Settle()),
        ([queued, failed], TURN_1, Settle()),
        ([queued, expired], TURN_1, Settle()),
        ([queued, claimed, turn_1_asks_for_a_call, cancelled], CALL, Settle()),
        ([queued, claimed, ended], TURN_1_REPLAYED, Settle()),
        ([queued, claimed, dead, cancelled], TURN_1, Settle()),
        # Generations (rule 6).
        ([queued, claimed, dead, replayed], TURN_1_REPLAYED, Claim()),
        ([queued, claimed, dead], TURN_1_REPLAYED, Later()),
        ([queued, claimed], TURN_1_REPLAYED, Later()),
        # Dead letters, each of its own step (rule 7).
        ([queued, claimed, turn_1_asks_for_a_call, call_dead], TURN_1, Settle()),
        ([queued, claimed, turn_1_asks_for_a_call, lambda journal: journal.dead_lettered("1-1")], CALL, Claim()),
        # The step has its result (rule 2); a last turn has it only with the task's end.
        ([queued, claimed, turn_1_asks_for_a_call], TURN_1, Settle()),
        ([queued, claimed, turn_1_asks_for_a_call, call_claimed, call_completed], CALL, Settle()),
        ([queued, claimed, turn_1_asks_for_a_call, call_claimed, call_failed], CALL, Settle()),
        ([queued, claimed, turn_1_is_the_last], TURN_1, Claim()),
        # What the step builds on is not there.
        ([queued], TURN_2, Later()),
        ([queued, claimed], TURN_2, Later()),
        ([queued, claimed, turn_1_asks_for_a_call], TURN_2, Later()),
        ([queued, claimed, turn_1_asks_for_a_call, call_claimed, call_completed], TURN_2, Claim()),
        # Nobody has agreed yet, whoever sent the call; a call of another tool was never asked for.
        ([queued, claimed, turn_1_asks_for_agreement], CALL, Later()),
        ([queued, claimed, turn_1_asks_for_agreement, agreement_asked], CALL, Later()),
        ([queued, claimed, turn_1_asks_for_agreement, agreement_asked, agreed], CALL, Claim()),
        ([queued, claimed, turn_1_asks_for_agreement, agreement_asked, denied], CALL, Settle()),
        # A turn is only done once what it leads to is recorded.
        ([queued, claimed, turn_1_asks_for_agreement], TURN_1, Claim()),
        ([queued, claimed, turn_1_asks_for_agreement, agreement_asked], TURN_1, Settle()),
        # A sub-task's end is the call's.
        ([queued, claimed, turn_1_asks_for_a_call, call_claimed, child_started], CALL, Settle()),
        # What the user said too late for the turn makes another one.
        ([queued, claimed, said, turn_1_is_the_last], TURN_1, Settle()),
        ([queued, claimed, said, turn_1_is_the_last], TURN_2, Claim()),
        # Work to be done.
        ([queued], TURN_1, Claim()),
        ([queued, claimed], TURN_1, Claim()),
        ([queued, claimed, turn_1_asks_for_a_call], CALL, Claim()),
        ([queued, claimed, turn_1_asks_for_a_call, call_claimed], CALL, Claim()),
        ([queued, claimed, lambda journal: journal.retrying(1)], TURN_1, Claim()),
    ],
)
def test_what_to_do_with_a_delivery(tellings: list[Telling], work: Work, decision: Decision) -> None:
    assert decide(told(*tellings), work, MESSAGE, START) == decision


@pytest.mark.parametrize(
    ("tellings", "work"),
    [([queued, claimed, dead], TURN_1), ([queued, claimed, turn_1_asks_for_a_call, call_dead], CALL)],
)
def test_a_step_that_gave_up_is_settled_as_a_dead_letter(tellings: list[Telling], work: Work) -> None:
    state = told(*tellings)
    dead_letter = state.dead_letters[work.step, 0]
    assert decide(state, work, MESSAGE, START) == SettleDeadLetter(dead_letter)


@pytest.mark.parametrize(
    ("tellings", "work", "decision"),
    [
        # Replayed since, or another message's: nothing is left to do.
        # Its result is recorded, or the task is over.
        ([queued, claimed, turn_1_asks_for_a_call], TURN_1, Leave()),
        ([queued, claimed, ended], TURN_1, Leave()),
        ([queued, claimed, turn_1_asks_for_a_call, call_claimed, call_failed], CALL, Leave()),
        # Nobody will do it any more.
        ([queued, claimed], TURN_1, GiveUp()),
        ([queued], TURN_1, GiveUp()),
        ([queued, claimed, turn_1_is_the_last], TURN_1, GiveUp()),
        ([queued, claimed, turn_1_asks_for_a_call], CALL, GiveUp()),
        # Its journal was never begun.
        ([], TURN_1, Begin(TURN_1)),
        ([], CALL, Refuse(ErrorInfo("journal-missing", "no journal fits step 1-0"))),
    ],
)
def test_what_to_do_with_a_message_that_nobody_will_get(tellings: list[Telling], work: Work, decision: object) -> None:
    """Rule 8."""
    assert decide_stranded(told(*tellings), work, MESSAGE, START) == decision


@pytest.mark.parametrize(
    ("tellings", "work", "message", "decision"),
    [
        ([queued], TURN_1, 99, Claim()),
        ([queued, claimed], TURN_1, 99, Drop()),
        ([queued, claimed, dead], TURN_1, 99, Drop()),
        ([queued, claimed, turn_1_is_the_last], TURN_1, 99, Drop()),
        ([queued, claimed, dead, replayed], TURN_1_REPLAYED, 99, Claim()),
        ([queued, claimed, ended], TURN_1, 99, Settle()),
    ],
)
def test_a_claim_binds_a_step_to_its_message(
    tellings: list[Telling], work: Work, message: int, decision: Decision
) -> None:
    """Rule 3: another message for a claimed (step, gen) is dropped; an ended task settles whatever comes."""
    assert decide(told(*tellings), work, message, START) == decision


@pytest.mark.parametrize(
    ("tellings", "work", "seconds", "decision"),
    [
        ([queued_until], TURN_1, 59.9, Claim()),
        ([queued_until], TURN_1, 60, Expire()),
        ([queued_until], TURN_1, 3600, Expire()),
        ([queued], TURN_1, 3600, Claim()),
        # Once somebody has begun, the deadline ends the turn with what there is.
        ([queued_until, claimed], TURN_1, 3600, Claim()),
        ([queued_until, claimed, dead, replayed], TURN_1_REPLAYED, 3600, Claim()),
        ([queued_until, claimed, turn_1_asks_for_a_call], CALL, 3600, Claim()),
        ([queued_until, expired], TURN_1, 3600, Settle()),
    ],
)
def test_a_task_expires_only_before_anybody_began(
    tellings: list[Telling], work: Work, seconds: float, decision: Decision
) -> None:
    assert decide(told(*tellings), work, MESSAGE, START + timedelta(seconds=seconds)) == decision


@pytest.mark.parametrize(
    ("tellings", "work"),
    [
        ([queued, claimed, turn_1_asks_for_a_call], tool_work("1-1")),
        ([queued, claimed, turn_1_asks_for_a_call], tool_work("2-0")),
        ([queued, claimed, turn_1_is_the_last], CALL),
        ([queued], CALL),
    ],
)
def test_a_call_that_no_turn_asked_for_is_refused(tellings: list[Telling], work: Work) -> None:
    decision = decide(told(*tellings), work, MESSAGE, START)
    assert isinstance(decision, Refuse)
    assert decision.error.code == "call-unknown"


def test_deciding_again_gives_the_same() -> None:
    for tellings in ([], [queued], [queued, claimed], [queued, claimed, dead]):
        state = told(*tellings)
        assert decide(state, TURN_1, MESSAGE, START) == decide(state, TURN_1, MESSAGE, START)


# The first event


def test_the_first_event_is_the_same_whoever_writes_it() -> None:
    request = TaskRequest(input="hi", pool="default")
    work = turn_work(request, deadline=START + timedelta(seconds=5))
    stamp = events.Stamp("0" * 26, TASK, TENANT, 0, START)
    event = queued_event(stamp, work)
    assert event == queued_event(stamp, work)
    assert (event.request, event.fingerprint) == (request, fingerprint(request))
    assert (event.pool, event.priority, event.deadline) == ("default", "normal", START + timedelta(seconds=5))


def test_only_the_first_turn_can_begin_a_journal() -> None:
    with pytest.raises(ValueError, match="first turn"):
        queued_event(events.Stamp("0" * 26, TASK, TENANT, 0, START), TURN_2)


def test_the_record_of_a_dead_letter_that_was_replayed_at_once_is_written_all_the_same() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    letter = journal.dead_lettered()
    journal.replayed(("1", 0))
    assert decide(journal.state, TURN_1, MESSAGE, START) == SettleDeadLetter(letter)
    assert decide_stranded(journal.state, TURN_1, MESSAGE, START) == SettleDeadLetter(letter)
    assert decide(journal.state, TURN_1_REPLAYED, 99, START) == Claim()
