"""A copy of the bucket `valves` in each process: asked without waiting, and read again when something has changed.

Who changes a valve says so on core NATS, which is heard here, and the bucket is read then: at once, and a few times
more, since a replica may be behind. After a reconnect it is read, too, and every now and then in any case. While the
broker is away, what was read last holds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, NamedTuple

import structlog

from contracts.errors import TaskmeshError
from contracts.records.valves import TenantLimits, Valve, decode_valve
from contracts.streams import VALVES_BUCKET
from contracts.valve_keys import VALVES_ALL, VALVES_CHANGED, VALVES_PREFIX, ValveKind
from mesh.background import first_of
from mesh.broker.requests import Requests
from mesh.broker.scanning import Scan
from mesh.clock import now
from mesh.configuration.tenants_table import TenantConfiguration, TenantsConfiguration
from mesh.loop_health import LoopHealth
from mesh.valves.limits import with_limits

log = structlog.get_logger("mesh.valves")

UNHEARD_SECONDS: Final = 30.0
"""How often the bucket is read if nothing is heard: an announcement may be lost."""
SETTLING_SECONDS: Final = (0.05, 0.15, 0.4, 1.0)
"""When it is read again after one was heard: a replica may be behind."""
FIRST_READ_SECONDS_MAX: Final = 5.0
"""How long a start waits for it. A mesh whose bucket can't be read works, as one without valves."""
UNAVAILABLE_SECONDS: Final = 5.0
"""When it is tried again, if no reconnect is heard of: before a steward of this version has run there is no bucket."""
VALVES_MAX: Final = 10_000
"""So many that hold are read: each is a few hundred bytes."""


class _Kept(NamedTuple):
    """What the bucket has under a key; None: it was deleted, or is none that this version knows."""

    revision: int
    record: Valve | TenantLimits | None


