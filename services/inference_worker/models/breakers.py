"""The fleet's circuit breakers, in one worker: outcomes of streams go in, and who may be called comes out.

Each worker counts for itself, and what one concludes holds for all, as soon as they hear of it. A provider that is not
closed is called by nobody but the one step that probes it; `begin` sees to that, whatever the lanes let through.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping

import structlog

from contracts import subjects
from contracts.records.providers import ProviderRecord
from inference_worker.models.breaker import Breaker, Probe
from inference_worker.models.candidates import Source
from inference_worker.models.guarded_source import Guarded
from inference_worker.models.paced_source import Paced, PlacedPermit, may_begin
from inference_worker.models.watched_source import WatchedSource
from mesh.background import first_of
from mesh.broker.gates import UNLIMITED, ChangingRoom, Permit
from mesh.broker.requests import Requests
from mesh.clock import lease_clock, now
from mesh.configuration.breaker_table import BreakerSettings
from mesh.configuration.pace_table import PaceSettings
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.loop_health import LoopHealth
from mesh.pacing.pacer import Place
from mesh.pacing.pacing import Pacing
from mesh.providers.breaker_records import ProviderRecords
from mesh.providers.breaker_rules import (
    FIRST_REFUSAL_SECONDS,
    PROBE_LEASE_SECONDS,
    UNUSED_SECONDS,
    after_probe,
    holds_probe,
    opened,
    probing,
    renewed,
    returned,
)
from mesh.telemetry import metrics

log = structlog.get_logger("inference_worker.models.breakers")

POLL_SECONDS = 0.25
"""How often a worker looks at a record that it has to move on."""
CLOSED_SECONDS = 60.0
"""How often it looks at a closed one. It is told of a change at once; this is for an announcement that was lost."""
IDLE_SECONDS_MAX = 30.0
"""How often at most a worker without work looks whether there is something to probe with: more seldom each time. It is
told of what waits (`lanes.waiting`)."""
LANES_SECONDS = 1.0
"""How often a worker asks its lanes at most."""
OPEN_SECONDS = 1.0
"""A gate that opens again so soon keeps its lanes' pulls: to begin them anew costs more than what may come."""


