"""What a task waits for, by its journal."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller as do

import pytest

from contracts.journal.parts import ToolCall
from contracts.records.status import TaskRecord, Waiting
from mesh.task.records import record
from mesh.task.waiting import waiting_of
from meshctl.commands.why import sentence
from tests.unit.journals import CHILD, EXPIRES_AT, START, HandMadeJournal

ADD = ToolCall(call="1-0", tool="add", arguments={})
WIPE = ToolCall(call="1-1", tool="wipe", arguments={}, approval=True)


def waiting(build: Callable[[HandMadeJournal], object]) -> Waiting:
    """What a task with this journal waits for."""
    journal = HandMadeJournal()
    journal.queued()
    build(journal)
    found = waiting_of(journal.state)
    assert found is not None
    return found


def calls(*asked: ToolCall) -> Callable[[HandMadeJournal], object]:
    """A journal whose first turn has asked for calls, and nothing more."""

    def build(journal: HandMadeJournal) -> None:
        journal.claimed()
        journal.asks(*asked)

    return build


def then(*acts: Callable[[HandMadeJournal], object]) -> Callable[[HandMadeJournal], object]:
    def build(journal: HandMadeJournal) -> None:
        for act in acts:
            act(journal)

    return build


@pytest.mark.parametrize(
    ("build", "on", "step", "tool", "says"),
    [
        (lambda _: None, "worker", "1", None, "Turn 1 waits since 2026-01-02 03:04:05 UTC for a free worker."),
        (do("claimed"), "step", "1", None, "Turn 1 is carried out since 2026-01-02 03:04:06 UTC by"),
        (then(do("claimed"), do("released")), "worker", "1", None, "Turn 1 wai"),
        (calls(ADD), "runner", "1-0", "add", "Call 1-0 of add waits since 2026-01-02 03:04:07 UTC for a free runner."),
        (then(calls(ADD), do("claimed", "1-0")), "step", "1-0", "add", "Call 1-0 of add is carried"),
        (then(calls(ADD), do("tool_completed")), "worker", "2", None,
         "Turn 2 waits since 2026-01-02 03:04:08 UTC for a free worker."),
        (then(calls(ADD), do("tool_completed"), do("claimed", "2")), "step", "2",
         None, "Turn 2 is carried out"),
        (then(calls(WIPE), do("approval_requested", "1-1")), "approval", "1-1", "wipe",
         "for a person to approve it, until 2026-01-03 03:04:05 UTC."),
        (then(calls(ADD, WIPE), do("approval_requested", "1-1")), "approval", "1-1", "wipe",
         "03:04:05 UTC; 1 other call of the turn is open too."),
        (then(calls(ADD), do("input_requested")), "question", "1-0", None,
         "A question waits since 2026-01-02 03:04:08 UTC for the user's answer, until 2026-01-03"),
        (then(calls(WIPE), do("approval_requested", "1-1"),
                  do("resolved", call="1-1")), "runner", "1-1", "wipe", "waits since 2026-01-02 03:04:09"),
        (then(calls(ADD), do("child_started")), "subtask", "1-0", "add", f"sub-task {CHILD} to end"),
        (then(do("claimed"), do("dead_lettered")), "repair", "1", None,
         "Turn 1 gave up at 2026-01-02 03:04:07 UTC (provider-error), and waits to be replayed: meshctl dead-letters"),
        (then(do("claimed"), do("dead_lettered"),
                  do("replayed", ("1", 0))), "worker", "1", None, "Turn 1 waits"),
    ],
    ids=["queued", "claimed", "released", "a call", "a claimed call", "the next turn", "the next turn, claimed",
         "an approval", "an approval and a call", "a question", "approved", "a child", "a dead letter", "replayed"],
)  # fmt: skip
def test_it_says_what_a_task_waits_for(
    build: Callable[[HandMadeJournal], object], on: str, step: str, tool: str | None, says: str
) -> None:
    found = waiting(build)
    assert (found.on, found.step, found.tool) == (on, step, tool)
    assert says in found.detail
    assert found.detail.endswith(".")


def test_a_wait_with_an_end_says_when_and_a_child_says_which() -> None:
    approval = waiting(then(calls(WIPE), do("approval_requested", "1-1")))
    assert (approval.until, approval.since) == (EXPIRES_AT, START.replace(second=8))
    assert waiting(then(calls(ADD), do("child_started"))).task == CHILD
    assert waiting(do("claimed")).worker == "worker"


def test_a_later_try_says_when_and_what_failed() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.retrying(1, timer=True)
    found = waiting_of(journal.state)
    assert found is not None
    assert found.on == "retry"
    assert found.until == journal.state.retry_at["1", 0]
    assert "after 1 failed try (" in found.detail


def test_a_try_that_has_failed_is_not_carried_out_and_a_provider_that_is_away_is_named() -> None:
    journal = HandMadeJournal()
    journal.queued()
    journal.claimed()
    journal.retrying(1)
    found = waiting_of(journal.state)
    assert found is not None
    assert (found.on, found.until) == ("retry", None)
    assert "for its next try, after 1 failed try (provider-error)" in found.detail
    journal.claimed(delivery=2)
    found = waiting_of(journal.state)
    assert found is not None
    assert found.on == "step"
    away = HandMadeJournal()
    away.queued()
    away.claimed()
    away.retrying(1, reason="provider-unreachable")
    found = waiting_of(away.state)
    assert found is not None
    assert found.on == "provider"
    assert "for its provider, after 1 failed try (provider-unreachable)" in found.detail


def test_a_task_that_has_ended_waits_for_nothing_and_none_of_it_is_stored() -> None:
    journal = HandMadeJournal()
    assert waiting_of(journal.state) is None
    journal.queued()
    assert record(journal.state).waiting is None
    journal.claimed()
    journal.turn_completed()
    journal.completed()
    assert waiting_of(journal.state) is None
    ended: TaskRecord = record(journal.state)
    assert sentence(ended) == "Nothing: it is completed since 2026-01-02 03:04:08 UTC."