class Valves:
    """The valves of a mesh. `open` it before it is asked, and keep `run` running."""

    def __init__(self, requests: Requests, tenants: Callable[[], TenantsConfiguration] = TenantsConfiguration) -> None:
        """`tenants`: what mesh.toml says of them at present."""
        self._requests = requests
        self._tenants = tenants
        self._kept: dict[str, _Kept] = {}
        self._paused: dict[tuple[ValveKind, str], Valve] = {}
        self._limits: dict[str, TenantLimits] = {}
        self._merged: dict[str, tuple[TenantLimits, TenantConfiguration, TenantConfiguration]] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        self._heard_at: float | None = None
        self._resumed = False
        self._reread_at: list[float] = []
        self._told: set[str] = set()

    # What it says

    @property
    def any_shut(self) -> bool:
        """Whether anything at all is paused."""
        return bool(self._paused)

    def is_paused(
        self,
        *,
        pool: str | None = None,
        priority: str | None = None,
        tenant: str | None = None,
        provider: str | None = None,
    ) -> bool:
        """Whether any of these is paused; with `priority` the pool's lane, too. Costs a look-up each, or nothing."""
        if not self._paused:
            return False
        return self.pause_of(pool=pool, priority=priority, tenant=tenant, provider=provider) is not None

    def pause_of(
        self,
        *,
        pool: str | None = None,
        priority: str | None = None,
        tenant: str | None = None,
        provider: str | None = None,
    ) -> Valve | None:
        """The valve that is shut of these: the pool's, its lane's, the tenant's, the provider's, the first of them."""
        if not self._paused:
            return None
        lane = f"{pool}.{priority}" if pool is not None and priority is not None else None
        named: Sequence[tuple[ValveKind, str | None]] = (
            ("pool", pool),
            ("lane", lane),
            ("tenant", tenant),
            ("provider", provider),
        )
        at = now()
        for kind, name in named:
            valve = self._paused.get((kind, name)) if name is not None else None
            if valve is not None and holds(valve, at):
                return valve
        return None

    def holding(self, pool: str, priority: str, tenant: str | None, providers: Sequence[str]) -> Valve | None:
        """The valve that keeps a turn of this lane and tenant from being begun; None if none does.

        One of a provider does so if all that the pool has are paused.
        """
        if not self._paused:
            return None
        found = self.pause_of(pool=pool, priority=priority, tenant=tenant)
        if found is not None or not providers:
            return found
        paused = [self.pause_of(provider=provider) for provider in providers]
        return paused[0] if all(each is not None for each in paused) else None

    def limits_of(self, tenant: str) -> TenantConfiguration:
        """What holds for a tenant: as mesh.toml has it, but for what somebody has set for a while."""
        configured = self._tenants().of(tenant)
        limits = self._limits.get(tenant) if self._limits else None
        if limits is None or limits.until <= now():
            return configured
        known = self._merged.get(tenant)
        if known is None or known[0] is not limits or known[1] is not configured:
            known = (limits, configured, with_limits(configured, limits.limits))
            self._merged[tenant] = known
        return known[2]

    def shut(self, *kinds: ValveKind) -> list[Valve]:
        """All that is paused, of these kinds, or of any; by kind and name."""
        at = now()
        return [
            valve
            for _, valve in sorted(self._paused.items())
            if holds(valve, at) and valve.kind in (kinds or (valve.kind,))
        ]

    def limits(self) -> list[TenantLimits]:
        """All limits that hold for a while, by tenant."""
        at = now()
        return [limits for _, limits in sorted(self._limits.items()) if limits.until > at]

    def on_changed(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever something is paused, or goes on, or has other limits."""
        self._callbacks.append(callback)

    # How it is kept

    async def open(self) -> None:
        """Hear of changes, and read what there is, so that a process which starts begins nothing that is paused."""
        for subject in (VALVES_ALL, VALVES_CHANGED):
            await self._requests.on_announced(subject, self._on_heard)
        try:
            async with asyncio.timeout(FIRST_READ_SECONDS_MAX):
                await self._read()
        except (TaskmeshError, TimeoutError) as error:
            log.warning("valves.unread", error=str(error) or "no answer in time")

    async def refresh(self) -> None:
        """Read it now: who has changed something goes by it before anybody is told. Failing that it is heard of."""
        self._on_heard(VALVES_CHANGED)
        with suppress(TaskmeshError):
            await self._read()

    async def run(self) -> None:
        """Keep it up to date until cancelled."""
        health = LoopHealth(log, "valves.unavailable")
        pause_seconds = self._pause_seconds()
        while True:
            await first_of(self._wake, seconds=pause_seconds)
            self._wake.clear()
            # Also while the broker is away: what was to end by itself ends.
            self._apply(now())
            try:
                await self._read()
                health.succeeded()
                pause_seconds = self._pause_seconds()
            except TaskmeshError as error:
                health.failed(error)
                pause_seconds = UNAVAILABLE_SECONDS

    def _on_heard(self, subject: str | None) -> None:
        at = _time()
        self._resumed |= subject is None
        self._heard_at = at
        self._reread_at = [at + seconds for seconds in SETTLING_SECONDS]
        self._wake.set()

    def _pause_seconds(self) -> float:
        """How long until the bucket is read again, or something that holds for a while ends."""
        at = _time()
        self._reread_at = [due for due in self._reread_at if due > at]
        pauses = [UNHEARD_SECONDS * random.uniform(0.8, 1.0), *(due - at for due in self._reread_at[:1])]
        ends = [valve.until for valve in self._paused.values() if valve.until is not None]
        ends += [limits.until for limits in self._limits.values()]
        if ends:
            pauses.append(max(0.001, (min(ends) - now()).total_seconds()))
        return min(pauses)

    async def _read(self) -> None:
        """Read the whole bucket, which is small. Raises `BrokerUnavailable`."""
        began_at = _time()
        resumed, self._resumed = self._resumed, False
        found: dict[str, _Kept] = {}
        scan, after, more = Scan(self._requests, VALVES_BUCKET.stream_name), 0, True
        at, holding = now(), 0
        while more and holding < VALVES_MAX:
            messages, more = await scan.page(after)
            for message in messages:
                after = message.sequence
                key = message.subject.removeprefix(VALVES_PREFIX)
                record = self._decoded(key, message.payload)
                found[key] = _Kept(message.sequence, record)
                # What has ended is there for a while yet, and may be more than holds.
                holding += record is not None and holds(record, at)
        self._merge(found, began_at, resumed=resumed)
        self._apply(now())

    def _merge(self, found: dict[str, _Kept], began_at: float, *, resumed: bool) -> None:
        """Go by what was read. A replica may be behind what another one has said already, for a while.

        After a reconnect it may be another bucket, whose sequences begin anew.
        """
        heard_at = self._heard_at
        if heard_at is not None and not resumed and began_at < heard_at + SETTLING_SECONDS[-1]:
            for key, kept in self._kept.items():
                if key not in found or found[key].revision < kept.revision:
                    found[key] = kept
        self._kept = found

    def _decoded(self, key: str, payload: bytes) -> Valve | TenantLimits | None:
        if not payload:
            return None  # What marks a key as deleted.
        try:
            return decode_valve(key, payload)
        except TaskmeshError as error:
            if key not in self._told:
                # Once: it may be of another version, and is read again and again.
                self._told.add(key)
                log.warning("valve.unreadable", key=key, error=str(error))
            return None

    def _apply(self, at: datetime) -> None:
        records = [kept.record for kept in self._kept.values()]
        paused = {(each.kind, each.name): each for each in records if isinstance(each, Valve) and holds(each, at)}
        limits = {each.tenant: each for each in records if isinstance(each, TenantLimits) and each.until > at}
        before: Any = (self._paused, self._limits)
        if before == (paused, limits):
            return
        for kind, name in {*paused} ^ {*self._paused}:
            log.info("valve.shut" if (kind, name) in paused else "valve.opened", kind=kind, name=name)
        self._paused, self._limits = paused, limits
        self._merged = {tenant: known for tenant, known in self._merged.items() if tenant in limits}
        for callback in self._callbacks:
            callback()


def holds(record: Valve | TenantLimits, at: datetime) -> bool:
    """Whether what a record pauses, or limits, is so at a time."""
    return record.until is None or record.until > at


def _time() -> float:
    return asyncio.get_running_loop().time()
