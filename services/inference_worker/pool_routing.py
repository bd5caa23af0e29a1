"""Which pools choose among their models, and what they choose by: the settings of one configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from inference_worker.models.candidates import Candidates, Source
from inference_worker.models.router import Room, Routed, Router, free
from inference_worker.models.timed_source import Timed
from inference_worker.models.watched_source import WatchedSource
from inference_worker.speed_reports import SpeedReporter
from mesh.budgets.costs import prices_at
from mesh.clock import lease_clock
from mesh.configuration.mesh_toml import Configuration


class PoolRouting:
    """What a configuration makes of its pools' models. `guard` and `route` are for `open_providers`."""

    def __init__(
        self,
        configuration: Configuration,
        guarded: Callable[[Source], Source],
        speeds: SpeedReporter,
        is_closed: Callable[[str], bool],
        room: Room = free,
    ) -> None:
        """`guarded` is what stands before each source in any pool, such as its breaker."""
        self._configuration = configuration
        self._guarded = guarded
        self._is_closed = is_closed
        self._speeds = speeds
        self._room = room
        routed = [name for name, pool in configuration.pools.items() if pool.prefer != "order"]
        self._measured = {provider for pool in routed for provider in configuration.providers_of(pool)}
        if routed:
            speeds.want()

    def guard(self, source: Source) -> Source:
        """A source with what stands before it, and timed if any pool chooses it."""
        if source.name in self._measured:
            source = WatchedSource(source, Timed(source.name, self._speeds.speeds, lease_clock))
        return self._guarded(source)

    def route(self, name: str, candidates: Candidates) -> Candidates:
        """A pool's models, chosen among by its preference, if it has any."""
        pool = self._configuration.pools[name]
        if pool.prefer == "order":
            return candidates
        router = Router(
            prefer=pool.prefer,
            speeds=self._speeds.speeds,
            prices_of=partial(prices_at, self._configuration),
            is_closed=self._is_closed,
            room=self._room,
            max_output_tokens=pool.max_output_tokens,
        )
        return Routed.of(candidates, router)
