"""Circuit breakers: when they open, who probes, and that they close again."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.records.providers import Probe, ProviderRecord
from ingress.pool_availability import judge as judge_submission
from mesh.configuration.breaker_table import BreakerSettings
from mesh.providers.breaker_rules import (
    PROBE_LEASE_SECONDS,
    STALE_SECONDS,
    ObservedRecord,
    Verdict,
    Window,
    after_probe,
    holds_probe,
    interval_seconds,
    judge,
    observe,
    opened,
    probing,
    renewed,
    returned,
    wait_seconds,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = BreakerSettings()
LATENCY = BreakerSettings(slow_first_token_seconds=2.0)
FAILURES = Verdict("failures", 10, 10)
OPEN_AGAIN_SECONDS = (5.0, 10.0, 20.0, 40.0, 60.0, 60.0)


def window(outcomes: str, seconds: float = 30.0) -> Window:
    """Outcomes a tenth of a second apart, the last one at 0: `x` is a bad one."""
    filled = Window(seconds)
    for index, outcome in enumerate(outcomes):
        filled.add((index + 1 - len(outcomes)) / 10, bad=outcome == "x")
    return filled


@pytest.mark.parametrize(
    ("failures", "verdict"),
    [
        ("", None),
        ("x", None),
        ("xxxxxxxxx", None),
        ("xxxxxxxxxx", Verdict("failures", 10, 10)),
        (".....xxxxx", Verdict("failures", 5, 10)),
        ("......xxxx", None),
        ("." * 100 + "x" * 9, None),
        ("." * 100 + "x" * 10, Verdict("failures", 10, 110)),
        ("x" * 9 + "." * 20, None),
    ],
)
def test_failures_open_by_their_rate_or_in_a_row_and_never_alone(failures: str, verdict: Verdict | None) -> None:
    assert judge(window(failures), window(""), SETTINGS, 0.0) == verdict


@pytest.mark.parametrize(
    ("latencies", "settings", "verdict"),
    [
        ("xxxxxxxxxx", SETTINGS, None),
        ("xxxxxxxxx", LATENCY, None),
        ("..xxxxxxxx", LATENCY, Verdict("latency", 8, 10)),
        ("...xxxxxxx", LATENCY, None),
    ],
)
def test_slow_first_tokens_open_where_a_bound_is_set(
    latencies: str, settings: BreakerSettings, verdict: Verdict | None
) -> None:
    assert judge(window("." * 10), window(latencies), settings, 0.0) == verdict


def test_outcomes_that_are_too_old_do_not_count() -> None:
    failures = window("xxxxxxxxxx", seconds=30)
    assert judge(failures, window(""), SETTINGS, 29.0) is not None
    assert judge(failures, window(""), SETTINGS, 29.5) is None


def test_the_interval_doubles_up_to_its_bound() -> None:
    record = opened(None, "main", FAILURES, SETTINGS, NOW)
    seconds = []
    for _ in OPEN_AGAIN_SECONDS:
        assert record is not None
        seconds.append(wait_seconds(record))
        claimed = probing(record, "one", NOW, wait_seconds(record))
        record = after_probe(claimed, "one", "failures", SETTINGS, NOW)
    assert tuple(seconds) == OPEN_AGAIN_SECONDS
    assert interval_seconds(SETTINGS, 10_000) == SETTINGS.open_seconds_max


def test_an_outage_keeps_its_beginning_and_its_reason_until_it_is_over() -> None:
    first = opened(None, "main", Verdict("latency", 9, 11), LATENCY, NOW)
    claimed = probing(first, "one", NOW + timedelta(seconds=5), 5.0)
    again = after_probe(claimed, "one", "failures", LATENCY, NOW + timedelta(seconds=6))
    assert again is not None
    assert (again.since, again.reason, again.failures, again.samples) == (NOW, "failures", 9, 11)
    claimed = probing(again, "two", NOW + timedelta(seconds=16), 10.0)
    closed = after_probe(claimed, "two", None, LATENCY, NOW + timedelta(seconds=17))
    at = NOW + timedelta(seconds=17)
    assert closed == ProviderRecord(provider="main", state="closed", since=at, time=at)


def open_record(**changed: object) -> ProviderRecord:
    """An open record of five seconds, written at `NOW`."""
    fields: dict[str, object] = {"provider": "main", "state": "open", "since": NOW, "time": NOW}
    fields |= {"retry_at": NOW + timedelta(seconds=5), "opened_times": 1, **changed}
    return ProviderRecord(**fields)  # type: ignore[arg-type]  # of the right types


HALF_OPEN = open_record(state="half_open", retry_at=None, probe=Probe(worker="one", until=NOW + timedelta(seconds=10)))


@pytest.mark.parametrize(
    ("record", "age_seconds", "claimed"),
    [
        (None, 100.0, False),
        (ProviderRecord(provider="main", state="closed", since=NOW, time=NOW), 100.0, False),
        (open_record(), 4.9, False),
        (open_record(), 5.0, True),
        (HALF_OPEN, 9.9, False),
        (HALF_OPEN, 10.0, True),
        (open_record(retry_at=NOW - timedelta(days=1)), 0.0, True),
        (open_record(retry_at=NOW + timedelta(days=999)), 3599.0, False),
        (open_record(retry_at=NOW + timedelta(days=999)), 3600.0, True),
        (open_record(retry_at=None), 0.0, True),
    ],
)
def test_a_probe_is_to_be_had_once_the_wait_is_over(
    record: ProviderRecord | None, age_seconds: float, *, claimed: bool
) -> None:
    found = probing(record, "two", NOW, age_seconds)
    assert (found is not None) == claimed
    assert found is None or holds_probe(found, "two")


def test_only_the_holder_renews_and_settles_a_probe() -> None:
    for record in (None, open_record(), HALF_OPEN):
        assert renewed(record, "two", NOW) is None
        assert returned(record, "two", NOW) is None
        assert after_probe(record, "two", None, SETTINGS, NOW) is None
    kept = renewed(HALF_OPEN, "one", NOW + timedelta(seconds=4))
    assert kept is not None
    assert kept.probe == Probe(worker="one", until=NOW + timedelta(seconds=4 + PROBE_LEASE_SECONDS))


def test_a_probe_that_is_given_back_is_anybodys_at_once_and_counts_as_no_opening() -> None:
    given_back = returned(HALF_OPEN, "one", NOW + timedelta(seconds=2))
    assert given_back is not None
    assert (given_back.state, given_back.opened_times, given_back.probe) == ("open", 1, None)
    assert probing(given_back, "two", NOW, 0.0) is not None


def test_only_a_closed_breaker_opens() -> None:
    for record in (open_record(), HALF_OPEN):
        assert opened(record, "main", FAILURES, SETTINGS, NOW) is None


@pytest.mark.parametrize("hours", [-1000, -1, 0, 1, 1000])
def test_a_writers_clock_that_is_wrong_moves_no_probe(hours: int) -> None:
    """Who saw the record appear measures its age; who did not goes by the wall clock, within the record's own wait."""
    written = NOW + timedelta(hours=hours)
    record = open_record(time=written, since=written, retry_at=written + timedelta(seconds=5))
    seen = observe(ObservedRecord(None, 0, 90.0), record, 7, 100.0, NOW)
    assert seen.age_seconds(100.0) == 0.0
    assert seen.seconds_until_probe(101.0) == 4.0
    assert seen.unavailable_seconds(103.0) == 3.0
    first_look = observe(None, record, 7, 100.0, NOW)
    assert 0.0 <= first_look.seconds_until_probe(100.0) <= 5.0


