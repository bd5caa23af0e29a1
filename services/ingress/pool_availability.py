"""Whether a pool's providers can be called: the ingress refuses what they could not run in time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import structlog

from contracts.records.pace import PaceRecord
from contracts.records.providers import ProviderRecord
from contracts.tasks import TaskRequest
from ingress.lane_statistics import Lanes
from mesh.background import background, repeatedly
from mesh.broker.requests import Requests
from mesh.clock import lease_clock, now
from mesh.configuration.mesh_toml import Configuration
from mesh.loop_health import LoopHealth
from mesh.pacing.reading import read_paces
from mesh.pacing.rules import room
from mesh.providers.breaker_records import ProviderRecords
from mesh.providers.breaker_rules import ObservedRecord
from mesh.valves.watched import Valves

log = structlog.get_logger("ingress.pool_availability")

POLL_SECONDS = 0.5
RETRY_AFTER_SECONDS_MIN = 1.0
PACE_SECONDS: Final = 1.0
PACE_OLD_SECONDS: Final = 10.0
"""Read longer ago than that, what is booked of a pace says nothing any more."""
PACES_MAX: Final = 1024


class Refusal(NamedTuple):
    """Why no task is taken for a pool, and when to come again."""

    reason: str
    retry_after_seconds: float


class Providers:
    """The breakers of all pools, as they were a moment ago."""

    def __init__(self, requests: Requests, configuration: Configuration, lanes: Lanes, valves: Valves) -> None:
        enabled = [name for name, settings in configuration.breakers.items() if settings.enabled]
        self._records = ProviderRecords(requests, enabled)
        self._requests = requests
        self._paces: dict[str, PaceRecord] = {}
        self._paces_read_at = float("-inf")
        self._configuration = configuration
        self._lanes = lanes
        self.valves = valves

    def configure(self, configuration: Configuration) -> None:
        """Go by other providers of pools from now on."""
        self._configuration = configuration
        self._records.providers = tuple(sorted(name for name, each in configuration.breakers.items() if each.enabled))

    async def run(self) -> None:
        """Look at the records until cancelled."""
        async with background(repeatedly(self._read_paces, PACE_SECONDS, LoopHealth(log, "paces.unavailable"))):
            await repeatedly(self._refresh, POLL_SECONDS, LoopHealth(log, "providers.unavailable"))

    def refusal(self, request: TaskRequest) -> Refusal | None:
        """Why a request is not taken at present; None if it is. Costs a few look-ups."""
        if self._records.all_closed:
            return None
        sightings = self._sightings(request.pool)
        if not sightings:
            return None  # People have paused them all: what is accepted waits, and its submitter is told so.
        if any(sighting.is_closed for sighting in sightings):
            return None
        seconds_max = self._configuration.pools[request.pool].wait_seconds
        if request.deadline_seconds is not None:
            seconds_max = min(seconds_max, request.deadline_seconds)
        queue_seconds = self._lanes.queue(request.pool, request.priority).eta_seconds or 0.0
        return judge(
            request.pool,
            sightings,
            seconds_max,
            queue_seconds,
            lease_clock(),
            is_idle=self._lanes.is_idle(request.pool),
        )

    def records(self, names: Iterable[str]) -> dict[str, ProviderRecord]:
        """The records of those providers that have one."""
        found = {name: self._records.sighting(name).record for name in names}
        return {name: record for name, record in found.items() if record is not None}

    def rooms(self, names: Iterable[str]) -> dict[str, float]:
        """How much may begin now at those of these providers that have a pace, or have said to come later: 0.0 to 1.0.

        Empty while what is booked there has not been read lately.
        """
        if lease_clock() - self._paces_read_at > PACE_OLD_SECONDS:
            return {}
        paces, at = self._configuration.paces, now().timestamp()
        rooms = {name: room(paces[name], self._paces.get(name), at) for name in names if name in paces}
        return {name: left for name, left in rooms.items() if paces[name].is_set or left < 1}

    def down(self, pool: str) -> str | None:
        """Why no provider of a pool is called at present, for people; None if one is, or the pool has none.

        What people have paused is not told here.
        """
        if self._records.all_closed:
            return None
        sightings = self._sightings(pool)
        if not sightings or any(sighting.is_closed for sighting in sightings):
            return None
        return ", ".join(
            f"the breaker of {each.provider} is {each.state.replace('_', '-')} since {each.since:%Y-%m-%d %H:%M:%S} UTC"
            for each in (sighting.record for sighting in sightings)
            if each is not None
        )

    def _sightings(self, pool: str) -> list[ObservedRecord]:
        """The breakers of a pool's providers, without those that people have paused."""
        names = self._configuration.providers_of(pool) if pool in self._configuration.pools else ()
        return [self._records.sighting(name) for name in names if not self.valves.is_paused(provider=name)]

    async def _read_paces(self) -> None:
        # One request for all of them; none where no provider has a pace.
        self._paces = await read_paces(self._requests, list(self._configuration.paces)[:PACES_MAX])
        self._paces_read_at = lease_clock()

    async def _refresh(self) -> None:
        for provider in self._records.providers:
            await self._records.refresh(provider)


def judge(
    pool: str, sightings: list[ObservedRecord], seconds_max: float, queue_seconds: float, at: float, *, is_idle: bool
) -> Refusal | None:
    """Whether a task of a pool waits longer than it may, none of whose providers is closed.

    An outage is guessed to last as long again as it has lasted, and no less than until the next probe; behind that
    comes the queue. A record that nobody tends says nothing: tasks then wait for a worker, as ever. And a probe needs
    a task: while there is none, one is taken.
    """
    if not all(sighting.is_tended(at) for sighting in sightings):
        return None
    until_probe = min(sighting.seconds_until_probe(at) for sighting in sightings)
    if until_probe == 0 and is_idle:
        return None
    lasted = min(sighting.unavailable_seconds(at) for sighting in sightings)
    eta_seconds = max(until_probe, lasted) + queue_seconds
    if eta_seconds <= seconds_max:
        return None
    return Refusal(
        f"no provider of pool {pool} can be called; the wait would be about {eta_seconds:.0f} s",
        max(until_probe, RETRY_AFTER_SECONDS_MIN),
    )
