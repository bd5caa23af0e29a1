"""Pace: workers that share one record keep to what a provider allows, and use it. No broker, and a clock of its own."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from contracts.journal.parts import Usage
from contracts.records.pace import PaceRecord
from inference_worker.models.rate_headers import told_by
from mesh.configuration.pace_table import PaceSettings
from mesh.pacing.pacer import Pacer, Place
from mesh.pacing.rules import HOLD_SECONDS, PACED_SHARE, Booked, Wanted, book, room
from tests.support.pace_simulation import START, Fleet, Provider, turns


@pytest.mark.parametrize(
    ("limit", "workers", "kills"),
    [("tokens", 1, False), ("tokens", 8, True), ("requests", 8, False), ("requests", 50, True)],
)
def test_a_fleet_uses_what_is_allowed_and_no_more(limit: str, workers: int, kills: bool) -> None:
    # Ten times as fast as a minute's: what takes 100 s here takes 17 minutes there.
    limits = PaceSettings(
        requests_per_minute=6_000 if limit == "requests" else 12_000,
        tokens_per_minute=600_000 if limit == "tokens" else 1_200_000,
    )
    provider = Provider(limits, seconds=6)
    fleet = Fleet(provider, workers, seed=workers)
    fleet.queue = turns(3_000, seed=1)
    fleet.run(120, kill_at=15 if kills else None)
    assert not fleet.queue
    assert provider.refused <= 0.01 * provider.taken
    assert provider.share_used(limit) >= 0.95, provider


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("a_minute", [20, 120])
def test_a_small_limit_is_used_by_many_workers_as_by_one(workers: int, a_minute: int) -> None:
    provider = Provider(PaceSettings(requests_per_minute=a_minute), seconds=10 + 60 * workers / a_minute)
    fleet = Fleet(provider, workers, seed=1)
    fleet.queue = turns(a_minute * 5, seed=1)
    fleet.run(700)
    assert not fleet.queue
    assert provider.refused <= 0.01 * provider.taken
    assert provider.share_used("requests") >= 0.95


def test_a_key_that_others_use_as_well_is_not_overdrawn_by_much() -> None:
    provider = Provider(PaceSettings(requests_per_minute=6_000), seconds=6)
    fleet = Fleet(provider, 4, seed=1)
    fleet.tells = True
    fleet.foreign = 40.0
    fleet.queue = turns(1_500, seed=1)
    fleet.run(120)
    assert not fleet.queue
    assert provider.refused <= 0.03 * provider.taken


def settings(**limits: float) -> PaceSettings:
    return PaceSettings(**limits)  # type: ignore[arg-type]


def booked(record: PaceRecord | None, limits: PaceSettings, at: float, worker: str = "one", **wanted: object) -> Booked:
    return book(record, "main", limits, worker, Wanted(**wanted), at)  # type: ignore[arg-type]


def begun(pacer: Pacer, at: float, count: int) -> list[Place]:
    """So many places, each of which begins."""
    places = [place for _ in range(count) if (place := pacer.take(at)) is not None]
    for place in places:
        pacer.begin(place, 0, None)
    return places


def synced(pacer: Pacer, record: PaceRecord | None, at: float) -> PaceRecord | None:
    """The record once a pacer has written what it has to say."""
    pacer.see(record, at)
    wanted = pacer.wanted(at)
    if wanted is None:
        return record
    result = book(record, pacer.provider, pacer.settings, pacer.slots._worker, wanted, at)
    pacer.got(wanted, result, at)
    return result.record


def test_what_is_not_limited_has_no_bound() -> None:
    pacer = Pacer("main", PaceSettings(), "one")
    assert len(begun(pacer, START, 1000)) == 1000
    assert pacer.wanted(START + 100) is None, "nothing is written of it"
    assert pacer.part(START) == 1.0


def test_the_first_turn_of_an_idle_fleet_waits_for_nobody_and_is_booked_afterwards() -> None:
    limits = settings(requests_per_minute=60)
    pacer = Pacer("main", limits, "one")
    assert pacer.room(START) == 1
    assert pacer.take(START) is not None
    assert (pacer.room(START), pacer.take(START)) == (0, None)
    record = synced(pacer, None, START)
    assert record is not None
    assert record.booked_until["requests"].timestamp() == pytest.approx(START - 1 + 1 / PACED_SHARE)
    other = Pacer("main", limits, "two")
    other.see(record, START)
    assert other.room(START) == 1, "a second's worth may go at once"


def test_a_turn_that_takes_more_than_a_minute_allows_begins_when_all_is_free() -> None:
    limits = settings(tokens_per_minute=600)
    record = PaceRecord(provider="main", time=datetime.now(UTC), input_tokens=1000, output_tokens=200)
    first = booked(record, limits, START, turns=3)
    assert len(first.starts) == 1
    at = first.record.booked_until["tokens"].timestamp()
    assert at == pytest.approx(START - 1 + 120 / PACED_SHARE)
    assert booked(first.record, limits, at - 0.1, turns=1).starts == ()
    assert len(booked(first.record, limits, at, turns=1).starts) == 1


def test_what_a_turn_has_used_beyond_its_booking_slows_all_down() -> None:
    limits = settings(output_tokens_per_minute=6_000)
    pacer = Pacer("main", limits, "one")
    place = pacer.take(START)
    turn = pacer.begin(place, 0, None)
    turn.used(Usage(10, 4_000))
    record = synced(pacer, None, START)
    assert record is not None
    assert record.booked_until["output_tokens"].timestamp() == pytest.approx(START - 1 + 40 / PACED_SHARE)
    assert room(limits, record, START) == 0.0


def test_what_was_booked_and_is_not_used_is_given_back() -> None:
    limits = settings(requests_per_minute=600)
    pacer = Pacer("main", limits, "one")
    begun(pacer, START, 1)
    pacer.ask(START)
    record = synced(pacer, None, START)
    assert record is not None
    booked_until = record.booked_until["requests"].timestamp()
    assert booked_until > START - 1 + 0.2
    record = synced(pacer, record, START + 3)
    record = synced(pacer, record, START + 3 + 1)
    assert record is not None
    assert record.booked_until["requests"].timestamp() < START + 4, "a second's worth is free again"
    assert room(limits, record, START + 4) == 1.0


def test_a_refusal_shuts_it_for_all_until_its_time_and_one_without_longer_each_time() -> None:
    limits = settings(requests_per_minute=600)
    pacer, other = Pacer("main", limits, "one"), Pacer("main", limits, "two")
    place = pacer.take(START)
    pacer.begin(place, 0, None).refused(20.0, START)
    assert pacer.room(START) == 0, "here at once"
    record = synced(pacer, None, START)
    other.see(record, START)
    assert (other.room(START + 19.9), other.part(START)) == (0, 0.0)
    assert other.seconds_shut(START) == pytest.approx(20)
    assert (other.room(START + 20.1), other.ask(START + 20.1)) == (0, True), "it goes on at its pace, by bookings"
    assert synced(other, record, START + 20.1) is not None
    assert other.room(START + 20.2) >= 1
    assert other.changes_at(START) == pytest.approx(START + 20)

    record, at = None, START
    waits = []
    for _ in range(8):
        result = booked(record, limits, at, refused=1)
        record = result.record
        assert result.news
        assert record.shut_until is not None
        waits.append(record.shut_until.timestamp() - at)
        together = booked(record, limits, at, "two", refused=3).record
        assert together.shut_until == record.shut_until, "those under way together are one refusal"
        at = record.shut_until.timestamp() + 0.01
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60])
    assert booked(record, limits, at, refused=-1).record.refusals == 0


def test_a_provider_without_limits_is_left_alone_when_it_says_for_how_long() -> None:
    pacer = Pacer("main", PaceSettings(), "one")
    pacer.refuse(None, START)
    assert (pacer.room(START) > 0, pacer.wanted(START)) == (True, None)
    pacer.refuse(5.0, START)
    assert pacer.room(START) == 0
    record = synced(pacer, None, START)
    other = Pacer("main", PaceSettings(), "two")
    other.see(record, START)
    assert other.room(START + 4.9) == 0
    assert other.room(START + 5.1) == 1
    assert other.room(START + 11) > 1000


def test_what_the_provider_itself_says_is_believed() -> None:
    limits = settings(requests_per_minute=600, tokens_per_minute=60_000)
    pacer = Pacer("main", limits, "one")
    pacer.hear({"requests": 300, "tokens": 100_000}, {"requests": 500, "tokens": 200}, START)
    record = synced(pacer, None, START)
    assert record is not None
    assert record.told == {"requests": 300}, "more than what is set is not taken"
    # 200 tokens are left, and a second's worth is 980: nothing begins until they are there again.
    assert record.booked_until["tokens"].timestamp() == pytest.approx(START + 780 / 980)
    assert synced(pacer, booked(record, limits, START, told={"requests": 600}).record, START).told == {}  # type: ignore[union-attr]


def test_nobody_takes_places_that_others_hold_and_those_of_the_dead_are_free_again() -> None:
    limits = settings(concurrency=4)
    first = booked(None, limits, START, "one", slots=4, slots_in_use=4)
    assert (first.slots, first.record.holders["one"].slots) == (4, 4)
    second = booked(first.record, limits, START + 1, "two", slots=2)
    assert (second.slots, second.record.holders["two"].wants, second.news) == (0, 2, True)
    shrunk = booked(second.record, limits, START + 2, "one", slots=4, slots_in_use=1)
    assert (shrunk.slots, shrunk.news) == (2, True), "an equal part, once another is short"
    assert booked(shrunk.record, limits, START + 2.1, "two", slots=2).slots == 2
    late = booked(first.record, limits, START + HOLD_SECONDS + 1, "two", slots=4)
    assert (late.slots, set(late.record.holders)) == (4, {"two"})


def test_a_record_that_is_free_is_told_of_once_it_is_not() -> None:
    limits = settings(requests_per_minute=60)
    first = booked(None, limits, START, debts={"requests": 1.0})
    assert not first.news
    assert booked(first.record, limits, START, debts={"requests": 5.0}).news


def test_a_fleet_keeps_to_a_concurrency() -> None:
    provider = Provider(settings(concurrency=10))
    fleet = Fleet(provider, 5, seed=3)
    fleet.queue = turns(500, seed=1)
    fleet.run(400, kill_at=3)
    assert not fleet.queue
    # What the dead one had under way is counted as running for good; a turn of each may begin on credit.
    assert provider.running_most <= 10 + 10 + 5


@pytest.mark.parametrize(
    ("headers", "allowed", "remaining"),
    [
        ({}, {}, {}),
        (
            {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-tokens": " 59000 "},
            {"requests": 600},
            {"tokens": 59_000},
        ),
        (
            {"anthropic-ratelimit-input-tokens-limit": "30000", "anthropic-ratelimit-output-tokens-remaining": "0"},
            {"input_tokens": 30_000},
            {"output_tokens": 0},
        ),
        ({"x-ratelimit-limit-requests": "0", "x-ratelimit-remaining-requests": "many"}, {}, {}),
        ({"x-ratelimit-limit-requests": "-5", "x-ratelimit-limit-tokens": "١٢"}, {}, {}),
    ],
)
def test_headers_of_rate_limits(headers: dict[str, str], allowed: object, remaining: object) -> None:
    assert told_by(headers) == (allowed, remaining)


def test_what_was_booked_before_a_refusal_does_not_begin_all_at_once_after_it() -> None:
    limits = settings(requests_per_minute=6_000)
    pacer = Pacer("main", limits, "one")
    for _ in range(40):
        begun(pacer, START, 1)
        record = synced(pacer, None, START)
        pacer.ask(START)
    record = synced(pacer, record, START + 1)
    assert pacer.room(START + 1.4) > 5
    pacer.refuse(0.5, START + 1)
    record = synced(pacer, record, START + 1.01)
    assert pacer.room(START + 1.51) <= 1
    assert record is not None
    assert record.booked_until["requests"].timestamp() == pytest.approx(START + 1.5)


def test_a_place_that_is_given_up_costs_nothing() -> None:
    pacer = Pacer("main", settings(requests_per_minute=60), "one")
    place = pacer.take(START)
    assert place is not None
    place.release()
    record = synced(pacer, None, START)
    assert (pacer.slots.in_use, room(pacer.settings, record, START)) == (0, 1.0)
    assert pacer.room(START) == 1
