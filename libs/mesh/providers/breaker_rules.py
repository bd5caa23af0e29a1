"""Circuit breakers: when a provider is called no more, and when it is tried again. Pure.

Outcomes are counted by each worker for itself, on its own clock. What it concludes goes into the record of the bucket
`providers`, by compare-and-set, and holds for the fleet. A record moves so, and in no other way:

    closed    → open       a worker's window says so (`opened`)
    open      → half_open  the interval has passed: a worker claims the probe (`probing`)
    half_open → half_open  its holder keeps the probe (`renewed`), or died, and another takes it (`probing`)
    half_open → open       its holder has no step for it, and gives it back: for whoever has one, at once (`returned`)
    half_open → closed     the probe was answered (`after_probe`)
    half_open → open       it was not: twice the interval (`after_probe`)

Clocks of different machines are never held against each other. A record's times count by their distance from the
time when it was written, and its age is measured by who reads it, from when it first saw it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec

from contracts.records.providers import OpenReason, Probe, ProviderRecord
from mesh.configuration.breaker_table import INTERVAL_SECONDS_MAX, BreakerSettings

OUTCOMES_MAX = 4096
"""Outcomes that a window holds; of more, the newest."""
PROBE_LEASE_SECONDS = 10.0
"""How long a probe stays with a worker that says nothing more. Its holder writes again at a third of it."""
UNUSED_SECONDS = 2.0
"""How long a worker keeps a probe that it finds no step for."""
FIRST_REFUSAL_SECONDS = 0.5
"""How much later those claim a probe that have no step in hand, so that those go first who have."""
STALE_SECONDS = 30.0
"""After so long beyond its time nobody tends a record: there is no worker, or nothing to do."""


class Verdict(NamedTuple):
    """Why a breaker opens: `failures` of `samples` outcomes."""

    reason: OpenReason
    failures: int
    samples: int


class Window:
    """Outcomes of the last while, of one kind. Times are seconds on any one clock."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=OUTCOMES_MAX)

    def add(self, at: float, *, bad: bool) -> None:
        """Count an outcome."""
        self._outcomes.append((at, bad))

    def clear(self) -> None:
        """Forget all."""
        self._outcomes.clear()

    def counts(self, at: float) -> tuple[int, int]:
        """The bad ones, and all."""
        while self._outcomes and self._outcomes[0][0] < at - self._seconds:
            self._outcomes.popleft()
        return sum(bad for _, bad in self._outcomes), len(self._outcomes)

    def bad_in_a_row(self) -> int:
        """How many of the newest outcomes are bad, without another between them."""
        for index, (_, bad) in enumerate(reversed(self._outcomes)):
            if not bad:
                return index
        return len(self._outcomes)


def judge(failures: Window, latencies: Window, settings: BreakerSettings, at: float) -> Verdict | None:
    """What a worker's windows say at a time: open, and why; or nothing."""
    failed, samples = failures.counts(at)
    if samples >= settings.samples_min and (
        failed >= settings.failure_rate * samples or failures.bad_in_a_row() >= settings.samples_min
    ):
        return Verdict("failures", failed, samples)
    slow, samples = latencies.counts(at)
    if settings.slow_first_token_seconds is not None and samples >= settings.samples_min:
        return Verdict("latency", slow, samples) if slow >= settings.slow_rate * samples else None
    return None


def interval_seconds(settings: BreakerSettings, opened_times: int) -> float:
    """How long a breaker stays open that has opened so many times in a row."""
    return min(settings.open_seconds * 2.0 ** min(max(opened_times, 1) - 1, 32), settings.open_seconds_max)


def wait_seconds(record: ProviderRecord) -> float:
    """How long after it was written a record may be acted on: an open one's interval, a half-open one's lease."""
    until = record.probe.until if record.state == "half_open" and record.probe is not None else record.retry_at
    if record.state == "closed" or until is None:
        return 0.0
    return min(max((until - record.time).total_seconds(), 0.0), INTERVAL_SECONDS_MAX)


def opened(
    record: ProviderRecord | None, provider: str, verdict: Verdict, settings: BreakerSettings, now: datetime
) -> ProviderRecord | None:
    """The record once a worker's verdict is known; None if the breaker is not closed any more."""
    if record is not None and record.state != "closed":
        return None
    return _open(provider, now, now, 1, verdict, settings)


