"""Folding: what a journal says of its task, whoever reads it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from contracts.codec import encode
from contracts.errors import ErrorInfo
from contracts.journal import events
from contracts.journal.events import UnknownEvent
from contracts.journal.heads import EventHead
from contracts.records.status import ENDED, STATUSES
from mesh.errors import JournalCorrupt
from mesh.task.fold import fold
from mesh.task.records import record
from mesh.task.state import FAILURES_MAX, TaskState
from tests.unit.journals import MESSAGE, SEQUENCES_PER_EVENT, START, TASK, TENANT, HandMadeJournal
from tests.unit.tellings import (
    CLAIMED,
    COMPLETED,
    DEAD,
    QUEUED,
    Step,
    answer,
    ask,
    cancel,
    expire,
    fail,
    journal_of,
    replay,
    request_approval,
    resolve_approval,
    say,
)

# Statuses


@pytest.mark.parametrize(
    ("steps", "status"),
    [
        ([QUEUED], "queued"),
        ([QUEUED, CLAIMED], "running"),
        ([QUEUED, CLAIMED, say], "running"),
        ([QUEUED, CLAIMED, lambda journal: journal.retrying(1)], "running"),
        ([QUEUED, CLAIMED, lambda journal: journal.turn_completed()], "running"),
        ([QUEUED, CLAIMED, ask], "waiting"),
        ([QUEUED, CLAIMED, ask, answer], "running"),
        ([QUEUED, CLAIMED, request_approval], "waiting"),
        ([QUEUED, CLAIMED, request_approval, resolve_approval], "running"),
        ([QUEUED, CLAIMED, DEAD], "dead_lettered"),
        ([QUEUED, DEAD], "dead_lettered"),
        ([QUEUED, CLAIMED, ask, DEAD], "dead_lettered"),
        ([QUEUED, CLAIMED, DEAD, replay], "running"),
        ([QUEUED, DEAD, replay], "queued"),
        ([QUEUED, CLAIMED, COMPLETED], "completed"),
        ([QUEUED, CLAIMED, fail], "failed"),
        ([QUEUED, CLAIMED, cancel], "cancelled"),
        ([QUEUED, cancel], "cancelled"),
        ([QUEUED, expire], "expired"),
        ([QUEUED, CLAIMED, ask, cancel], "cancelled"),
        ([QUEUED, CLAIMED, DEAD, cancel], "cancelled"),
    ],
)
def test_the_status_of_a_task(steps: list[Step], status: str) -> None:
    state = journal_of(*steps).state
    assert state.status == status
    assert status in STATUSES
    assert (state.terminal is not None) == (status in ENDED)


def test_a_journal_that_has_not_begun() -> None:
    state = TaskState(TENANT, TASK)
    assert (state.exists, state.status, state.revision, state.next_n) == (False, "queued", 0, 0)
    assert state.turn(1).text == ""
    assert not state.has_result("1")
    with pytest.raises(ValueError, match="no journal"):
        record(state)


def test_the_revision_is_the_last_sequence_and_n_is_dense() -> None:
    journal = journal_of(QUEUED, CLAIMED, say)
    assert (journal.state.revision, journal.state.next_n) == (3 * SEQUENCES_PER_EVENT, 3)


# Text


def test_deltas_join_to_a_text_for_each_turn() -> None:
    journal = journal_of(QUEUED, CLAIMED)
    journal.reasoning("Hm")
    journal.delta("Hel")
    journal.delta("other", turn=2)
    journal.delta("lo")
    assert journal.state.turn(1).text == "Hello"
    assert journal.state.turn(1).reasoning_text == "Hm"
    assert journal.state.turn(2).text == "other"
    assert journal.state.turn(2).reasoning_text is None


@pytest.mark.parametrize(
    ("discard_from", "text", "reasoning"),
    [(2, "", None), (3, "", "Hm"), (4, "Hel", "Hm"), (5, "Hello", "Hm"), (6, "Hello", "Hm so"), (99, "Hello", "Hm so")],
)
def test_a_restart_forgets_a_turns_deltas_from_an_n_on(discard_from: int, text: str, reasoning: str | None) -> None:
    journal = journal_of(QUEUED, CLAIMED)
    journal.reasoning("Hm")  # n = 2
    journal.delta("Hel")
    journal.delta("lo")
    journal.reasoning(" so")
    journal.delta("kept", turn=2)
    journal.restarted(discard_from)
    turn = journal.state.turn(1)
    assert (turn.text, turn.reasoning_text) == (text, reasoning)
    assert journal.state.turn(2).text == "kept"
    journal.delta("!")
    assert journal.state.turn(1).text == text + "!"


def test_the_text_of_a_completed_turn_is_the_one_in_its_event() -> None:
    journal = journal_of(QUEUED, CLAIMED, say)
    assert not journal.state.has_result("1")
    journal.turn_completed("Hello")
    turn = journal.state.turn(1)
    assert (turn.text, turn.reasoning_text, turn.parts) == ("Hello", None, [])
    assert journal.state.has_result("1")
    assert not journal.state.has_result("1-0")
    assert not journal.state.has_result("2")


# Ownership


def test_a_claim_is_owned_until_the_next_one_of_its_step() -> None:
    journal = journal_of(QUEUED)
    first = journal.claimed()
    assert journal.state.owns(first)
    second = journal.claimed(delivery=2)
    assert not journal.state.owns(first)
    assert journal.state.owns(second)
    assert journal.state.turn(1).claims == 2


def test_claims_of_other_steps_are_only_news() -> None:
    journal = journal_of(QUEUED, CLAIMED)
    journal.turn_completed(calls=2)
    first = journal.claimed("1-0")
    second = journal.claimed("1-1", message=8)
    assert journal.state.owns(first)
    assert journal.state.owns(second)
    assert journal.state.turn(1).claims == 1, "calls are no claims of their turn"


@pytest.mark.parametrize(
    "news",
    [
        lambda journal: journal.dead_lettered(),
        lambda journal: journal.replayed(("1", 0)),
        COMPLETED,
        cancel,
    ],
)
def test_a_claim_is_lost(news: Step) -> None:
    journal = journal_of(QUEUED)
    claim = journal.claimed()
    news(journal)
    assert not journal.state.owns(claim)


def test_a_dead_letter_of_another_step_loses_nothing() -> None:
    journal = journal_of(QUEUED, CLAIMED)
    journal.turn_completed(calls=2)
    claim = journal.claimed("1-0")
    journal.dead_lettered("1-1")
    journal.replayed(("1-1", 0))
    assert journal.state.owns(claim)


def test_a_claim_that_is_not_in_the_journal_is_not_owned() -> None:
    claim = journal_of(QUEUED).claimed()
    assert not journal_of(QUEUED).state.owns(claim)
    assert not journal_of(QUEUED, CLAIMED).state.owns(claim)


def test_the_first_claim_binds_a_step_to_its_message() -> None:
    journal = journal_of(QUEUED)
    journal.claimed(message=MESSAGE)
    journal.claimed(message=9)
    assert journal.state.bindings == {("1", 0): MESSAGE}
    journal.dead_lettered()
    journal.replayed(("1", 0))
    journal.claimed(gen=1, message=9)
    assert journal.state.bindings == {("1", 0): MESSAGE, ("1", 1): 9}


# Tries, dead letters, replays


def test_tries_are_counted_for_each_gen() -> None:
    journal = journal_of(QUEUED, CLAIMED)
    journal.retrying(1)
    journal.retrying(2)
    journal.retrying(1, step="1-0")
    journal.retrying(1, gen=1)
    assert journal.state.tries == {("1", 0): 2, ("1-0", 0): 1, ("1", 1): 1}


def test_a_replay_repairs_the_dead_letters_that_it_names() -> None:
    journal = journal_of(QUEUED, CLAIMED)
    journal.turn_completed(calls=2)
    journal.dead_lettered("1-0")
    journal.dead_lettered("1-1")
    journal.replayed(("1-0", 0))
    assert list(journal.state.dead_letters) == [("1-1", 0)]
    assert (journal.state.gen("1-0"), journal.state.gen("1-1")) == (1, 0)
    journal.replayed(("1-1", 0))
    assert (journal.state.dead_letters, journal.state.status) == ({}, "running")


def test_a_step_may_die_and_be_replayed_again() -> None:
    journal = journal_of(QUEUED)
    for gen in range(3):
        journal.claimed(gen=gen, message=10 + gen)
        journal.dead_lettered(gen=gen)
        assert journal.state.status == "dead_lettered"
        journal.replayed(("1", gen))
    assert (journal.state.gen("1"), journal.state.dead_letters) == (3, {})


def test_edits_change_what_the_task_asks_for_from_there_on() -> None:
    journal = journal_of(QUEUED, CLAIMED, DEAD)
    before = journal.state.request
    assert before is not None
    journal.replayed(("1", 0), input="again", model="m")
    request = journal.state.request
    assert request == replace(before, input="again", model="m")
    assert journal.state.queued is not None
    assert journal.state.queued.request == before
    journal.dead_lettered(gen=1)
    journal.replayed(("1", 1), pool="small", instructions="Be brief.")
    assert journal.state.request == replace(before, input="again", model="m", pool="small", instructions="Be brief.")
    assert (journal.state.pool, record(journal.state).pool) == ("small", "small")


def test_edited_arguments_replace_those_of_their_call_alone() -> None:
    journal = journal_of(QUEUED, CLAIMED)
    journal.turn_completed(calls=2)
    journal.dead_lettered("1-0")
    journal.replayed(("1-0", 0), arguments={"1-0": {"a": 9}})
    asked = [journal.state.asked_for(call) for call in ("1-0", "1-1")]
    assert [each.arguments if each else None for each in asked] == [{"a": 9}, {"a": 1, "b": 2}]
    assert not journal.state.turn(1).outdated


def test_a_text_from_before_an_edit_is_outdated_until_its_turn_begins_again() -> None:
    journal = journal_of(QUEUED, CLAIMED)
    delta = journal.delta("Once ")
    journal.dead_lettered()
    journal.replayed(("1", 0), input="another story")
    assert journal.state.turn(1).outdated
    journal.claimed(gen=1)
    assert journal.state.turn(1).outdated
    journal.restarted(delta.n)
    assert not journal.state.turn(1).outdated


@pytest.mark.parametrize("edits", [{}, {"arguments": {"1-0": {}}}])
def test_a_replay_without_edits_of_the_request_leaves_a_text_as_it_is(edits: dict[str, object]) -> None:
    journal = journal_of(QUEUED, CLAIMED)
    journal.delta("Once ")
    journal.dead_lettered()
    journal.replayed(("1", 0), **edits)
    assert not journal.state.turn(1).outdated


def test_a_dead_letter_of_a_call_that_has_its_result_is_not_open() -> None:
    journal = journal_of(QUEUED, CLAIMED)
    journal.turn_completed(calls=1)
    journal.dead_lettered("1-0")
    assert journal.state.status == "dead_lettered"
    journal.tool_failed("1-0")
    assert (journal.state.open_dead_letters, journal.state.status) == ([], "running")


def test_a_step_that_a_timer_brings_again_is_bound_to_no_message_until_it_is_claimed() -> None:
    journal = journal_of(QUEUED)
    journal.claimed(message=MESSAGE)
    retrying = journal.retrying(1, timer=True, message="come back")
    assert journal.state.bindings == {}
    assert journal.state.retry_at == {("1", 0): retrying.time + timedelta(seconds=30)}
    journal.claimed(message=9)
    assert (journal.state.bindings, journal.state.retry_at) == ({("1", 0): 9}, {})
    assert journal.state.timer_tries == {("1", 0): 1}
    assert journal.state.failures == {("1", 0): [ErrorInfo("provider-error", "come back")]}


def test_a_step_that_was_released_is_nobodys_and_bound_to_no_message_until_it_is_claimed() -> None:
    journal = HandMadeJournal()
    journal.queued()
    claim = journal.claimed()
    journal.add(events.StepReleased, step="1", gen=0, reason="drain")
    assert not journal.state.owns(claim)
    assert journal.state.is_last_claim(claim)
    assert ("1", 0) not in journal.state.bindings
    assert journal.state.message_epoch("1") == (0, 1)
    again = journal.claimed(message=9)
    assert journal.state.owns(again)
    assert journal.state.bindings["1", 0] == 9


def test_a_claim_of_before_it_said_its_base_counts_as_the_first_of_its_turn_alone() -> None:
    """Whatever the turn has said by then: an input is rather shown twice than never."""
    for said in (False, True):
        journal = HandMadeJournal()
        journal.queued()
        first = journal.claimed()
        if said:
            journal.delta("so far")
        told = journal.told("and this?")
        claim = journal.claimed(delivery=2)
        without = TaskState(journal.state.tenant, journal.state.task)
        for sequence, event in enumerate(journal.events, 1):
            old = replace(event, base=None) if isinstance(event, events.StepClaimed) else event
            fold(without, sequence, old)
        assert without.turn(1).base_n == first.n
        assert without.unseen_inputs(1) == [told]
        assert journal.state.turn(1).base_n == (first.n if said else claim.n)


def test_only_so_many_failures_of_a_step_are_kept_the_last_ones() -> None:
    journal = journal_of(QUEUED)
    for tries in range(1, FAILURES_MAX + 5):
        journal.retrying(tries, message=str(tries))
    kept = [each.message for each in journal.state.failures["1", 0]]
    assert kept == [str(tries) for tries in range(5, FAILURES_MAX + 5)]


def test_a_replay_told_twice_counts_once() -> None:
    journal = journal_of(QUEUED, CLAIMED, DEAD, replay, replay)
    assert journal.state.gen("1") == 1


def test_the_first_result_of_a_call_is_its_result() -> None:
    journal = journal_of(QUEUED, CLAIMED)
    journal.turn_completed(calls=1)
    result = journal.tool_completed("1-0")
    journal.add(
        events.ToolFailed, turn=1, call="1-0", tool="add", error=ErrorInfo("tool-timeout", "late"), outcome="failed"
    )
    assert journal.state.call_results == {"1-0": result}
    assert journal.state.has_result("1-0")


# What must not be, and what is new


def unknown(n: int) -> UnknownEvent:
    return UnknownEvent(EventHead("task.blessed", "0" * 26, TASK, TENANT, n))


def test_events_of_unknown_types_are_counted_and_change_nothing_else() -> None:
    journal = journal_of(QUEUED, CLAIMED, say)
    before = record(journal.state)
    fold(journal.state, 100, unknown(3))
    assert (journal.state.unknown_events, journal.state.revision, journal.state.next_n) == (1, 100, 4)
    after = record(journal.state)
    assert after.sequence == 100
    assert (after.status, after.updated_at) == (before.status, before.updated_at)


def test_an_unknown_event_must_not_leave_a_hole_either() -> None:
    with pytest.raises(JournalCorrupt):
        fold(journal_of(QUEUED).state, 100, unknown(2))


def with_n(n: int) -> events.OutputDelta:
    return events.OutputDelta("0" * 26, TASK, TENANT, n, START, turn=1, text="x")


@pytest.mark.parametrize(
    ("n", "holes_allowed", "corrupt"),
    [
        (2, False, False),
        (3, False, True),
        (1, False, True),
        (0, False, True),
        (2, True, False),
        (3, True, False),
        (1, True, True),
        (0, True, True),
    ],
)
def test_n_never_runs_backwards_and_has_no_hole(n: int, holes_allowed: bool, corrupt: bool) -> None:
    state = journal_of(QUEUED, CLAIMED).state
    if not corrupt:
        fold(state, 100, with_n(n), holes_allowed=holes_allowed)
        assert (state.revision, state.next_n) == (100, n + 1)
        return
    revision = state.revision
    with pytest.raises(JournalCorrupt, match="expected n=2"):
        fold(state, 100, with_n(n), holes_allowed=holes_allowed)
    assert (state.revision, state.next_n) == (revision, 2), "what is corrupt is not folded"


def test_what_follows_the_end_is_counted_and_changes_nothing_else() -> None:
    journal = journal_of(QUEUED, CLAIMED, COMPLETED)
    ended = record(journal.state)
    journal.delta("more")
    cancel(journal)
    assert journal.state.events_after_end == 2
    after = record(journal.state)
    assert (after.status, after.output, after.updated_at) == (ended.status, ended.output, ended.updated_at)


def test_the_place_before_the_end_is_remembered() -> None:
    journal = journal_of(QUEUED, CLAIMED, say, COMPLETED)
    assert journal.state.before_end == (3 * SEQUENCES_PER_EVENT, 2)


@given(st.lists(st.integers(0, 9), max_size=30))
def test_folding_the_same_events_gives_the_same_state(choices: list[int]) -> None:
    steps: list[Step] = [
        CLAIMED,
        say,
        lambda journal: journal.restarted(3),
        lambda journal: journal.retrying(1),
        DEAD,
        replay,
        ask,
        answer,
        lambda journal: journal.turn_completed(),
        cancel,
    ]
    journal = journal_of(QUEUED, *(steps[choice] for choice in choices))
    again = TaskState(TENANT, TASK)
    for event in journal.events:
        fold(again, again.revision + SEQUENCES_PER_EVENT, event, payload_bytes=len(encode(event)))
    assert again == journal.state
    assert again.next_n == len(journal.events)
