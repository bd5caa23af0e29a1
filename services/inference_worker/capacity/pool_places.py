"""The places of a worker by pool: what the pools' servers bear, what is kept free for others, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from contracts.records.backlog import BacklogRecord
from contracts.records.status import PoolCapacity
from inference_worker.capacity.server import ServerCapacity
from inference_worker.capacity.shifting import allotted, shares_of, shifted
from mesh.configuration.mesh_toml import Configuration
from mesh.configuration.settings import Settings
from mesh.errors import SettingsError

SHIFT_SECONDS = 1.0
"""How often shares are looked at."""

HOLDING_FROM = 8
"""Of so many turns one ends soon: a pull that is open all the time then costs less than one that comes and goes."""

Servers = Callable[[], Mapping[str, ServerCapacity]]
"""What is known of the servers of providers; of one that is missing nothing is, and it bears all."""
Usable = Callable[[str], bool]
"""Whether a provider may be called now."""
Ordered = Callable[[], BacklogRecord | None]
"""What the stewards say of lanes whose tasks wait in BACKLOG; None while nobody says anything."""


def _nothing() -> None:
    return None


class PoolPlaces:
    """How many turns of each pool this worker takes at present. Fits `mesh.broker.places.Places`."""

    def __init__(self, settings: Settings, servers: Servers, usable: Usable, ordered: Ordered = _nothing) -> None:
        check_places_of(settings)
        self._pools = settings.pools
        self._concurrency = settings.worker_concurrency
        self._configuration = settings.configuration
        self._servers = servers
        self._usable = usable
        self._ordered = ordered
        self._backlogs: dict[str, Counter[str]] = {pool: Counter() for pool in self._pools}
        """By pool and lane: messages that wait."""
        self._most: dict[str, int] = {}
        """By pool: what the file leaves to it."""
        self._shares: dict[str, float] = {}
        self._shifted_at = float("-inf")
        self._callbacks: list[Callable[[], None]] = []

    def configure(self, configuration: Configuration) -> None:
        """Go by another configuration."""
        self._configuration = configuration
        self._most.clear()
        self.changed()

    def changed(self) -> None:
        """A limit is another one."""
        for callback in self._callbacks:
            callback()

    def on_changed(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever there may be more room than before."""
        self._callbacks.append(callback)

    def has_room(self, pool: str, in_hand: Mapping[str, int]) -> bool:
        """Whether one more turn of a pool may be begun while each pool has so many in hand."""
        return self.room(pool, in_hand) > 0

    def room(self, pool: str, in_hand: Mapping[str, int]) -> int:
        """How many more, if no other pool begins any."""
        room = self._most_of(pool) - in_hand.get(pool, 0)
        limit = self._limit(pool) if room > 0 and self._servers() else None
        if limit is not None:
            mine = self._providers(pool)
            # Who calls the same servers shares what they bear.
            shared = sum(count for other, count in in_hand.items() if count and mine & self._providers(other))
            room = min(room, limit - shared)
        return max(0, room)

    def holds(self, pool: str) -> bool:
        """Whether a message may wait here for room: not for one of few turns to end while other workers have some."""
        servers = [server for each in self._providers(pool) if (server := self._servers().get(each)) is not None]
        return all(server.workers == 1 or server.limit >= HOLDING_FROM for server in servers)

    def weight(self, pool: str) -> float:
        """The pool's share of the free places. A pool of which nothing is known to wait has that of its weight."""
        self._shift()
        share = self._shares.get(pool)
        if share is None:
            weights = self._weights()
            share = weights.get(pool, 1.0) / sum(weights.values()) if weights else 1.0
        return max(share, 1e-6) * max(len(self._pools), 1)

    def waiting(self, pool: str, lane: str, messages: int) -> None:
        """So many messages wait in a lane of a pool."""
        if pool in self._backlogs:
            self._backlogs[pool][lane] = messages

    def places(self) -> dict[str, int]:
        """How many places each pool has by its share, if all of them have work; empty where each may have all."""
        self._shift()
        most = {pool: min(self._most_of(pool), self._limit_or_all(pool)) for pool in self._pools}
        if len(self._pools) == 1 and all(each >= self._concurrency for each in most.values()):
            return {}
        return allotted(self._concurrency, self._shares, most)

    def capacity(self) -> dict[str, PoolCapacity]:
        """What the servers of each pool bear, where that is known."""
        found: dict[str, PoolCapacity] = {}
        for pool in self._pools:
            servers = [server for each in self._providers(pool) if (server := self._servers().get(each)) is not None]
            limit = self._limit(pool)
            if servers and limit is not None:
                found[pool] = PoolCapacity(
                    limit=limit,
                    of_all=sum(server.of_all for server in servers),
                    workers=max(server.workers for server in servers),
                    why="; ".join(f"{server.provider}: {server.why}" for server in servers),
                )
        return found

    def _most_of(self, pool: str) -> int:
        """What the file leaves to a pool: no more than its own most, and none of what is kept free for others."""
        if pool not in self._most:
            self._most[pool] = self._left_to(pool)
        return self._most[pool]

    def _left_to(self, pool: str) -> int:
        kept = sum(self._configuration.pools[other].places.min for other in self._known() if other != pool)
        own = self._configuration.pools[pool].places.max if pool in self._configuration.pools else None
        return max(1, min(self._concurrency - kept, own or self._concurrency))

    def _limit(self, pool: str) -> int | None:
        """What the servers bear that a pool's turns go to now; None if one of them bears whatever comes."""
        limit = 0
        for provider in self._providers(pool):
            server = self._servers().get(provider)
            if server is None:
                return None
            limit += server.limit
        return limit or None

    def _limit_or_all(self, pool: str) -> int:
        limit = self._limit(pool)
        return self._concurrency if limit is None else limit

    def _providers(self, pool: str) -> set[str]:
        """Whom a pool's turns go to at present: the first that may be called; of a pool with another choice all such.

        Where none may be called it is the first: then the gate is shut, and a probe needs a place.
        """
        if pool not in self._configuration.pools:
            return set()
        providers = self._configuration.providers_of(pool)
        usable = [provider for provider in providers if self._usable(provider)] or list(providers[:1])
        prefer = getattr(self._configuration.pools[pool], "prefer", "order")
        return set(usable[:1] if prefer == "order" else usable)

    def _shift(self) -> None:
        at = asyncio.get_running_loop().time()
        if at - self._shifted_at >= SHIFT_SECONDS:
            self._shifted_at = at
            self._shares = shifted(self._shares, shares_of(self._weights(), self._waiting_by_pool()))

    def _waiting_by_pool(self) -> Counter[str]:
        """What the consumers say, and what the stewards have behind them: of an ordered lane little lies in TASKS."""
        waiting = Counter({pool: sum(lanes.values()) for pool, lanes in self._backlogs.items()})
        record = self._ordered()
        for lane in record.lanes if record is not None else ():
            if lane.pool in self._backlogs:
                waiting[lane.pool] += lane.waiting
        return waiting

    def _weights(self) -> dict[str, float]:
        return {pool: self._configuration.pools[pool].places.weight for pool in self._known()}

    def _known(self) -> list[str]:
        return [pool for pool in self._pools if pool in self._configuration.pools]


def check_places_of(settings: Settings) -> None:
    """Raise `SettingsError` if a worker has fewer places than its pools keep free."""
    pools = settings.configuration.pools
    kept = sum(pools[pool].places.min for pool in settings.pools if pool in pools)
    if kept > settings.worker_concurrency:
        source = settings.configuration.source
        raise SettingsError(
            f"{source}: pools.<name>.places.min: {kept} together, and MESH_WORKER_CONCURRENCY is "
            f"{settings.worker_concurrency}: a worker has no more places"
        )