def probing(record: ProviderRecord | None, worker: str, now: datetime, age_seconds: float) -> ProviderRecord | None:
    """The record with the probe in this worker's hands; None if it is not to be had."""
    if record is None or record.state == "closed" or age_seconds < wait_seconds(record):
        return None
    return msgspec.structs.replace(record, state="half_open", time=now, retry_at=None, probe=_probe(worker, now))


def renewed(record: ProviderRecord | None, worker: str, now: datetime) -> ProviderRecord | None:
    """The record with the holder's lease begun anew; None if it holds no probe."""
    if record is None or not holds_probe(record, worker):
        return None
    return msgspec.structs.replace(record, time=now, probe=_probe(worker, now))


def returned(record: ProviderRecord | None, worker: str, now: datetime) -> ProviderRecord | None:
    """The record with the probe given back unused; None if the worker holds none."""
    if record is None or not holds_probe(record, worker):
        return None
    return msgspec.structs.replace(record, state="open", time=now, retry_at=now, probe=None)


def after_probe(
    record: ProviderRecord | None, worker: str, failed: OpenReason | None, settings: BreakerSettings, now: datetime
) -> ProviderRecord | None:
    """The record after the probe: closed, or open again for what `failed` says. None if the worker holds no probe."""
    if record is None or not holds_probe(record, worker):
        return None
    if failed is None:
        return ProviderRecord(provider=record.provider, state="closed", since=now, time=now)
    verdict = Verdict(failed, record.failures, record.samples)
    return _open(record.provider, record.since, now, record.opened_times + 1, verdict, settings)


def holds_probe(record: ProviderRecord | None, worker: str) -> bool:
    """Whether the probe is this worker's, by the record."""
    return (
        record is not None
        and record.state == "half_open"
        and record.probe is not None
        and (record.probe.worker == worker)
    )


@dataclass(frozen=True, slots=True)
class ObservedRecord:
    """A record as one process sees it. Times are seconds on that process's own clock."""

    record: ProviderRecord | None
    revision: int
    written_at: float
    """When it was written, as far as this process can tell."""
    unavailable_since: float | None = None
    """Since when the provider has not been closed; None while it is."""

    @property
    def is_closed(self) -> bool:
        """Whether the provider may be called."""
        return self.record is None or self.record.state == "closed"

    def age_seconds(self, at: float) -> float:
        """How old the record is."""
        return max(0.0, at - self.written_at)

    def unavailable_seconds(self, at: float) -> float:
        """How long the provider has not been closed."""
        return 0.0 if self.unavailable_since is None else max(0.0, at - self.unavailable_since)

    def seconds_until_probe(self, at: float) -> float:
        """When it is tried again; 0 while it is tried, and where it is closed."""
        if self.record is None or self.record.state != "open":
            return 0.0
        return max(0.0, wait_seconds(self.record) - self.age_seconds(at))

    def is_tended(self, at: float) -> bool:
        """Whether somebody is at it, or is expected to be soon."""
        return self.record is not None and self.age_seconds(at) <= wait_seconds(self.record) + STALE_SECONDS


NOTHING_OBSERVED = ObservedRecord(None, 0, 0.0)


def observe(
    before: ObservedRecord | None, record: ProviderRecord | None, revision: int, at: float, now: datetime
) -> ObservedRecord:
    """What a process knows that finds this record, at `at` on its own clock. `before` is None at its first look.

    Who saw the record before this one knows when it changed. Only at the first look the wall clock says how old a
    record is, within what the record itself allows.
    """
    if before is not None and (revision == before.revision or 0 < revision < before.revision):
        return before  # The same, or a replica that is behind. Only a new bucket has no revision at all.
    if record is None or record.state == "closed":
        return ObservedRecord(record, revision, at)
    written_at, since = at, at
    if before is None:
        written_at = at - min(max((now - record.time).total_seconds(), 0.0), wait_seconds(record))
        since = at - max((now - record.since).total_seconds(), 0.0)
    elif before.unavailable_since is not None:
        since = before.unavailable_since
    return ObservedRecord(record, revision, written_at, since)


def _open(
    provider: str, since: datetime, now: datetime, opened_times: int, verdict: Verdict, settings: BreakerSettings
) -> ProviderRecord:
    return ProviderRecord(
        provider=provider,
        state="open",
        since=since,
        time=now,
        reason=verdict.reason,
        retry_at=now + timedelta(seconds=interval_seconds(settings, opened_times)),
        opened_times=opened_times,
        failures=verdict.failures,
        samples=verdict.samples,
    )


def _probe(worker: str, now: datetime) -> Probe:
    return Probe(worker=worker, until=now + timedelta(seconds=PROBE_LEASE_SECONDS))