def test_a_replica_that_is_behind_is_not_believed_and_a_new_bucket_is() -> None:
    seen = observe(None, HALF_OPEN, 7, 100.0, NOW)
    assert observe(seen, open_record(), 6, 101.0, NOW) is seen
    assert observe(seen, HALF_OPEN, 7, 101.0, NOW) is seen
    assert observe(seen, None, 0, 101.0, NOW).is_closed


def seen_as(record: ProviderRecord | None, lasted: float = 0.0) -> ObservedRecord:
    """A record that was written at 0, in an outage that has lasted since `-lasted`."""
    return ObservedRecord(record, 1, 0.0, None if record is None else -lasted)


@pytest.mark.parametrize(
    ("sightings", "seconds_max", "queue_seconds", "is_idle", "retry_after"),
    [
        ([seen_as(open_record())], 4.0, 0.0, False, 5.0),
        ([seen_as(open_record())], 5.0, 0.0, False, None),
        ([seen_as(open_record())], 5.0, 1.0, False, 5.0),
        ([seen_as(open_record(), 90.0)], 60.0, 0.0, False, 5.0),
        ([seen_as(open_record(), 90.0)], 60.0, 0.0, True, 5.0),
        ([seen_as(HALF_OPEN, 90.0)], 60.0, 0.0, False, 1.0),
        ([seen_as(HALF_OPEN, 90.0)], 60.0, 0.0, True, None),
        ([seen_as(open_record(), 90.0), seen_as(open_record(), 30.0)], 60.0, 0.0, False, None),
    ],
)
def test_a_task_is_refused_that_would_wait_too_long(
    sightings: list[ObservedRecord],
    seconds_max: float,
    queue_seconds: float,
    retry_after: float | None,
    *,
    is_idle: bool,
) -> None:
    refusal = judge_submission("default", sightings, seconds_max, queue_seconds, 0.0, is_idle=is_idle)
    assert (refusal.retry_after_seconds if refusal is not None else None) == retry_after


