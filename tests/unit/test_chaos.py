"""The kill matrix's own logic: which points there are, and what the checker says of calls."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.chaos.clients import BY
from tests.chaos.judging import wrong_repairs
from tests.chaos.points import SERVICES, points_of
from tests.chaos.repairs import REPAIRS
from tests.chaos.runs import surplus
from tests.chaos.scenario import Asked, End, in_run
from tests.support.checker import StoredEvent, check_calls, check_journal


def recording(**counts: dict[str, int]) -> dict[str, Counter[str]]:
    return {service: Counter(counts.get(service, {})) for service in SERVICES}


def test_every_time_that_a_service_comes_to_a_point_is_a_point() -> None:
    once = recording(steward={"append:input.received": 1, "before-ack:control.input": 2})
    names = [str(point) for point in points_of([once]) if not point.held]
    assert names == [
        "broker steward append:input.received#1",
        "kill steward append:input.received#1",
        "kill steward before-ack:control.input#1",
        "kill steward before-ack:control.input#2",
        "pause steward append:input.received#1",
    ]


def test_events_of_any_recording_count_and_of_what_comes_and_goes_what_all_have() -> None:
    one = recording(steward={"append:input.received": 2, "before-project:running": 2})
    two = recording(steward={"before-project:running": 1, "after-publish:turns.default": 1})
    kills = [point for point in points_of([one, two]) if point.fault == "kill" and not point.held]
    assert [(point.what, point.which) for point in kills] == [
        ("append:input.received", 1),
        ("append:input.received", 2),
        ("before-project:running", 1),
    ]


def test_whoever_may_begin_a_journal_is_killed_there() -> None:
    held = {(point.fault, point.service, point.held) for point in points_of([recording()])}
    assert held == {
        ("kill", "ingress", "inference_worker"),
        ("broker", "ingress", "inference_worker"),
        ("kill", "inference_worker", "ingress"),
        ("broker", "inference_worker", "ingress"),
        ("pause", "inference_worker", "ingress"),
    }


def journal(*results: dict[str, Any], tool: str = "charge") -> list[StoredEvent]:
    asked = {"type": "turn.completed", "calls": [{"call": "1-0", "tool": tool, "arguments": {"key": "k"}}]}
    return [
        StoredEvent(sequence, "t", json.dumps(event).encode(), event)
        for sequence, event in enumerate([asked, *results])
    ]


COMPLETED = {"type": "tool.completed", "call": "1-0"}
UNKNOWN = {"type": "tool.failed", "call": "1-0", "outcome": "unknown"}


@pytest.mark.parametrize(
    ("results", "runs"),
    [
        ([COMPLETED], 1),
        ([UNKNOWN], 0),
        ([UNKNOWN], 1),
        ([{"type": "approval.resolved", "call": "1-0", "decision": "approved"}, COMPLETED], 1),
        ([{"type": "approval.resolved", "call": "1-0", "decision": "denied"}], 0),
        ([{"type": "input.received", "text": "no call's"}, COMPLETED], 1),
    ],
)
def test_a_call_with_one_result_that_was_run_once_at_most_is_fine(results: list[dict[str, Any]], runs: int) -> None:
    assert check_calls(journal(*results), Counter(k=runs)) == []


@pytest.mark.parametrize(
    ("results", "runs", "complaint"),
    [
        ([], 0, "has the results []"),
        ([COMPLETED, COMPLETED], 1, "has the results ['tool.completed', 'tool.completed']"),
        ([COMPLETED, UNKNOWN], 1, "has the results"),
        ([COMPLETED], 2, "was run 2 times"),
        ([UNKNOWN], 2, "was run 2 times"),
        ([COMPLETED], 0, "was never run"),
        ([COMPLETED, {"type": "tool.failed", "call": "1-1"}], 1, "nobody asked for it"),
    ],
)
def test_the_checker_finds_what_is_wrong_with_a_call(results: list[dict[str, Any]], runs: int, complaint: str) -> None:
    (problem,) = check_calls(journal(*results), Counter(k=runs))
    assert complaint in problem
    assert problem.startswith("I8: ")


def test_a_tool_that_may_be_repeated_may_be_run_twice_and_has_one_result() -> None:
    idempotent = frozenset({"add"})
    assert check_calls(journal(COMPLETED, tool="add"), Counter(k=2), idempotent) == []
    assert len(check_calls(journal(COMPLETED, COMPLETED, tool="add"), Counter(k=2), idempotent)) == 1


def test_a_call_that_nobody_agreed_to_must_not_have_been_run() -> None:
    expired = {"type": "approval.resolved", "call": "1-0", "decision": "expired"}
    assert check_calls(journal(expired), Counter()) == []
    (problem,) = check_calls(journal(expired), Counter(k=1))
    assert "nobody had agreed" in problem


def claimed(gen: int, step: str = "1", message: int = 7) -> dict[str, Any]:
    return {"type": "step.claimed", "step": step, "gen": gen, "message": message}


def dead(gen: int, step: str = "1") -> dict[str, Any]:
    return {"type": "task.dead_lettered", "step": step, "gen": gen}


def replayed(*steps: tuple[str, int]) -> dict[str, Any]:
    return {"type": "task.replayed", "steps": [{"step": step, "gen": gen} for step, gen in steps]}


TURN = {"type": "turn.completed", "turn": 1, "text": ""}
CALL = {"type": "tool.completed", "call": "1-0"}
END = {"type": "task.completed"}


def whole_journal(*events: dict[str, Any]) -> list[StoredEvent]:
    numbered = [{"n": n, "id": f"e{n}", **event} for n, event in enumerate(events)]
    return [StoredEvent(event["n"], "t", json.dumps(event).encode(), event) for event in numbered]


@pytest.mark.parametrize(
    "events",
    [
        (claimed(0), dead(0), replayed(("1", 0)), claimed(1, message=9), TURN, END),
        (claimed(0), dead(0), replayed(("1", 0)), claimed(1), dead(1), replayed(("1", 1)), claimed(2), TURN, END),
        (claimed(0), TURN, claimed(0, "1-0"), dead(0, "1-0"), replayed(("1-0", 0)), claimed(1, "1-0"), CALL, END),
        (claimed(0), dead(0), replayed(("1", 0)), {"type": "task.cancelled"}),
        (claimed(0), {"type": "task.retrying", "step": "1", "timer": True}, claimed(0, message=9), TURN, END),
    ],
    ids=["a turn", "a turn, twice", "a call", "over before it went on", "brought again by a timer"],
)
def test_a_step_that_went_on_after_it_gave_up_or_waited_is_fine(events: tuple[dict[str, Any], ...]) -> None:
    assert check_journal(whole_journal(*events)) == []


@pytest.mark.parametrize(
    ("events", "complaint"),
    [
        ((claimed(0), replayed(("1", 0)), claimed(1), TURN, END), "without a dead letter that is open"),
        (
            (claimed(0), dead(0), replayed(("1", 0)), replayed(("1", 0)), claimed(1), TURN, END),
            "without a dead letter that is open",
        ),
        ((claimed(0), dead(0), replayed(("1", 0)), TURN, END), "was not claimed since its replay"),
        (
            (claimed(0), TURN, claimed(0, "1-0"), dead(0, "1-0"), replayed(("1-0", 0)), CALL, END),
            "was not claimed since its replay",
        ),
        ((claimed(0), dead(0), dead(0), replayed(("1", 0)), claimed(1), TURN, END), "gave up twice"),
        ((claimed(0), dead(0), replayed(("1", 0)), claimed(0), claimed(1), TURN, END), "claimed as gen 0, not 1"),
        ((claimed(1), TURN, END), "claimed as gen 1, not 0"),
        (
            (claimed(0), {"type": "task.retrying", "step": "1"}, claimed(0, message=9), TURN, END),
            "was claimed for two messages",
        ),
    ],
)
def test_the_checker_finds_what_is_wrong_with_a_replay(events: tuple[dict[str, Any], ...], complaint: str) -> None:
    (problem,) = check_journal(whole_journal(*events))
    assert complaint in problem


MENDED = Asked(
    name="mended",
    body={},
    ends=(End("task.completed", "x"),),
    repairs={("1", 0): {"input": "KEY"}},
    late_steps=frozenset({"2"}),
)
REPAIRED = replayed(("1", 0)) | {"by": BY, "edits": {"input": "run"}}
WAIT = {"type": "task.retrying", "step": "2", "timer": True, "delay_seconds": 2, "time": "2026-11-21T12:00:00Z"}
IN_TIME = claimed(0, "2") | {"time": "2026-11-21T12:00:02Z"}


def test_a_repaired_task_that_did_as_it_was_told_is_fine() -> None:
    assert wrong_repairs(MENDED, whole_journal(dead(0), REPAIRED, WAIT, IN_TIME), "run") == []


@pytest.mark.parametrize(
    ("events", "complaint"),
    [
        ((dead(0), WAIT, IN_TIME), "the replays of mended are []"),
        ((dead(0), REPAIRED, REPAIRED, WAIT, IN_TIME), "the replays of mended are"),
        ((dead(0), REPAIRED | {"edits": {"input": "poison"}}, WAIT, IN_TIME), "the replays of mended are"),
        ((dead(0), dead(1), REPAIRED, WAIT, IN_TIME), "the dead letters of mended are"),
        ((dead(0), REPAIRED, IN_TIME), "step 2 of mended waits as []"),
        ((dead(0), REPAIRED, WAIT, WAIT, IN_TIME), "step 2 of mended waits as"),
        ((dead(0), REPAIRED, WAIT, IN_TIME | {"time": "2026-11-21T12:00:01Z"}), "tried again too early"),
    ],
)
def test_the_checker_finds_a_repair_that_was_not_as_ordered(events: tuple[dict[str, Any], ...], complaint: str) -> None:
    (problem,) = wrong_repairs(MENDED, whole_journal(*events), "run")
    assert complaint in problem


def test_of_repairs_every_step_of_the_steward_is_chosen_and_of_others_what_is_new() -> None:
    counts = recording(
        steward={"append:task.replayed": 1, "before-ack:control.child_done": 1},
        inference_worker={"append:turn.completed": 1, "after-publish:timers.at.retry": 1},
        tool_runner={"append:task.retrying": 1, "ran:mend": 1},
    )
    assert [str(point) for point in points_of([counts]) if REPAIRS.chosen(point)] == [
        "broker steward append:task.replayed#1",
        "broker tool_runner append:task.retrying#1",
        "kill inference_worker after-publish:timers.at.retry#1",
        "kill steward append:task.replayed#1",
        "kill steward before-ack:control.child_done#1",
        "kill tool_runner append:task.retrying#1",
        "pause steward append:task.replayed#1",
        "pause tool_runner append:task.retrying#1",
    ]


def test_what_clients_send_is_of_their_run() -> None:
    sent = {"arguments": {"1-0": {"good": True, "key": "KEY.0"}}}
    assert in_run(sent, "mesh-1.2") == {"arguments": {"1-0": {"good": True, "key": "mesh-1.2.0"}}}


@pytest.mark.parametrize(("turns", "more", "fine"), [(3, 0, True), (2, 0, False), (4, 0, False), (4, 1, True)])
def test_queues_store_what_a_run_takes_and_no_more(turns: int, more: int, *, fine: bool) -> None:
    before = {"TASKS": 10, "TURNS": 10, "TOOLS": 10}
    assert (surplus(REPAIRS, before, {"TASKS": 14, "TURNS": 10 + turns, "TOOLS": 15}, more) == []) is fine
