"""The kill matrix's own logic: which points there are, and what the checker says of calls."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.chaos.points import SERVICES, points_of
from tests.support.checker import StoredEvent, check_calls


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
