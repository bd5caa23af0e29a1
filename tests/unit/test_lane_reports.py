"""What workers tell of their lanes, and what a steward makes of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from contracts.identifiers import new_id
from contracts.journal.events import TurnCompleted
from contracts.journal.parts import Timings, Usage
from contracts.messages.work import TurnWork
from contracts.records.status import LaneSample
from inference_worker.lane_reports import OUTPUTS_MAX, TENANTS_MAX, LaneTally
from steward.statistics import LaneWindow

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def work(tenant: str, turn: int = 1) -> TurnWork:
    return TurnWork(task=new_id(), tenant=tenant, turn=turn, pool="default", priority="normal")


def completed(**usage: Any) -> TurnCompleted:
    return TurnCompleted(
        id=new_id(),
        n=3,
        task=new_id(),
        tenant="acme",
        time=NOW,
        turn=1,
        text="",
        finish_reason="stop",
        usage=Usage(**usage),
        timings=Timings(),
    )


def test_tokens_are_told_by_tenant_with_what_was_thrown_away_and_first_turns_apart() -> None:
    tally = LaneTally()
    tally.add_turn(work("acme"), completed(input_tokens=10, output_tokens=5, discarded_tokens=2))
    tally.add_turn(work("acme", turn=2), completed(input_tokens=20, output_tokens=5))
    tally.add_turn(work("other"), None)  # It failed: nobody knows what it has cost.
    assert tally.finished == 3
    assert list(tally.output_tokens) == [5, 5]
    assert tally.take() == ({"acme": 42, "other": 0}, {"acme": 1, "other": 1})


def test_a_report_names_those_who_have_used_most_and_the_next_one_the_others() -> None:
    tally = LaneTally()
    for number in range(TENANTS_MAX + 3):
        tally.add_turn(work(f"t{number}"), completed(output_tokens=number))
    told, begun = tally.take()
    assert told.keys() == begun.keys() == {f"t{number}" for number in range(3, TENANTS_MAX + 3)}
    assert tally.take() == ({"t2": 2, "t1": 1, "t0": 0}, {"t2": 1, "t1": 1, "t0": 1})
    assert len(tally.output_tokens) == OUTPUTS_MAX


def test_the_median_output_outlasts_a_quiet_hour() -> None:
    window = LaneWindow("default", "normal")
    window.add(0.0, LaneSample(worker="w", finished=3, wait_seconds=[], output_tokens=[10, 30, 1_000]))
    assert window.statistics(1.0, NOW, 0, 0).output_tokens_p50 == 30
    later = window.statistics(3_600.0, NOW, 5, 0, 3)
    assert (later.output_tokens_p50, later.drain_per_second, later.depth, later.backlog) == (30, None, 5, 3)
    assert LaneWindow("default", "normal").statistics(0.0, NOW, 0, 0).output_tokens_p50 is None
