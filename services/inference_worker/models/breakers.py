"""The fleet's circuit breakers, in one worker: outcomes of streams go in, and who may be called comes out.

Each worker counts for itself, and what one concludes holds for all, within a poll. A provider that is not closed is
called by nobody but the one step that probes it; `begin` sees to that, whatever the lanes let through.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

import structlog

from contracts.records.providers import OpenReason, ProviderRecord
from inference_worker.models.candidates import Source
from inference_worker.models.chunks import Chunk, Finished, TurnInput
from mesh.background import first_of
from mesh.broker.requests import Requests
from mesh.clock import lease_clock, now
from mesh.configuration.breaker_table import BreakerSettings
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.providers.breaker_records import ProviderRecords
from mesh.providers.breaker_rules import (
    FIRST_REFUSAL_SECONDS,
    PROBE_LEASE_SECONDS,
    UNUSED_SECONDS,
    Sighting,
    Verdict,
    Window,
    holds_probe,
    judge,
    opened,
    probing,
    renewed,
    returned,
    settled,
)
from mesh.steps.gates import UNLIMITED, Entry
from mesh.task.failures import StepFailed
from mesh.telemetry import metrics

log = structlog.get_logger("inference_worker.models.breakers")

POLL_SECONDS = 0.25
"""How often a worker looks at the records; so long others may go on calling a provider after one has opened it."""
FAULTS = frozenset(
    {
        "provider-overloaded",
        "provider-error",
        "provider-disconnected",
        "provider-timeout",
        "provider-unreachable",
    }
)
"""Failures that are the provider's own. One that says no to a request, a key or a rate is well."""
UNAVAILABLE = "provider-unavailable"
LANES_SECONDS = 1.0
"""How often a worker asks whether there is anything to probe with."""


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
        self.sighting = Sighting(None, 0, 0.0)
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

    def see(self, sighting: Sighting, worker: str) -> bool:
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


class Breakers:
    """The breakers of all providers that have one. `run` keeps them, and must be running."""

    def __init__(self, requests: Requests, configured: Mapping[str, BreakerSettings], worker: str) -> None:
        enabled = {name: settings for name, settings in configured.items() if settings.enabled}
        self._requests = requests
        self._records = ProviderRecords(requests, enabled)
        self._breakers = {name: Breaker(name, settings) for name, settings in enabled.items()}
        self._worker = worker
        self._gates: list[PoolGate] = []
        self._wake = asyncio.Event()

    async def run(self, stopping: asyncio.Event) -> None:
        """Follow the records, and write what this worker has to say, until cancelled. Claims no probe once stopping."""
        complained = False
        while self._breakers:
            self._wake.clear()
            try:
                for breaker in self._breakers.values():
                    await self._tend(breaker, stopping)
                complained = False
            except (BrokerUnavailable, BrokerError) as error:
                if not complained:
                    log.warning("breaker.records_unavailable", error=str(error))
                complained = True
            await first_of(self._wake, seconds=POLL_SECONDS)

    def available(self, provider: str) -> bool:
        """Whether a stream of this provider may begin in this worker now."""
        breaker = self._breakers.get(provider)
        return breaker is None or breaker.is_available

    def is_closed(self, provider: str) -> bool:
        """Whether all may call the provider."""
        breaker = self._breakers.get(provider)
        return breaker is None or breaker.is_closed

    def free_probe(self, provider: str) -> Probe | None:
        """The probe of a provider, if it is here, free and nobody's yet."""
        breaker = self._breakers.get(provider)
        probe = breaker.probe if breaker is not None else None
        return probe if probe is not None and probe.is_free and not probe.reserved else None

    def gate(self, providers: tuple[str, ...], consumers: tuple[tuple[str, str], ...]) -> PoolGate:
        """The gate of a pool with these providers, and with lanes that are these streams' consumers."""
        gate = PoolGate(self, providers, consumers)
        self._gates.append(gate)
        return gate

    def guard(self, source: Source) -> Source:
        """The source behind its breaker."""
        breaker = self._breakers.get(source.name)
        return source if breaker is None else GuardedSource(source, breaker, self.changed)

    def changed(self) -> None:
        """Something happened that gates or the record must learn of."""
        for gate in self._gates:
            gate.update()
        if any(breaker.opening or (breaker.probe and breaker.probe.answered) for breaker in self._breakers.values()):
            self._wake.set()

    async def _tend(self, breaker: Breaker, stopping: asyncio.Event) -> None:
        """Look at the record, and move it on if it is this worker's turn to."""
        if breaker.see(await self._records.refresh(breaker.provider), self._worker):
            self.changed()
        replacement = await self._next(breaker, stopping)
        if replacement is None:
            return
        probe = breaker.probe
        state_before = breaker.sighting.record.state if breaker.sighting.record is not None else "closed"
        written = await self._records.replace(breaker.sighting, replacement)
        breaker.see(self._records.sighting(breaker.provider), self._worker)
        if holds_probe(breaker.sighting.record, self._worker) and breaker.probe is None:
            breaker.probe = probe or Probe()
        if (
            written
            and (replacement.state != state_before or probe is None)
            and replacement.time != replacement.retry_at
        ):
            _tell(replacement)
        self.changed()

    async def _next(self, breaker: Breaker, stopping: asyncio.Event) -> ProviderRecord | None:
        record, at = breaker.sighting.record, lease_clock()
        if breaker.opening is not None:
            return opened(record, breaker.provider, breaker.opening, breaker.settings, now())
        if breaker.probe is not None:
            if breaker.probe.answered:
                return settled(record, self._worker, breaker.probe.failed, breaker.settings, now())
            if breaker.probe.is_free and not breaker.probe.reserved and at - breaker.probe.claimed_at >= UNUSED_SECONDS:
                return returned(record, self._worker, now())
            due = breaker.sighting.age_seconds(at) >= PROBE_LEASE_SECONDS / 3
            return renewed(record, self._worker, now()) if due else None
        age_seconds = breaker.sighting.age_seconds(at)
        if stopping.is_set() or probing(record, self._worker, now(), age_seconds) is None:
            return None
        gates = [gate for gate in self._gates if breaker.provider in gate.providers]
        if not any(gate.waiting for gate in gates):
            age_seconds -= FIRST_REFUSAL_SECONDS
            if not await self._has_work(breaker, gates):
                return None
        return probing(record, self._worker, now(), age_seconds)

    async def _has_work(self, breaker: Breaker, gates: list[PoolGate]) -> bool:
        """Whether the lanes hold anything: a probe that nobody has a step for is left where it is."""
        at = lease_clock()
        if at - breaker.looked_at < LANES_SECONDS:
            return False
        breaker.looked_at = at
        for stream, consumer in (lane for gate in gates for lane in gate.consumers):
            info = await self._requests.api(f"CONSUMER.INFO.{stream}.{consumer}")
            if int(info["num_pending"]) + int(info["num_ack_pending"]) > 0:
                return True
        return False


