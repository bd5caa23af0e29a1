"""Pace where something is wrong: clocks, distances, records, figures, refusals, and files that differ. No broker."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.journal.parts import Usage
from contracts.records.pace import LIMITS, Limit, PaceHolder, PaceRecord
from inference_worker.dialects.errors import retry_after_seconds
from inference_worker.models.rate_headers import told_by
from mesh.configuration.pace_table import PaceSettings
from mesh.pacing.pacer import Pacer
from mesh.pacing.rules import PACED_SHARE, SHUT_TOLD_SECONDS_MAX, Wanted, book, is_free, room, shut_until, sound
from tests.support.pace_simulation import START, Fleet, Provider, turns

LIMITED = PaceSettings(requests_per_minute=600)


def time_of(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def until_of(record: PaceRecord | None, limit: str = "requests") -> float:
    assert record is not None
    return record.booked_until[limit].timestamp()  # type: ignore[index]


def said(pacer: Pacer, record: PaceRecord | None, at: float) -> PaceRecord | None:
    """The record once a pacer has written what it has to say."""
    pacer.see(record, at)
    wanted = pacer.wanted(at)
    if wanted is None:
        return record
    result = book(record, pacer.provider, pacer.settings, "one", wanted, at)
    pacer.got(wanted, result, at)
    return result.record if result.is_new else record


# What a booking costs


@pytest.mark.parametrize(("workers", "writes_a_second"), [(1, 6), (8, 20), (50, 80)])
def test_a_busy_fleet_writes_a_few_times_a_second(workers: int, writes_a_second: float) -> None:
    provider = Provider(PaceSettings(requests_per_minute=6_000, tokens_per_minute=600_000), seconds=6)
    fleet = Fleet(provider, workers, seed=workers)
    fleet.queue = turns(3_000, seed=1)
    fleet.run(120)
    assert not fleet.queue
    seconds = provider.last_at - provider.first_at
    assert fleet.writes / seconds <= writes_a_second
    assert fleet.reads / seconds <= 3 * writes_a_second


def test_workers_that_wait_for_a_small_limit_do_not_ask_all_the_time() -> None:
    provider = Provider(PaceSettings(requests_per_minute=20), seconds=60)
    fleet = Fleet(provider, 8, seed=1)
    fleet.queue = turns(40, seed=1)
    fleet.run(300)
    assert not fleet.queue
    seconds = provider.last_at - provider.first_at
    # A turn each three seconds: it is booked, and told of once it has ended. Others look once for each.
    assert fleet.writes <= 4 * provider.taken
    assert fleet.reads / seconds <= 8


def test_who_gets_nothing_and_has_nothing_to_say_writes_nothing() -> None:
    first = book(None, "main", PaceSettings(requests_per_minute=20), "one", Wanted(turns=1), START)
    assert (len(first.starts), first.is_new) == (1, True)
    second = book(first.record, "main", PaceSettings(requests_per_minute=20), "two", Wanted(turns=2), START + 0.1)
    assert (second.starts, second.is_new) == ((), False)
    assert second.again_at == pytest.approx(until_of(first.record)), "and comes when there is room"
    places = PaceSettings(concurrency=2)
    held = book(None, "main", places, "one", Wanted(slots=2, slots_in_use=2), START)
    short = book(held.record, "main", places, "two", Wanted(slots=1), START + 1)
    assert (short.slots, short.is_new) == (0, True), "that it lacks one is news"
    assert not book(short.record, "main", places, "two", Wanted(slots=1), START + 2).is_new
    assert book(short.record, "main", places, "two", Wanted(slots=1), START + 5).is_new, "until it would be forgotten"


# Distances and clocks


def test_a_worker_far_from_the_broker_gets_turns_and_holds_up_nobody() -> None:
    provider = Provider(PaceSettings(requests_per_minute=4_800), seconds=6)
    fleet = Fleet(provider, 8, seed=1)
    fleet.far = {0: 0.12}
    fleet.queue = turns(3_000, seed=1)
    fleet.run(120)
    assert not fleet.queue
    assert provider.refused <= 0.01 * provider.taken
    assert provider.share_used("requests") >= 0.95
    assert fleet.done_by[0] >= 5, "the others are there first, but it is not left out"


def test_a_fleet_far_from_the_broker_uses_what_is_allowed() -> None:
    provider = Provider(PaceSettings(requests_per_minute=4_800), seconds=6)
    fleet = Fleet(provider, 8, seed=1)
    fleet.far = dict.fromkeys(range(8), 0.12)
    fleet.queue = turns(3_000, seed=1)
    fleet.run(120)
    assert not fleet.queue
    assert provider.refused <= 0.01 * provider.taken
    assert provider.share_used("requests") >= 0.95


@pytest.mark.parametrize("ahead", [0.05, 3.0])
def test_clocks_that_differ_never_make_a_fleet_go_too_fast(ahead: float) -> None:
    provider = Provider(PaceSettings(requests_per_minute=4_800), seconds=6)
    fleet = Fleet(provider, 8, seed=1)
    fleet.clocks = {worker: lambda _, by=ahead * (worker - 4) / 4: by for worker in range(8)}  # type: ignore[misc]
    fleet.queue = turns(3_000, seed=1)
    fleet.run(200)
    assert not fleet.queue
    assert provider.refused <= 0.01 * provider.taken
    assert provider.share_used("requests") >= (0.95 if ahead < 1 else 0.6)


@pytest.mark.parametrize("by", [2.0, 30.0, 3600.0])
def test_a_clock_that_jumps_costs_no_more_than_ten_seconds(by: float) -> None:
    provider = Provider(PaceSettings(requests_per_minute=4_800), seconds=6)
    fleet = Fleet(provider, 4, seed=1)
    # That of the broker is put back in mid-run, then forward: all workers go by it.
    clock = lambda at: by if not 5 < at - START < 25 else 0.0  # noqa: E731
    fleet.clocks = dict.fromkeys(range(4), clock)
    fleet.queue = turns(3_200, seed=1)
    fleet.run(200)
    assert not fleet.queue
    assert provider.refused <= 0.01 * provider.taken
    assert provider.last_at - provider.first_at <= 3_200 / 80 / 0.95 + 11


# Records and figures


def test_a_worker_with_another_file_leaves_what_others_have_booked() -> None:
    limits = PaceSettings(requests_per_minute=60, tokens_per_minute=60_000, concurrency=4)
    owed: dict[Limit, float] = {"requests": 5.0, "tokens": 3_000.0}
    record = book(None, "main", limits, "one", Wanted(debts=owed, slots=2, slots_in_use=2), START).record
    record = book(record, "main", limits, "one", Wanted(told={"tokens": 30_000}), START).record
    for less in (PaceSettings(), PaceSettings(requests_per_minute=60)):
        says = Wanted(refused_until=START + 5, debts={"requests": 1.0}, must_say=True)
        after = book(record, "main", less, "two", says, START).record
        assert shut_until(after) == START + 5
        assert after.booked_until["tokens"] == record.booked_until["tokens"]
        assert until_of(after) >= until_of(record)
        assert after.told == record.told
        assert after.holders == record.holders
    # What is long over is left behind.
    late = book(record, "main", PaceSettings(), "two", Wanted(refused_until=START + 99), START + 60).record
    assert (late.booked_until, late.holders) == ({}, {})


def test_a_record_written_by_hand_holds_a_provider_up_for_an_hour_at_most() -> None:
    never = datetime(9999, 12, 31, tzinfo=UTC)
    record = PaceRecord(
        provider="main",
        time=time_of(START),
        booked_until=dict.fromkeys(LIMITS, never),
        shut_until=never,
        told={"requests": 1e-300, "tokens": 0},
        input_tokens=1e300,
        output_tokens=1e300,
        holders={"nobody": PaceHolder(slots=10**12, wants=10**12, until=never)},
    )
    limits = PaceSettings(requests_per_minute=600, tokens_per_minute=60_000, concurrency=4)
    read = sound(record, START + 1)
    assert shut_until(read) == START + SHUT_TOLD_SECONDS_MAX
    assert until_of(read) == START + SHUT_TOLD_SECONDS_MAX
    assert read.holders["nobody"].until <= time_of(START + 22)
    over = START + SHUT_TOLD_SECONDS_MAX + 2
    again = sound(record, over)
    assert (shut_until(again) < over, is_free(again, over), room(limits, again, over) > 0) == (True, True, False)
    assert room(limits, sound(replace_holders(again), over), over) == 1.0
    booked = book(again, "main", limits, "one", Wanted(turns=5, tokens=(40.0, 60.0)), over)
    assert len(booked.starts) == 1, "at the pace that the provider is believed to have"


def replace_holders(record: PaceRecord) -> PaceRecord:
    return PaceRecord(provider="main", time=record.time, booked_until=record.booked_until)


AMOUNTS = st.one_of(st.just(0.0), st.floats(-1e18, 1e18), st.sampled_from([1e-300, 1e308, 1e15]))
POSITIVE = st.one_of(st.floats(0, 1e18), st.sampled_from([1e-300, 1e308]))
TIMES = st.datetimes(datetime(1971, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
RECORDS = st.builds(
    PaceRecord,
    provider=st.just("main"),
    time=TIMES,
    booked_until=st.dictionaries(st.sampled_from(LIMITS), TIMES),
    shut_until=st.none() | TIMES,
    refusals=st.integers(0, 10**15),
    told=st.dictionaries(st.sampled_from(LIMITS), POSITIVE),
    input_tokens=st.none() | POSITIVE,
    output_tokens=st.none() | POSITIVE,
    holders=st.dictionaries(
        st.sampled_from(["one", "two"]),
        st.builds(PaceHolder, slots=st.integers(0, 10**18), wants=st.integers(0, 10**18), until=TIMES),
    ),
)
WANTED = st.builds(
    Wanted,
    turns=st.integers(0, 2000),
    debts=st.dictionaries(st.sampled_from(LIMITS), AMOUNTS),
    tokens=st.none() | st.tuples(POSITIVE, POSITIVE),
    remaining=st.dictionaries(st.sampled_from(LIMITS), POSITIVE),
    told=st.dictionaries(st.sampled_from(LIMITS), POSITIVE),
    refused_until=st.none() | st.floats(START, START + 3600),
    refused=st.integers(-1, 1000),
    slots=st.integers(0, 100),
    slots_in_use=st.integers(0, 100),
)
SETTINGS = st.builds(
    PaceSettings,
    requests_per_minute=st.none() | st.floats(0.1, 1e12),
    tokens_per_minute=st.none() | st.floats(0.1, 1e12),
    input_tokens_per_minute=st.none() | st.floats(0.1, 1e12),
    output_tokens_per_minute=st.none() | st.floats(0.1, 1e12),
    concurrency=st.none() | st.integers(1, 1_000_000),
)


@given(st.none() | RECORDS, SETTINGS, WANTED)
def test_whatever_is_told_a_booking_has_an_end(record: PaceRecord | None, limits: PaceSettings, wanted: Wanted) -> None:
    read = sound(record, START) if record is not None else None
    result = book(read, "main", limits, "one", wanted, START)
    assert len(result.starts) <= wanted.turns
    assert all(until_of(result.record, limit) <= START + SHUT_TOLD_SECONDS_MAX for limit in limits.by_minute)
    assert shut_until(result.record) <= START + SHUT_TOLD_SECONDS_MAX
    assert 0.0 <= room(limits, result.record, START) <= 1.0
    assert sound(result.record, START) == result.record


def test_one_absurd_count_costs_a_minute_and_not_a_day() -> None:
    limits = PaceSettings(tokens_per_minute=60_000)
    pacer, record = Pacer("main", limits, "one"), None
    at = START
    for tokens in (10**12, *[100] * 5):
        place = pacer.take(at)
        assert place is not None
        pacer.begin(place, 400, None).used(Usage(tokens // 2, tokens // 2))
        place.release()
        record = said(pacer, record, at + 1)
        at = until_of(record, "tokens") + 1
        assert at <= START + 200, "of six turns"


def test_a_limit_that_a_provider_tells_is_never_nothing() -> None:
    pacer = Pacer("main", LIMITED, "one")
    pacer.hear({"requests": 1e-6}, {"requests": 0}, START)
    record = said(pacer, None, START)
    assert until_of(record) == pytest.approx(START + 1), "a second's worth is waited for, and no more"
    booked = book(record, "main", LIMITED, "one", Wanted(turns=1), START + 2)
    assert until_of(booked.record) - START <= 60 / 0.1 / PACED_SHARE + 2
    # It is not the provider's last word.
    pacer.hear({"requests": 600}, {}, START + 2)
    after = said(pacer, booked.record, START + 2)
    assert after is not None
    assert after.told == {}


def test_what_is_told_of_and_known_already_is_no_news() -> None:
    pacer = Pacer("main", LIMITED, "one")
    record = PaceRecord(provider="main", time=time_of(START), booked_until={"requests": time_of(START + 0.9)})
    pacer.see(record, START)
    pacer.hear({"requests": 600}, {"requests": 2}, START)
    assert pacer.wanted(START) is None, "others have booked further than that"
    pacer.hear({"requests": 600}, {"requests": 0}, START)
    assert pacer.wanted(START) is not None


# Refusals


@pytest.mark.parametrize("workers", [1, 50])
def test_those_that_waited_for_a_provider_do_not_come_all_at_once(workers: int) -> None:
    provider = Provider(PaceSettings(requests_per_minute=600), seconds=6)
    fleet = Fleet(provider, workers, seed=1)
    record = book(None, "main", provider.settings, "other", Wanted(refused_until=START + 5), START).record
    fleet.set_record(record)
    fleet.queue = turns(60, seed=1)
    fleet.run(30)
    assert not fleet.queue
    since = [at - START - 5 for at in fleet.begun_at]
    assert min(since) >= 0
    assert sum(at < 0.5 for at in since) <= 5 + 1, "ten a second"
    assert max(since) <= 60 / 9.8 + 1


def test_also_where_nothing_is_limited_they_come_one_after_the_other() -> None:
    pacer = Pacer("main", PaceSettings(), "one")
    pacer.refuse(5.0, START)
    record = said(pacer, None, START)
    for one in (pacer, Pacer("main", PaceSettings(), "two")):
        one.see(record, START)
        begun = 0
        for tenth in range(25):
            at = START + 5 + tenth / 10
            while begun < 500 and one.take(at) is not None:
                begun += 1
            if tenth == 0:
                assert begun == 1
                assert one.changes_at(at) == pytest.approx(START + 5.25)
            if tenth == 10:
                assert begun <= 16
        assert begun == 500
    # A refusal in between shuts it again, and those to come begin anew.
    pacer.refuse(1.0, START + 8)
    assert pacer.room(START + 8.5) == 0
    assert pacer.room(START + 9.1) == 1


def test_a_refusal_is_believed_for_an_hour_at_most() -> None:
    pacer = Pacer("main", LIMITED, "one")
    pacer.refuse(1e9, START)
    record = said(pacer, None, START)
    assert shut_until(record) == pytest.approx(START + SHUT_TOLD_SECONDS_MAX)


def test_a_refusal_that_others_have_told_of_is_not_kept_to_be_told_once_more() -> None:
    pacer = Pacer("main", LIMITED, "one")
    pacer.refuse(5.0, START)
    others = book(None, "main", LIMITED, "two", Wanted(refused_until=START + 6), START).record
    assert said(pacer, others, START + 0.1) == others
    assert pacer.wanted(START + 0.1) is None
    # Somebody opens it by hand.
    pacer.see(None, START + 1)
    assert not pacer.is_shut(START + 1)


def test_a_turn_on_credit_that_began_during_a_booking_is_not_forgotten() -> None:
    pacer = Pacer("main", LIMITED, "one")
    pacer.refuse(None, START - 60)
    wanted = pacer.wanted(START)
    assert wanted is not None
    result = book(None, "main", LIMITED, "one", replace(wanted, refused=0), START)
    pacer.see(None, START)
    assert pacer.take(START) is not None, "while that is on its way"
    pacer.got(wanted, result, START + 0.2)
    assert pacer.take(START + 0.2) is None
    assert until_of(said(pacer, result.record, START + 0.2)) > START + 0.2 - 1


def test_who_is_killed_keeps_what_it_has_booked_and_no_more() -> None:
    provider = Provider(PaceSettings(requests_per_minute=4_800), seconds=6)
    fleet = Fleet(provider, 8, seed=1)
    fleet.queue = turns(2_400, seed=1)
    fleet.run(120, kill_at=15)
    assert not fleet.queue
    begun = sorted(fleet.begun_at)
    killed_at = START + 15
    in_a_second = sum(killed_at <= at < killed_at + 1 for at in begun)
    assert in_a_second >= 0.7 * 80, "of what is allowed in the second after it"
    in_two = sum(killed_at + 1 <= at < killed_at + 3 for at in begun)
    assert in_two >= 0.9 * 160, "and all of it from then on"


def test_what_a_dead_worker_holds_of_a_concurrency_is_free_again_ten_seconds_later() -> None:
    limits = PaceSettings(concurrency=4)
    record = book(None, "main", limits, "dead", Wanted(slots=4, slots_in_use=4), START).record
    alive = Pacer("main", limits, "alive")
    alive.see(record, START + 9)
    assert alive.take(START + 9) is None
    alive.see(record, START + 9.5)
    assert alive.take(START + 10.1) is not None
    assert record.holders["dead"].until - record.time <= timedelta(seconds=10)


NAMES = (
    "retry-after",
    "retry-after-ms",
    *(f"x-ratelimit-{a}-{b}" for a in ("limit", "remaining", "reset") for b in ("requests", "tokens")),
    *(f"anthropic-ratelimit-{b}-{a}" for a in ("limit", "remaining", "reset") for b in ("requests", "input-tokens")),
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.from_regex(r"[0-9]{1,400}(\.[0-9]{1,30})?\s?", fullmatch=True),
    st.sampled_from(
        ["0\x1f", "nan", "1e999", "-1", "Fri, 31 Dec 9999 23:59:59 GMT", "9999-12-31T23:59:59-23:59", "6m0s"]
    ),
)


@given(st.dictionaries(st.sampled_from(NAMES), TEXTS), st.sampled_from([429, 503, 200]))
def test_whatever_headers_say_it_is_no_error_and_no_more_than_an_hour(headers: dict[str, str], status: int) -> None:
    seconds = retry_after_seconds(status, headers, time_of(START))
    assert seconds is None or 0 < seconds <= SHUT_TOLD_SECONDS_MAX
    pacer = Pacer(
        "main", PaceSettings(requests_per_minute=600, tokens_per_minute=6_000, input_tokens_per_minute=9), "one"
    )
    pacer.hear(*told_by(headers), START)
    record = said(pacer, None, START)
    assert record is None or all(until.timestamp() <= START + 1 for until in record.booked_until.values())
