"""The judge of `make chaos ARGS="--run ledger"` finds what journals and the model server do not tell alike."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.accounts import Call, Told, compare
from tests.chaos.bookkeeping import sums_of

TASK = "t1"
TEXT = "task 1 "


def call(number: int, how: str = "answers", text: str = TEXT) -> Call:
    """A call that has told all, or nothing."""
    told = [Told(number, 3, 14)] if how != "tells nothing" else []
    return Call(number, text, "priced", how, generated=14, told=told, is_whole=bool(told))


def completed(number: int, **usage: Any) -> dict[str, Any]:
    counts = {"input_tokens": number, "output_tokens": 14, "cached_tokens": 3, **usage}
    return {"type": "turn.completed", "provider": "local", "usage": counts}


def journal(*told: dict[str, Any], text: str = TEXT) -> list[dict[str, Any]]:
    return [{"type": "task.queued", "request": {"input": text}}, *told]


LOST = {"type": "step.claimed", "lost": [{"turn": 1}]}
UNTOLD = {"type": "model.spent", "usage": {"input_tokens": 0, "output_tokens": 0, "untold_calls": 1}}


@pytest.mark.parametrize("known", [LOST, UNTOLD])
def test_what_is_told_or_known_to_be_untold_agrees(known: dict[str, Any]) -> None:
    calls = [call(1_000), call(1_001, "tells nothing")]
    books = compare(calls, {TASK: journal(known, completed(1_000))})
    assert (books.problems, books.calls, books.known, books.lost, books.phantoms) == ([], 2, 1, 1, 0)
    assert (books.known_tokens, books.lost_tokens) == (1_014, 1_015)


def test_a_call_that_was_never_made_may_count_as_untold() -> None:
    assert compare([call(1_000)], {TASK: journal(LOST, completed(1_000))}).phantoms == 1


@pytest.mark.parametrize(
    ("calls", "told", "problem"),
    [
        ([call(1_000), call(1_001)], [completed(1_000)], "tells 0 untold calls"),
        ([call(1_000)], [completed(1_000), completed(1_000)], "counts 2 times"),
        ([call(1_000)], [completed(1_000, output_tokens=15)], "not what the server has told"),
        ([call(1_000)], [completed(1_000, cached_tokens=4)], "not what the server has told"),
        ([call(1_000)], [completed(1_000, output_tokens=15, untold_calls=1)], "nothing that the server has told"),
        ([call(1_000)], [completed(1_001)], "no call of it"),
        ([call(1_000, text="task 2 ")], [completed(1_000)], "no call of it"),
    ],
    ids=["missing", "doubled", "output", "cached", "partial", "unknown", "another task's"],
)
def test_each_difference_is_found(calls: list[Call], told: list[dict[str, Any]], problem: str) -> None:
    found = compare(calls, {TASK: journal(*told)}).problems
    assert any(problem in each for each in found), found


def test_a_call_that_was_refused_and_counts_is_found() -> None:
    refused = call(1_000)
    refused.is_refused = True
    assert "refused" in compare([refused], {TASK: journal(completed(1_000))}).problems[0]


def test_sums_are_of_all_journals_by_the_prices_of_their_provider() -> None:
    other = {**completed(2_000), "type": "model.spent", "provider": "other"}
    assert sums_of({"a": journal(completed(1_000), LOST), "b": journal(other)}) == {
        "turns": 1,
        "input": 3_000,
        "cached": 6,
        "output": 28,
        "untold": 1,
        "cost": 997 * 3 + 3 * 1 + 14 * 15,
        "unpriced": 2_014,
    }