class PoolGate:
    """The gate of a pool's lanes: shut while none of its providers is closed, but for the one step of a probe."""

    def __init__(self, breakers: Breakers, providers: tuple[str, ...], consumers: tuple[tuple[str, str], ...]) -> None:
        self.opened = asyncio.Event()
        self.waiting = 0
        self.providers = providers
        self.consumers = consumers
        self._breakers = breakers
        self._callbacks: list[Callable[[], None]] = []
        self.update()

    @property
    def is_wide_open(self) -> bool:
        """Whether a provider is there for all."""
        return any(self._breakers.is_closed(provider) for provider in self.providers)

    def room(self) -> int:
        """Without limit, or as many as there are free probes."""
        if self.is_wide_open:
            return UNLIMITED
        return sum(self._breakers.free_probe(provider) is not None for provider in self.providers)

    def enter(self) -> Entry | None:
        """Leave to run a step; while only a probe is left, it is kept for this step."""
        if self.is_wide_open:
            return PoolEntry(self, None)
        for provider in self.providers:
            probe = self._breakers.free_probe(provider)
            if probe is not None:
                probe.reserved = True
                self._breakers.changed()
                return PoolEntry(self, probe)
        return None

    def on_shut(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the last room is gone."""
        self._callbacks.append(callback)

    def give_back(self, probe: Probe) -> None:
        """A step leaves, and may not have begun its probe."""
        probe.reserved = False
        self._breakers.changed()

    def update(self) -> None:
        """Look at the breakers again."""
        if self.room() > 0:
            self.opened.set()
        elif self.opened.is_set():
            self.opened.clear()
            for callback in self._callbacks:
                callback()


class PoolEntry:
    """Leave to run a step of a pool, with the probe that is kept for it."""

    def __init__(self, gate: PoolGate, probe: Probe | None) -> None:
        self._gate = gate
        self._probe = probe

    @property
    def holds(self) -> bool:
        """Whether a provider is there for this step."""
        return self._gate.is_wide_open or (self._probe is not None and not self._probe.answered)

    def leave(self) -> None:
        """Give an unused probe back."""
        if self._probe is not None:
            self._gate.give_back(self._probe)


class GuardedSource:
    """A source behind its breaker: calls are refused while it is open, and their outcomes counted while it is not."""

    def __init__(self, source: Source, breaker: Breaker, changed: Callable[[], None]) -> None:
        self.name = source.name
        self._source = source
        self._breaker = breaker
        self._changed = changed

    @property
    def continues_prefix(self) -> bool:
        """Whether its source does."""
        return self._source.continues_prefix

    async def stream(self, turn: TurnInput) -> AsyncGenerator[Chunk, None]:
        """Generate a turn. Raises `StepFailed`, and `provider-unavailable` without a call while the breaker is open.

        A try that fails while the breaker is not closed is the provider's, and not counted as the step's.
        """
        call = _Call(self._breaker, self._changed)
        try:
            async with aclosing(self._source.stream(turn)) as chunks:
                async for chunk in chunks:
                    if isinstance(chunk, Finished):
                        call.finished()
                    else:
                        call.spoke()
                    yield chunk
            if not call.has_ended:
                raise StepFailed("provider-disconnected", "the stream broke off", retryable=True)
        except StepFailed as error:
            call.failed(error.code)
            if error.code in FAULTS and not self._breaker.is_closed:
                error.counts = False
            raise
        finally:
            call.over()


class _Call:
    """One stream, as its breaker counts it: one outcome, and one first token."""

    def __init__(self, breaker: Breaker, changed: Callable[[], None]) -> None:
        self._breaker = breaker
        self._changed = changed
        self._epoch = breaker.epoch
        self._probe: Probe | None = None
        self._loop = asyncio.get_running_loop()
        self._spoke_at: float | None = None
        self.has_ended = False
        if not breaker.is_closed:
            if not breaker.is_available or breaker.probe is None:
                unavailable = StepFailed(UNAVAILABLE, f"the breaker of {breaker.provider} is open", retryable=True)
                unavailable.counts = False
                raise unavailable
            self._probe = breaker.probe
            self._probe.begun = True
            changed()
        slow_seconds = breaker.settings.slow_first_token_seconds
        self._slow = None if slow_seconds is None else self._loop.call_later(slow_seconds, self._is_slow)

    def spoke(self) -> None:
        """A chunk came."""
        if self._spoke_at is None:
            self._spoke_at = self._loop.time()
            if self._slow is not None:
                self._slow.cancel()
                self._slow = None
                self._add(self._breaker.latencies, bad=False)
        elif self._probe is not None and self._loop.time() - self._spoke_at >= self._breaker.settings.open_seconds:
            self._answer(None)  # A long answer that goes on is one: the others need not wait for its end.

    def finished(self) -> None:
        """It came to its end."""
        self.spoke()
        self._tell(bad=False)

    def failed(self, code: str) -> None:
        """It failed. Whoever refuses a request has answered it, and says nothing about its health."""
        if code in FAULTS:
            self._tell(bad=True)
        elif self._probe is not None:
            self._answer(None)

    def over(self) -> None:
        """The stream is closed, perhaps by its reader: a probe that said nothing yet is free again."""
        if self._slow is not None:
            self._slow.cancel()
        if self._probe is not None and not self._probe.answered:
            if self._spoke_at is not None:
                self._answer(None)
            else:
                self._probe.begun = False
                self._changed()

    def _tell(self, *, bad: bool) -> None:
        self.has_ended = True
        if self._probe is not None:
            self._answer("failures" if bad else None)
        else:
            self._add(self._breaker.failures, bad=bad)

    def _is_slow(self) -> None:
        self._slow = None
        if self._probe is not None:
            self._answer("latency")
        else:
            self._add(self._breaker.latencies, bad=True)

    def _add(self, window: Window, *, bad: bool) -> None:
        if self._probe is not None or self._epoch != self._breaker.epoch or not self._breaker.is_closed:
            return
        at = lease_clock()
        window.add(at, bad=bad)
        if bad:
            self._breaker.judge(at)
            if self._breaker.opening is not None:
                self._changed()

    def _answer(self, failed: OpenReason | None) -> None:
        if self._probe is not None and not self._probe.answered:
            self._probe.answer(failed)
            self._changed()


def _tell(record: ProviderRecord) -> None:
    """Log a move that this worker made."""
    metrics.breaker_moved(record.provider, record.state)
    match record.state:
        case "open":
            seconds = (record.retry_at - record.time).total_seconds() if record.retry_at is not None else None
            log.error(
                "breaker.opened",
                provider=record.provider,
                reason=record.reason,
                failures=record.failures,
                samples=record.samples,
                open_seconds=seconds,
                opened_times=record.opened_times,
            )
        case "half_open":
            log.info("breaker.half_open", provider=record.provider, opened_times=record.opened_times)
        case "closed":
            log.info("breaker.closed", provider=record.provider)
