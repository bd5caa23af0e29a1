"""Decisions: what is to be done with a failure, as tables."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ErrorInfo
from contracts.retries import AWAY_SECONDS, PAUSE_SECONDS_MAX, PAUSE_SPREAD_SECONDS, RetryPolicy
from mesh.task.decisions import Claim, Decision, Later, Leave, Settle, decide, decide_stranded
from mesh.task.failures import CLAIMS_UNCOUNTED_MAX, Fail, GiveUp, Retry, StepFailed, decide_failure
from mesh.task.state import TaskState
from tests.unit.journals import MESSAGE, START, TASK, TENANT, HandMadeJournal, tool_work, turn_work

TURN_1 = turn_work()
TURN_1_REPLAYED = turn_work(gen=1)
CALL = tool_work("1-0")

POLICY = RetryPolicy(tries_max=3, delay_seconds_first=1.0, delay_seconds_max=8.0)


def failure(*, retryable: bool = True, terminal: bool = False, retry_after_seconds: float | None = None) -> StepFailed:
    return StepFailed(
        "provider-error", "no", retryable=retryable, terminal=terminal, retry_after_seconds=retry_after_seconds
    )


@pytest.mark.parametrize(
    ("tries_before", "error", "decision"),
    [
        (0, failure(), Retry(delay_seconds=0.5, tries=1)),
        (1, failure(), Retry(delay_seconds=1.0, tries=2)),
        (2, failure(), GiveUp()),
        (3, failure(), GiveUp()),
        (0, failure(retryable=False), GiveUp()),
        (0, failure(retryable=False, terminal=True), Fail()),
        (2, failure(retryable=False, terminal=True), Fail()),
        # Both at once is a slip where it was raised: the request is at fault all the same.
        (0, failure(terminal=True), Fail()),
        (0, failure(retry_after_seconds=30), Retry(delay_seconds=30, tries=1)),
        (0, failure(retry_after_seconds=-1), Retry(delay_seconds=0, tries=1)),
        (2, failure(retry_after_seconds=30), GiveUp()),
        (0, failure(retry_after_seconds=1e9), Retry(delay_seconds=3600, tries=1)),
    ],
)
def test_what_follows_a_failed_try(tries_before: int, error: StepFailed, decision: Retry | GiveUp | Fail) -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    if tries_before:
        journal.retrying(tries_before)
    assert decide_failure(journal.state, TURN_1, error, POLICY, 0.5) == decision


@pytest.mark.parametrize(("delay_seconds", "by_timer"), [(10.0, False), (10.1, True)])
def test_a_long_delay_goes_through_a_timer(delay_seconds: float, by_timer: bool) -> None:
    assert Retry(delay_seconds, 1).by_timer is by_timer


@pytest.mark.parametrize("days", [0, -365, -40, 40], ids=lambda days: f"a clock {days} days ahead")
@pytest.mark.parametrize("message", [MESSAGE, 99])
def test_what_a_timer_has_brought_is_due_whatever_the_clock_says_and_under_any_message(days: int, message: int) -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    at = journal.retrying(1, timer=True).time + timedelta(days=days)
    assert decide(journal.state, turn_work(tries=1), message, at) == Claim()
    assert decide(journal.state, turn_work(tries=0), message, at) == Settle(), "the message that it has replaced"


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize(("tries", "decision"), [(0, Settle()), (1, Settle()), (2, Claim()), (3, Later())])
def test_only_the_message_that_the_last_timer_brings_is_claimed(claimed: bool, tries: int, decision: Decision) -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.retrying(1)
    failed = journal.retrying(2, timer=True)
    if claimed:
        journal.claimed(message=99)
    work = turn_work(tries=tries)
    assert decide(journal.state, work, 99, failed.time + timedelta(minutes=1)) == decision


@pytest.mark.parametrize(("tries", "decision"), [(0, Leave()), (1, GiveUp())])
def test_the_message_of_a_step_that_waits_for_its_next_try_is_no_dead_letter(
    tries: int, decision: Leave | GiveUp
) -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    failed = journal.retrying(1, timer=True)
    work = turn_work(tries=tries)
    assert decide_stranded(journal.state, work, MESSAGE, failed.time) == decision


@pytest.mark.parametrize(("tries_before", "tries"), [(0, 1), (1, 1), (2, 2)])
def test_a_try_that_does_not_count_is_followed_by_another_and_told_with_those_before(
    tries_before: int, tries: int
) -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    if tries_before:
        journal.retrying(tries_before)
    outage = failure(retry_after_seconds=60)
    outage.counts = False
    decision = decide_failure(journal.state, TURN_1, outage, POLICY, 0.5)
    assert isinstance(decision, Retry)
    assert (decision.tries, decision.by_timer) == (tries, False)


def test_every_try_counts_once_a_turn_was_claimed_too_often() -> None:
    journal = HandMadeJournal()
    journal.queued()
    for _ in range(CLAIMS_UNCOUNTED_MAX):
        journal.claimed()
    journal.retrying(2)
    outage = failure(retry_after_seconds=60)
    outage.counts = False
    assert decide_failure(journal.state, TURN_1, outage, POLICY, 0.5) == GiveUp()


# A provider that is away


def away(code: str = "provider-unreachable", retry_after_seconds: float | None = None) -> StepFailed:
    return StepFailed(code, "no connection", retryable=True, retry_after_seconds=retry_after_seconds)


def waited(seconds: float, *, tries: int = 1, reason: str = "provider-unreachable") -> HandMadeJournal:
    """The journal of a turn that was claimed, and failed so often for this reason, the last time so much later."""
    journal = HandMadeJournal()
    journal.queued()
    for number in range(1, tries + 1):
        journal.claimed()
        journal.retrying(number, reason=reason, time=START + timedelta(seconds=number))
    journal.claimed(time=START + timedelta(seconds=1 + seconds))
    return journal


@pytest.mark.parametrize("code", ["provider-unreachable", "provider-loading"])
def test_a_turn_whose_provider_is_away_waits_without_using_up_its_tries(code: str) -> None:
    journal = waited(AWAY_SECONDS - 1, tries=50, reason=code)
    decision = decide_failure(journal.state, TURN_1, away(code), POLICY, 0.5)
    assert isinstance(decision, Retry)
    assert decision.tries == 51, "each has a number, which its timer goes by"
    assert decide_failure(journal.state, TURN_1, failure(), POLICY, 0.5) == Retry(0.5, 51), "its first that counts"


def test_the_first_waits_are_short_and_those_after_them_use_up_no_delivery() -> None:
    waits = [decide_failure(waited(60, tries=tries).state, TURN_1, away(), POLICY, 0.0) for tries in range(10)]
    assert [isinstance(wait, Retry) and wait.by_timer for wait in waits] == [False] * 3 + [True] * 7
    asked = decide_failure(waited(0).state, TURN_1, away(retry_after_seconds=30), POLICY, 0.5)
    assert asked == Retry(30, 2)


def test_whoever_is_away_for_too_long_leaves_a_dead_letter() -> None:
    assert isinstance(decide_failure(waited(AWAY_SECONDS - 1).state, TURN_1, away(), POLICY, 0.5), Retry)
    assert decide_failure(waited(AWAY_SECONDS).state, TURN_1, away(), POLICY, 0.5) == GiveUp()
    impatient = away()
    impatient.away_seconds = 10
    assert decide_failure(waited(10).state, TURN_1, impatient, POLICY, 0.5) == GiveUp()


@pytest.mark.parametrize("between", ["a word", "another failure"])
def test_a_provider_that_was_there_meanwhile_has_its_whole_time_again(between: str) -> None:
    journal = waited(10)
    if between == "a word":
        journal.delta("Hello")
    else:
        journal.retrying(2)
    journal.claimed(time=START + timedelta(seconds=AWAY_SECONDS + 10))
    assert isinstance(decide_failure(journal.state, TURN_1, away(), POLICY, 0.5), Retry)
    tries = journal.state.tries["1", 0]
    later = START + timedelta(seconds=AWAY_SECONDS + 11)
    journal.retrying(tries + 1, reason="provider-unreachable", time=later)
    journal.claimed(time=later + timedelta(seconds=AWAY_SECONDS))
    assert decide_failure(journal.state, TURN_1, away(), POLICY, 0.5) == GiveUp()


def test_the_time_is_bounded_also_for_a_turn_that_was_claimed_too_often_at_an_open_breaker() -> None:
    journal = HandMadeJournal()
    journal.queued()
    for _ in range(CLAIMS_UNCOUNTED_MAX):
        journal.claimed()
        journal.retrying(1, reason="provider-unreachable")
    journal.claimed()
    outage = away()
    outage.counts = False
    assert isinstance(decide_failure(journal.state, TURN_1, outage, POLICY, 0.5), Retry)
    journal.claimed(time=START + timedelta(seconds=2 * AWAY_SECONDS))
    assert decide_failure(journal.state, TURN_1, outage, POLICY, 0.5) == GiveUp()


def test_failures_that_count_are_counted_between_those_that_do_not() -> None:
    journal = HandMadeJournal()
    journal.queued()
    reasons = ("provider-unreachable", "provider-error", "provider-loading", "provider-error")
    for tries, reason in enumerate(reasons, 1):
        journal.claimed()
        journal.retrying(tries, reason=reason)
    assert decide_failure(journal.state, TURN_1, failure(), POLICY, 0.5) == GiveUp(), "the third that counts"


def test_a_failure_while_the_breaker_is_open_has_no_number_to_take_off() -> None:
    journal = HandMadeJournal()
    journal.queued()
    for _ in range(4):
        journal.claimed()
        journal.retrying(1, reason="provider-unreachable")
    assert decide_failure(journal.state, TURN_1, failure(), POLICY, 0.5) == Retry(0.5, 2)


def test_tries_count_for_each_step_and_each_replay() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.retrying(2)
    assert decide_failure(journal.state, TURN_1, failure(), POLICY, 0.5) == GiveUp()
    assert decide_failure(journal.state, TURN_1_REPLAYED, failure(), POLICY, 0.5) == Retry(0.5, 1)
    assert decide_failure(journal.state, CALL, failure(), POLICY, 0.5) == Retry(0.5, 1)


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_never_longer_than_its_policy_says(tries_before: int, random_fraction: float) -> None:
    state = TaskState(TENANT, TASK)
    state.tries["1", 0] = tries_before
    policy = RetryPolicy(tries_max=1_000_000, delay_seconds_first=0.5, delay_seconds_max=8.0)
    decision = decide_failure(state, TURN_1, failure(), policy, random_fraction)
    assert isinstance(decision, Retry)
    assert decision.tries == tries_before + 1
    assert 0 <= decision.delay_seconds <= min(8.0, 0.5 * 2 ** min(tries_before, 10))


def test_a_failure_is_stored_with_its_code() -> None:
    error = failure()
    assert error.info() == ErrorInfo("provider-error", "no")
    assert (error.retryable, error.terminal, error.retry_after_seconds) == (True, False, None)


# A tenant whose budget is used up


def used_up(seconds: float) -> StepFailed:
    return StepFailed("budget-exhausted", "used up", retryable=True, retry_after_seconds=seconds)


def test_a_turn_waits_for_its_tenants_budget_for_as_long_as_it_takes_and_uses_up_no_try() -> None:
    journal = waited(10 * AWAY_SECONDS, tries=200, reason="budget-exhausted")
    assert decide_failure(journal.state, TURN_1, used_up(1_800), POLICY, 0.0) == Retry(1_800, 201)
    assert decide_failure(journal.state, TURN_1, used_up(10**6), POLICY, 0.0) == Retry(PAUSE_SECONDS_MAX, 201)
    # Those that waited for the same moment do not come at once.
    assert decide_failure(journal.state, TURN_1, used_up(60), POLICY, 0.5) == Retry(60 + PAUSE_SPREAD_SECONDS / 2, 201)
    assert decide_failure(journal.state, TURN_1, failure(), POLICY, 0.5) == Retry(0.5, 201), "its first that counts"


def test_a_wait_for_a_budget_is_none_for_a_provider() -> None:
    """Else a provider that goes away right after it would be given up at once."""
    journal = waited(AWAY_SECONDS, reason="budget-exhausted")
    assert isinstance(decide_failure(journal.state, TURN_1, away(), POLICY, 0.5), Retry)


def test_short_waits_for_a_budget_use_up_few_deliveries() -> None:
    waits = [
        decide_failure(waited(1, tries=tries, reason="budget-exhausted").state, TURN_1, used_up(3), POLICY, 0.0)
        for tries in range(1, 10)
    ]
    assert [isinstance(wait, Retry) and wait.by_timer for wait in waits] == [False] * 2 + [True] * 7