def test_a_breaker_that_nobody_tends_refuses_nothing() -> None:
    sightings = [seen_as(open_record(), 1000.0)]
    assert judge_submission("default", sightings, 1.0, 0.0, 5.0 + STALE_SECONDS, is_idle=False) is not None
    assert judge_submission("default", sightings, 1.0, 0.0, 5.1 + STALE_SECONDS, is_idle=False) is None


# The fleet: workers with clocks of their own, and a bucket with compare-and-set.


@dataclass
class Worker:
    """A worker, its wall clock's error, and what it has seen."""

    name: str
    error_hours: int
    seen: ObservedRecord | None = None


@dataclass
class Fleet:
    """Time passes for all alike; what the wall clock shows differs."""

    workers: list[Worker]
    at: float = 0.0
    record: ProviderRecord | None = None
    revision: int = 0
    probes: list[tuple[int, str]] = field(default_factory=list)

    def now(self, worker: Worker) -> datetime:
        return NOW + timedelta(seconds=self.at, hours=worker.error_hours)

    def look(self, worker: Worker) -> ObservedRecord:
        worker.seen = observe(worker.seen, self.record, self.revision, self.at, self.now(worker))
        return worker.seen

    def write(self, worker: Worker, before: ObservedRecord, record: ProviderRecord | None) -> None:
        if record is not None and before.revision == self.revision:
            self.record, self.revision = record, self.revision + 1
            self.look(worker)

    def holders(self) -> list[str]:
        """Who believes to have the probe, and is within its lease."""
        return [
            worker.name
            for worker in self.workers
            if worker.seen is not None
            and holds_probe(worker.seen.record, worker.name)
            and worker.seen.age_seconds(self.at) < PROBE_LEASE_SECONDS
        ]


steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["look", "open", "claim", "renew", "return", "succeed", "fail"]),
        st.sampled_from([0.0, 0.25, 1.0, 5.0, 9.0, 11.0, 61.0]),
    ),
    max_size=60,
)


@given(steps, st.tuples(*[st.integers(-48, 48)] * 3))
def test_a_fleet_never_probes_twice_at_once_and_closes_once_calls_succeed(
    taken: list[tuple[int, str, float]], errors: tuple[int, ...]
) -> None:
    fleet = Fleet([Worker(f"worker-{index}", hours) for index, hours in enumerate(errors)])
    for worker in fleet.workers:
        fleet.look(worker)
    for index, what, seconds in taken:
        fleet.at += seconds
        worker = fleet.workers[index]
        now = fleet.now(worker)
        if what == "look":
            fleet.look(worker)
        # A worker acts on what it saw last: the bucket refuses it if that is no more.
        seen = worker.seen
        assert seen is not None
        match what:
            case "open":
                fleet.write(worker, seen, opened(seen.record, "main", FAILURES, SETTINGS, now))
            case "claim":
                claimed = probing(seen.record, worker.name, now, seen.age_seconds(fleet.at))
                fleet.write(worker, seen, claimed)
            case "renew":
                fleet.write(worker, seen, renewed(seen.record, worker.name, now))
            case "return":
                fleet.write(worker, seen, returned(seen.record, worker.name, now))
            case "succeed":
                fleet.write(worker, seen, after_probe(seen.record, worker.name, None, SETTINGS, now))
            case "fail":
                fleet.write(worker, seen, after_probe(seen.record, worker.name, "failures", SETTINGS, now))
        assert len(fleet.holders()) <= 1
    # From here on one worker alone is left, and whatever it calls succeeds.
    last = fleet.workers[0]
    fleet.look(last)
    for _ in range(2):
        fleet.at += SETTINGS.open_seconds_max + PROBE_LEASE_SECONDS
        seen = fleet.look(last)
        fleet.write(last, seen, probing(seen.record, last.name, fleet.now(last), seen.age_seconds(fleet.at)))
        fleet.write(last, fleet.look(last), after_probe(fleet.record, last.name, None, SETTINGS, fleet.now(last)))
    assert fleet.look(last).is_closed
