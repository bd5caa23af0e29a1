"""A budget bounds a task with all of its sub-tasks, whatever the shape of their tree."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contracts.journal.events import SubtaskCompleted, SubtaskStarted, TaskCompleted
from contracts.journal.parts import Timings, ToolCall, Usage
from contracts.records.tools import SPAWN_TASK
from contracts.tasks import TaskRequest
from mesh.task.budget import (
    accounts,
    budget_left,
    budget_left_with,
    share_of_budget,
    tokens,
    tree_usage,
    uncounted_tokens,
    was_budget_left,
)
from mesh.task.limits import is_last_turn
from mesh.task.records import record
from mesh.task.state import TaskState
from mesh.task.subtasks import child_work
from tests.unit.journals import CHILD, HandMadeJournal
from tests.unit.small_tree import SmallTree

CALLS = [ToolCall(f"1-{index}", SPAWN_TASK, {"input": "hi"}) for index in range(3)]
OTHER_CHILD = CHILD[:-1] + "h"


def journal_of(budget: int | None = 1000, *calls: ToolCall, usage: Usage | None = None) -> HandMadeJournal:
    """One turn that asks for these calls."""
    journal = HandMadeJournal()
    request = TaskRequest(
        input="hi", budget_tokens=budget, tools=[SPAWN_TASK], max_output_tokens=500, temperature=0.5, max_turns=9
    )
    journal.queued(request)
    journal.claimed()
    journal.asks(*calls, usage=usage or Usage(100, 100))
    return journal


def started(journal: HandMadeJournal, call: str, budget: int | None, child: str = CHILD) -> SubtaskStarted:
    return journal.add(SubtaskStarted, call=call, child=child, budget_tokens=budget)


def ended(journal: HandMadeJournal, call: str, usage: Usage | None, uncounted: int | None = None) -> None:
    journal.add(SubtaskCompleted, call=call, child=CHILD, status="completed", usage=usage, uncounted_tokens=uncounted)


# Any tree


@settings(deadline=None, max_examples=300, derandomize=True)
@given(seed=st.integers(0, 2**32), budget=st.sampled_from([1, 30, 200, 1000, 5000]), cancels=st.booleans())
@example(seed=5, budget=1000, cancels=True)  # what a grandchild that was cut off had left uncounted was forgotten
def test_a_tree_exceeds_its_budget_by_one_turn_of_each_running_member_at_most(
    seed: int, budget: int, cancels: bool
) -> None:
    tree = SmallTree(Random(seed), budget, cancels=cancels)
    for _ in tree.run():
        for member in tree.root.tree:
            given_to_it = member.work.budget_tokens or budget
            excess_max = member.excess_max + member.excess_untold
            assert sum(each.used for each in member.tree) <= given_to_it + excess_max
    end = tree.root.state.terminal
    assert end is not None
    if not cancels:
        assert tokens(tree_usage(tree.root.state)) == tree.used
        assert (end.over_budget_tokens or 0) == max(0, tree.used - budget)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_a_tree_without_a_budget_has_none_anywhere_and_tells_what_it_has_used(seed: int) -> None:
    tree = SmallTree(Random(seed), None, cancels=False)
    for _ in tree.run():
        pass
    assert all(member.work.budget_tokens is None for member in tree.root.tree)
    end = tree.root.state.terminal
    assert end is not None
    assert end.over_budget_tokens is None
    assert tokens(end.tree_usage or tree_usage(tree.root.state)) == tree.used


def test_with_all_of_the_budget_for_each_sub_task_a_tree_exceeds_it_by_far() -> None:
    """A negative control: what was given before."""

    def all_of_it(state: TaskState, call: str) -> int | None:
        return state.queued.budget_tokens if state.queued else None

    def exceeds(seed: int) -> bool:
        tree = SmallTree(Random(seed), 200, all_of_it, cancels=False)
        for _ in tree.run():
            pass
        return tree.used > 200 + tree.root.excess_max

    assert any(exceeds(seed) for seed in range(50))


# Shares


def test_calls_of_a_turn_and_the_task_itself_share_what_is_left_evenly() -> None:
    journal = journal_of(1000, *CALLS)
    assert [share_of_budget(journal.state, asked.call) for asked in CALLS] == [200, 200, 200]
    started(journal, "1-0", 200)
    assert share_of_budget(journal.state, "1-1") == 200
    started(journal, "1-1", 200, OTHER_CHILD)
    assert share_of_budget(journal.state, "1-2") == 200
    assert budget_left(journal.state) == 400


def test_a_call_that_was_refused_leaves_its_share_to_the_others() -> None:
    journal = journal_of(1000, *CALLS)
    journal.tool_failed("1-0", SPAWN_TASK)
    assert share_of_budget(journal.state, "1-1") == 800 // 3


def test_other_calls_of_the_turn_get_nothing_of_it() -> None:
    journal = journal_of(1000, CALLS[0], ToolCall("1-1", "add", {}))
    assert share_of_budget(journal.state, "1-0") == 400


def test_a_sub_task_that_has_used_less_than_it_was_given_leaves_the_rest_and_one_that_has_used_more_takes_it() -> None:
    journal = journal_of(1000, *CALLS[:2])
    started(journal, "1-0", 300)
    assert budget_left(journal.state) == 500
    ended(journal, "1-0", Usage(20, 30))
    assert budget_left(journal.state) == 750
    started(journal, "1-1", 300, OTHER_CHILD)
    ended(journal, "1-1", Usage(700, 100))
    assert budget_left(journal.state) == 0
    assert tree_usage(journal.state) == Usage(820, 230)
    assert accounts(journal.state) == {"tree_usage": Usage(820, 230), "over_budget_tokens": 50}


def test_without_a_budget_nothing_is_shared_out_and_the_tree_is_counted_all_the_same() -> None:
    journal = journal_of(None, *CALLS)
    assert share_of_budget(journal.state, "1-0") is None
    started(journal, "1-0", None)
    ended(journal, "1-0", Usage(1, 2))
    assert accounts(journal.state) == {"tree_usage": Usage(101, 102), "over_budget_tokens": None}


def test_with_nothing_left_a_share_is_nothing() -> None:
    journal = journal_of(203, *CALLS)
    assert share_of_budget(journal.state, "1-0") == 0


def test_a_sub_task_has_its_share_and_the_limits_of_its_parent() -> None:
    journal = journal_of(1000, *CALLS)
    child = child_work(journal.state, CALLS[0], started(journal, "1-0", 200))
    assert child.budget_tokens == 200
    assert child.request is not None
    assert (child.request.max_output_tokens, child.request.temperature, child.request.max_turns) == (500, 0.5, 9)


# What an end leaves uncounted


def test_what_a_turn_that_was_cut_off_may_have_used_is_all_that_was_left_to_it() -> None:
    journal = journal_of(1000, CALLS[0])
    started(journal, "1-0", 400)
    ended(journal, "1-0", Usage(50, 50))
    assert uncounted_tokens(journal.state) == 0
    journal.claimed("2", message=8)
    assert uncounted_tokens(journal.state) == 700


def test_what_sub_tasks_that_still_run_may_use_is_what_they_were_given() -> None:
    journal = journal_of(1000, *CALLS)
    started(journal, "1-0", 200)
    started(journal, "1-1", 150, OTHER_CHILD)
    journal.cancelled()
    assert uncounted_tokens(journal.state) == 350


def test_what_a_sub_task_leaves_uncounted_is_taken_from_the_budget_and_told_as_no_usage() -> None:
    journal = journal_of(1000, *CALLS)
    started(journal, "1-0", 200)
    ended(journal, "1-0", Usage(10, 10), uncounted=180)
    assert budget_left(journal.state) == 600
    assert tree_usage(journal.state) == Usage(110, 110)
    assert uncounted_tokens(journal.state) == 180, "the task above must know it, too"


# Whether a turn was the last


def test_whether_a_turn_was_the_last_is_what_its_writer_saw_whatever_its_sub_tasks_use_later() -> None:
    journal = HandMadeJournal()
    journal.queued(TaskRequest(input="hi", budget_tokens=100, tools=[SPAWN_TASK]))
    journal.claimed()
    first = journal.add(
        type(journal.asks(CALLS[0])),
        turn=1,
        text="",
        calls=[CALLS[0]],
        finish_reason="tool_calls",
        usage=Usage(10, 10),
        timings=Timings(),
        budget_left_tokens=80,
    )
    started(journal, "1-0", 40)
    ended(journal, "1-0", Usage(90, 90))
    assert budget_left(journal.state) == 0
    assert was_budget_left(journal.state, first) == 80
    assert not is_last_turn(journal.state, first)


def test_a_turn_that_the_sub_tasks_before_it_have_left_nothing_is_the_last() -> None:
    journal = journal_of(1000, CALLS[0])
    started(journal, "1-0", 400)
    ended(journal, "1-0", Usage(500, 200))
    journal.claimed("2", message=8)
    left = budget_left_with(journal.state, Usage(60, 60))
    assert left == 0
    second = journal.add(
        type(journal.turn_completed(turn=2)),
        turn=2,
        text="more",
        calls=[ToolCall("2-0", "add", {})],
        finish_reason="tool_calls",
        usage=Usage(60, 60),
        timings=Timings(),
        budget_left_tokens=left,
    )
    assert is_last_turn(journal.state, second)


@pytest.mark.parametrize("given_to_it", [None, 50])
@pytest.mark.parametrize("used", [None, Usage(500, 500)])
def test_what_a_writer_of_before_led_on_still_leads_on(given_to_it: int | None, used: Usage | None) -> None:
    """It counted the turns of the task alone, and its readers must not see an end where it saw none."""
    journal = journal_of(1000, CALLS[0])
    started(journal, "1-0", given_to_it)
    ended(journal, "1-0", used)
    journal.claimed("2", message=8)
    second = journal.turn_completed(turn=2, calls=1, usage=Usage(100, 100))
    assert was_budget_left(journal.state, second) == 600
    assert not is_last_turn(journal.state, second)


def test_a_sub_task_of_which_nobody_tells_what_it_has_used_counts_as_what_it_was_given() -> None:
    journal = journal_of(1000, CALLS[0])
    started(journal, "1-0", 300)
    ended(journal, "1-0", None)
    assert budget_left(journal.state) == 500
    assert tree_usage(journal.state) == Usage(100, 100)


def test_a_record_tells_what_the_end_tells() -> None:
    journal = journal_of(150, CALLS[0])
    journal.add(TaskCompleted, output="", usage=Usage(100, 100), timings=Timings(), **accounts(journal.state))
    told = record(journal.state)
    assert (told.usage, told.tree_usage, told.over_budget_tokens) == (Usage(100, 100), None, 50)
