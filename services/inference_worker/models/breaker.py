"""One provider's circuit breaker, as one worker keeps it: what it saw, counted, and concluded."""

from __future__ import annotations

import structlog

from contracts.records.providers import OpenReason
from mesh.clock import lease_clock
from mesh.configuration.breaker_table import BreakerSettings
from mesh.providers.breaker_rules import (
    ObservedRecord,
    Verdict,
    Window,
    holds_probe,
    judge,
    wait_seconds,
)

log = structlog.get_logger("inference_worker.breakers")


class Probe:
    """The probe, while this worker holds it. `begun`: a stream has taken it; `reserved`: a step is to."""

    def __init__(self) -> None:
        self.claimed_at = lease_clock()
        self.reserved = False
        self.begun = False
        self.answered = False
        self.failed: OpenReason | None = None

    def answer(self, failed: OpenReason | None) -> None:
        """What came of it; only the first answer counts."""
        if not self.answered:
            self.answered, self.failed = True, failed

    @property
    def is_free(self) -> bool:
        """Whether a stream may still take it."""
        return not self.begun and not self.answered


class Breaker:
    """One provider's. `opening` is a verdict that the record has yet to say."""

    def __init__(self, provider: str, settings: BreakerSettings) -> None:
        self.provider = provider
        self.settings = settings
        self.failures = Window(settings.window_seconds)
        self.latencies = Window(settings.window_seconds)
        self.sighting = ObservedRecord(None, 0, 0.0)
        self.opening: Verdict | None = None
        self.probe: Probe | None = None
        self.looked_at = 0.0
        """When the lanes were looked at."""
        self.epoch = 0
        """Counts changes of state: what began before the last one says nothing about now."""

    @property
    def is_closed(self) -> bool:
        """Whether all may call the provider."""
        return self.sighting.is_closed and self.opening is None

    @property
    def is_available(self) -> bool:
        """Whether a stream may begin now: all may, or the probe is here and free."""
        return self.is_closed or (self.probe is not None and self.probe.is_free)

    def seconds_until_due(self, at: float) -> float:
        """When a record that is not closed may be moved on by whoever comes: a probe is due, or its holder has died."""
        record = self.sighting.record
        return 0.0 if record is None else wait_seconds(record) - self.sighting.age_seconds(at)

    def is_due(self, at: float) -> bool:
        """Whether that time has come."""
        return not self.sighting.is_closed and self.seconds_until_due(at) <= 0

    def see(self, sighting: ObservedRecord, worker: str) -> bool:
        """Take note of the record. True if it has changed."""
        if sighting is self.sighting:
            return False
        if sighting.is_closed != self.sighting.is_closed:
            self.epoch += 1
            self.failures.clear()
            self.latencies.clear()
            log.info("breaker.seen", provider=self.provider, closed=sighting.is_closed)
        self.sighting = sighting
        if not sighting.is_closed:
            self.opening = None
        if self.probe is not None and not holds_probe(sighting.record, worker):
            self.probe.answered = True  # By nobody, but it is over.
            self.probe = None
        return True

    def judge(self, at: float) -> None:
        """Look at the windows, and open if they say so."""
        if self.is_closed:
            self.opening = judge(self.failures, self.latencies, self.settings, at)
