"""What the soak judges by: levels that grow, and what a client has received of a task."""

from __future__ import annotations

import json

import pytest

from tests.soak.levels import BOUNDS, Levels
from tests.soak.soak import KINDS, judged
from tests.support.checker import ClientHistory, Frame

SECONDS = 100.0


def levels(growth: float) -> Levels:
    found = Levels()
    for name in BOUNDS:
        for at in range(100):
            found.add(name, at, 1_000 * (1 + growth * at / SECONDS))
    return found


def test_levels_that_stay_are_no_growth_and_those_that_double_are() -> None:
    assert levels(0).growing(SECONDS) == []
    assert [each.partition(":")[0] for each in levels(2).growing(SECONDS)] == list(BOUNDS)


def test_a_level_without_samples_is_no_level_that_stays() -> None:
    assert len(Levels().growing(SECONDS)) == len(BOUNDS)


def history(*events: dict[str, object]) -> ClientHistory:
    frames = [
        Frame(n, str(event["type"]), json.dumps({"n": n, **event}).encode()) for n, event in enumerate(events, start=0)
    ]
    return ClientHistory("t", frames)


COMPLETED = {"type": "turn.completed", "text": KINDS[0].output}
END = {"type": "task.completed"}


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([COMPLETED, END], []),
        ([COMPLETED, {**END, "n": 5}], ["I4"]),
        ([COMPLETED], ["I2"]),
        ([COMPLETED, {"type": "task.failed"}], ["I2"]),
        ([{**COMPLETED, "text": "t0 t0 "}, END], ["I6"]),
        ([COMPLETED, *[{"type": "tool.completed", "call": "a"}] * 2, END], ["I8"]),
    ],
)
def test_what_is_lost_doubled_stuck_or_wrong_is_found(events: list[dict[str, object]], found: list[str]) -> None:
    problems = judged(history(*events), KINDS[0])
    assert [problem.partition(":")[0] for problem in problems] == found