class Breakers:
    """The breakers of all providers that have one. `run` keeps them, and must be running."""

    def __init__(
        self,
        requests: Requests,
        configured: Mapping[str, BreakerSettings],
        worker: str,
        paces: Mapping[str, PaceSettings] | None = None,
        is_paused: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`paces`: what each provider allows; without them nothing is limited.

        `is_paused`: whether somebody has paused a provider; `changed` is to be called when that may have changed.
        """
        self.pacing = Pacing(requests, paces or {}, worker)
        self.pacing.on_changed(self._update_gates)
        enabled = {name: settings for name, settings in configured.items() if settings.enabled}
        self._requests = requests
        self._records = ProviderRecords(requests, enabled)
        self._breakers = {name: Breaker(name, settings) for name, settings in enabled.items()}
        self._worker = worker
        self._is_paused = is_paused
        self._gates: list[PoolGate] = []
        self._pools: dict[str, PoolGate] = {}
        self._wake = asyncio.Event()
        self._idle_seconds = POLL_SECONDS

    async def run(self, stopping: asyncio.Event) -> None:
        """Follow the records, and write what this worker has to say, until cancelled. Claims no probe once stopping."""
        health = LoopHealth(log, "breaker.records_unavailable")
        while not self._breakers:
            await self._wake.wait()
            self._wake.clear()
        await self._records.on_changed(self._look_at_once)
        await self._requests.on_announced(subjects.LANES_WAITING, lambda _: self._look_at_once())
        while True:
            self._wake.clear()
            try:
                for breaker in list(self._breakers.values()):
                    await self._tend(breaker, stopping)
                health.succeeded()
                pause_seconds = self._pause_seconds()
            except (BrokerUnavailable, BrokerError) as error:
                health.failed(error)
                pause_seconds = LANES_SECONDS
            await first_of(self._wake, seconds=pause_seconds)

    def available(self, provider: str) -> bool:
        """Whether a stream of this provider may begin in this worker now: for the step in hand, if there is one."""
        breaker = self._breakers.get(provider)
        if self._is_paused(provider):
            return False
        return (breaker is None or breaker.is_available) and may_begin(self.pacing.pacer(provider))

    def is_closed(self, provider: str) -> bool:
        """Whether all may call the provider."""
        breaker = self._breakers.get(provider)
        return (breaker is None or breaker.is_closed) and not self._is_paused(provider)

    def free_probe(self, provider: str) -> Probe | None:
        """The probe of a provider, if it is here, free and nobody's yet."""
        breaker = self._breakers.get(provider)
        probe = breaker.probe if breaker is not None and not self._is_paused(provider) else None
        return probe if probe is not None and probe.is_free and not probe.reserved else None

    def configure(
        self,
        configured: Mapping[str, BreakerSettings],
        pools: Mapping[str, tuple[str, ...]],
        paces: Mapping[str, PaceSettings] | None = None,
    ) -> None:
        """Go by other settings, and by other providers of pools. What a breaker has seen stays, if its settings do."""
        enabled = {name: settings for name, settings in configured.items() if settings.enabled}
        kept = {name: each for name, each in self._breakers.items() if enabled.get(name) == each.settings}
        self._records.providers = tuple(sorted(enabled))
        self._breakers = {name: kept.get(name) or Breaker(name, settings) for name, settings in enabled.items()}
        for pool, providers in pools.items():
            if pool in self._pools:
                self._pools[pool].providers = providers
        self.pacing.configure(paces or {})
        self.changed()
        self._look_at_once()

    def gate(self, providers: tuple[str, ...], consumers: tuple[tuple[str, str], ...], pool: str = "") -> PoolGate:
        """The gate of a pool with these providers, and with lanes that are these streams' consumers."""
        gate = PoolGate(self, providers, consumers)
        self._gates.append(gate)
        self._pools[pool] = gate
        return gate

    def guard(self, source: Source) -> Source:
        """The source behind its breaker, at its pace."""
        if self.pacing.keeps(source.name):
            source = WatchedSource(source, Paced(source.name, self.pacing))
        breaker = self._breakers.get(source.name)
        return source if breaker is None else WatchedSource(source, Guarded(breaker, self.changed))

    def changed(self) -> None:
        """Something happened that gates or the record must learn of."""
        self._update_gates()
        if any(breaker.opening or (breaker.probe and breaker.probe.answered) for breaker in self._breakers.values()):
            self._wake.set()

    def _update_gates(self) -> None:
        for gate in self._gates:
            gate.update()

    def _look_at_once(self) -> None:
        self._idle_seconds = POLL_SECONDS
        for breaker in self._breakers.values():
            breaker.looked_at = 0.0
        self._wake.set()

    def _pause_seconds(self) -> float:
        """How long until there can be something to do, if nobody tells of it sooner."""
        at = lease_clock()
        pauses = [CLOSED_SECONDS, *(self._pause_of(breaker, at) for breaker in self._breakers.values())]
        if not any(breaker.is_due(at) for breaker in self._breakers.values()):
            self._idle_seconds = POLL_SECONDS
        # Workers that were started together shall not look together for ever.
        return min(pauses) * random.uniform(0.8, 1.0)

    def _pause_of(self, breaker: Breaker, at: float) -> float:
        if breaker.opening is not None or breaker.probe is not None:
            return POLL_SECONDS
        if breaker.is_closed:
            return CLOSED_SECONDS
        if not breaker.is_due(at):
            return min(breaker.seconds_until_due(at) + POLL_SECONDS, CLOSED_SECONDS)
        if any(gate.waiting for gate in self._gates if breaker.provider in gate.providers):
            return POLL_SECONDS
        self._idle_seconds = min(self._idle_seconds * 1.5, IDLE_SECONDS_MAX)
        return self._idle_seconds

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
                return after_probe(record, self._worker, breaker.probe.failed, breaker.settings, now())
            if breaker.probe.is_free and not breaker.probe.reserved and at - breaker.probe.claimed_at >= UNUSED_SECONDS:
                return returned(record, self._worker, now())
            due = breaker.sighting.age_seconds(at) >= PROBE_LEASE_SECONDS / 3
            return renewed(record, self._worker, now()) if due else None
        age_seconds = breaker.sighting.age_seconds(at)
        if (
            stopping.is_set()
            or self._is_paused(breaker.provider)
            or probing(record, self._worker, now(), age_seconds) is None
        ):
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


class PoolGate(ChangingRoom):
    """The gate of a pool's lanes: open for as much as the pace of its providers has room for.

    It is shut while none of them is closed, but for the one step of a probe.
    """

    def __init__(self, breakers: Breakers, providers: tuple[str, ...], consumers: tuple[tuple[str, str], ...]) -> None:
        super().__init__()
        self.waiting = 0
        self.providers = providers
        self.consumers = consumers
        self._breakers = breakers
        self.update()

    @property
    def is_wide_open(self) -> bool:
        """Whether a provider is there for all."""
        return any(self._breakers.is_closed(provider) for provider in self.providers)

    def room(self) -> int:
        """As many as the pace of those lets through that are closed; else as many as there are free probes."""
        closed = self._closed()
        if closed:
            pacers = [self._breakers.pacing.pacer(provider) for provider in closed]
            if not all(pacer.has_a_say for pacer in pacers):
                return UNLIMITED
            at = now().timestamp()
            return min(UNLIMITED, sum(pacer.room(at) for pacer in pacers))
        return sum(self._breakers.free_probe(provider) is not None for provider in self.providers)

    def acquire(self) -> Permit | None:
        """Leave to run a step: with a place at a provider, or with the only probe, which is kept for this step."""
        closed = self._closed()
        if closed:
            at = now().timestamp()
            pacers = [self._breakers.pacing.pacer(provider) for provider in closed]
            place = next((place for pacer in pacers if (place := pacer.take(at)) is not None), None)
            if place is None:
                self.ask()
                self.update()
                return None
            self._breakers.pacing.came_or_went(place.pacer)
            return PoolPermit(self, None, place)
        for provider in self.providers:
            probe = self._breakers.free_probe(provider)
            if probe is not None:
                probe.reserved = True
                self._breakers.changed()
                return PoolPermit(self, probe)
        return None

    @property
    def leaves_pulls_open(self) -> bool:
        """While a provider is closed, and there is room at its pace, or soon will be."""
        return self.is_wide_open and (self.opened.is_set() or self.seconds_shut() <= OPEN_SECONDS)

    def seconds_shut(self) -> float:
        """How long the pace of those leaves no room that are closed; 0 if none is: nobody knows."""
        pacers = [self._breakers.pacing.pacer(provider) for provider in self._closed()]
        if not all(pacer.has_a_say for pacer in pacers):
            return 0.0
        at = now().timestamp()
        return min((pacer.seconds_shut(at) for pacer in pacers), default=0.0)

    def ask(self) -> None:
        """A step would begin: book ahead for it."""
        at = now().timestamp()
        asked = [self._breakers.pacing.pacer(provider).ask(at) for provider in self._closed()]
        if any(asked):
            self._breakers.pacing.changed()

    def is_refused(self, place: Place | None) -> bool:
        """Whether the provider of a place has refused since, and no other has room."""
        return place is not None and place.pacer.is_shut(now().timestamp()) and self.room() <= 0

    def give_back(self, probe: Probe | None, place: Place | None) -> None:
        """A step leaves, and may not have begun its probe."""
        if probe is not None:
            probe.reserved = False
            self._breakers.changed()
        if place is not None:
            place.release()
            if self.opened.is_set():
                self._breakers.pacing.came_or_went(place.pacer)
            else:
                self._breakers.pacing.changed()  # Somebody may wait for it.

    def _closed(self) -> list[str]:
        return [provider for provider in self.providers if self._breakers.is_closed(provider)]


class PoolPermit(PlacedPermit):
    """Leave to run a step of a pool, with its place at a provider, or the probe that is kept for it."""

    def __init__(self, gate: PoolGate, probe: Probe | None, place: Place | None = None) -> None:
        super().__init__(place)
        self._gate = gate
        self._probe = probe

    @property
    def is_valid(self) -> bool:
        """Whether a provider is there for this step."""
        if self._gate.is_wide_open:
            return not self._gate.is_refused(self.place)
        return self._probe is not None and not self._probe.answered

    def release(self) -> None:
        """Give the place back, and an unused probe."""
        probe, place = self._probe, self.place
        self._probe = self.place = None
        if probe is not None or place is not None:
            self._gate.give_back(probe, place)


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
