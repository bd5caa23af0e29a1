"""What an event adds to the counters: of every version, of odd writers, and in the day that it happened."""

from __future__ import annotations

from collections import Counter as Sums
from datetime import UTC, datetime, timedelta, timezone

import pytest

from contracts.codec import encode
from contracts.errors import InvalidPayload
from contracts.journal import events
from contracts.journal.events import JournalEvent, Stamp
from contracts.journal.parts import ModelCall, Usage
from contracts.records.usage import NOT_TOLD, Counter, Place, What
from mesh.ledger.entries import AMOUNT_MAX, increments_of
from tests.golden.reading import Golden, as_stored, folders, read
from tests.unit.journals import START, TASK

OLD = [read(file) for folder in folders() if folder.name == "0.1" for file in sorted(folder.glob("*.json"))]


def spent(time: datetime = START, provider: str = "mine", model: str = "m", usage: Usage | None = None) -> JournalEvent:
    return events.ModelSpent(
        *Stamp(TASK, TASK, "acme", 1, time),
        turn=1,
        provider=provider,
        model=model,
        pool="default",
        reason="failed",
        usage=usage or Usage(3, 0),
    )


def of(provider: str, model: str, **amounts: int) -> dict[Counter, int]:
    """So much of each in the day of START and its month."""
    kinds: dict[What, int] = amounts  # type: ignore[assignment]  # kinds by their names
    return {
        Counter(Place("acme", period, provider, model, "default"), what): amount
        for period in ("2026-01-02", "2026-01")
        for what, amount in kinds.items()
    }


@pytest.mark.parametrize("golden", OLD, ids=lambda golden: golden.name)
def test_journals_of_0_1_count_what_they_tell_at_a_place_that_nobody_has_named(golden: Golden) -> None:
    for task in golden.tasks:
        sums: Sums[str] = Sums()
        for _, event in task.events:
            for counter, amount in increments_of(as_stored(event)).items():
                assert counter.place[2:] == (NOT_TOLD, NOT_TOLD, NOT_TOLD)
                sums[counter.what] += amount
        completed = [event for _, event in task.events if event["type"] == "turn.completed"]
        told = {
            "turns": len(completed),
            "input": sum(event["usage"]["input_tokens"] for event in completed),
            "output": sum(event["usage"]["output_tokens"] for event in completed),
        }
        assert {what: 2 * amount for what, amount in told.items()} == {what: sums[what] for what in told}
        assert sums["unpriced"] == sums["input"] + sums["output"]


def test_a_name_that_fits_no_subject_counts_as_not_told() -> None:
    assert increments_of(encode(spent(provider="No such provider!", model=""))) == of("_", "_", input=3, unpriced=3)
    assert increments_of(encode(spent(model="m" * 129))) == of("mine", "_", input=3, unpriced=3)
    assert increments_of(encode(spent(model="m" * 128))) == of("mine", "m" * 128, input=3, unpriced=3)


def test_a_text_that_looks_like_usage_counts_nothing() -> None:
    said = events.OutputDelta(*Stamp(TASK, TASK, "acme", 1, START), turn=1, text='"turn.completed" "lost"')
    assert increments_of(encode(said)) == {}


def test_what_no_call_can_have_used_is_no_count() -> None:
    assert increments_of(encode(spent(usage=Usage(AMOUNT_MAX, 0, cost_micros=0))))
    with pytest.raises(InvalidPayload, match="more than any call uses"):
        increments_of(encode(spent(usage=Usage(AMOUNT_MAX + 1, 0))))


@pytest.mark.parametrize(
    ("time", "day"),
    [
        (datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC), "2026-01-31"),
        (datetime(2026, 2, 1, tzinfo=UTC), "2026-02-01"),
        (datetime(2026, 2, 1, 0, 30, tzinfo=timezone(timedelta(hours=1))), "2026-01-31"),
        (datetime(2026, 1, 31, 23, 30, tzinfo=timezone(timedelta(hours=-1))), "2026-02-01"),
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))), "0001-01-01"),
        (datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-14))), "9999-12-31"),
    ],
    ids=str,
)
def test_an_event_counts_in_the_day_and_the_month_of_its_end_in_utc(time: datetime, day: str) -> None:
    assert {counter.place.period for counter in increments_of(encode(spent(time)))} == {day, day[:7]}


def test_each_lost_call_counts_as_untold_where_it_was_made() -> None:
    lost = [
        ModelCall(turn=1, provider="mine", model="m", pool="default"),
        ModelCall(turn=2, provider="mine", model="m"),
    ]
    ended = events.TaskCancelled(*Stamp(TASK, TASK, "acme", 1, START), lost=lost)
    unnamed = {counter._replace(place=counter.place._replace(pool="_")): 1 for counter in of("mine", "m", untold=1)}
    assert increments_of(encode(ended)) == of("mine", "m", untold=1) | unnamed
