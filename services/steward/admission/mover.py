"""The mover: brings what waits in BACKLOG into TASKS, in fair order, while it holds the lease.

Any number of stewards run one. While BACKLOG is empty each of them looks now and then, and nothing is written.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from nats.aio.msg import Msg

from contracts import subjects
from contracts.codec import decode
from contracts.errors import TaskmeshError
from contracts.records.backlog import TENANTS_TOLD_MAX, LaneBacklog
from contracts.records.status import LaneSample
from contracts.streams import TASKS, TURNS
from mesh.admission.backlog import waiting_by_lane
from mesh.background import first_of, repeatedly
from mesh.broker.connection import Connection
from mesh.broker.direct_get import subjects_of
from mesh.configuration.tenants_table import TenantOf
from mesh.loop_health import LoopHealth
from steward.admission.lane_moves import Allowance, LaneMoves
from steward.admission.lease import RENEW_SECONDS, MoverLease

log = structlog.get_logger("steward.admission")

LOOK_SECONDS: Final = 5.0
"""How often BACKLOG is looked at while it is empty: who puts something there says so, and that may be lost."""
ROUND_SECONDS: Final = 0.05
"""How long between two rounds while there is a backlog: less would cost more, and more lets fast lanes run dry."""
QUIET_SECONDS: Final = 0.2
"""The same while nothing could be moved for a while: places get free seldom."""
QUIET_ROUNDS: Final = 20
LANES_MAX: Final = 10_000

MayGoOn = Callable[[str, str, str], bool]
"""Tells of a tenant, a pool and a priority whether what waits there may go on. It must not wait itself."""


Waiting = dict[tuple[str, str], dict[str, int]]
"""Messages in BACKLOG, by pool and priority, and by tenant."""


class Mover:
    """Moves messages, and learns from workers what the tenants' turns have used."""

    def __init__(self, connection: Connection, tenant_of: TenantOf, steward: str) -> None:
        self._connection = connection
        self._requests = connection.requests
        self._lease = MoverLease(connection.requests, steward)
        self._lanes: dict[tuple[str, str], LaneMoves] = {}
        self._crowded: frozenset[tuple[str, str]] = frozenset()
        self._may_go_on: list[MayGoOn] = []
        self._woken = asyncio.Event()
        self._still_rounds = 0
        self._tenant_of = tenant_of
        self._bounds: dict[str, int] = {}
        """How many more turns may begin of each tenant whose settings bound them, as it was in the last round."""

    def add_condition(self, may_go_on: MayGoOn) -> None:
        """Ask this, too, before anything of a tenant goes on."""
        self._may_go_on.append(may_go_on)

    def wake(self) -> None:
        """Look at once: something may go on."""
        self._woken.set()

    def crowd(self, lanes: Iterable[tuple[str, str]]) -> None:
        """These lanes have more waiting in TASKS than is good, whoever put it there: what is new goes by BACKLOG."""
        before, self._crowded = self._crowded, frozenset(lanes)
        if self._crowded - before:
            self._woken.set()

    async def run(self) -> None:
        """Move until cancelled."""
        await self._connection.client.subscribe("stats.lanes.*.*", cb=self._on_sample)
        await self._requests.on_announced(subjects.BACKLOG_GREW, lambda _: self._woken.set())
        await repeatedly(self.round, 0, LoopHealth(log, "mover.unavailable"))

    async def round(self) -> None:
        """Look once, move what may go, and wait for the next time. Raises `TaskmeshError`."""
        try:
            pause_seconds = await self._round()
        except TaskmeshError:
            await asyncio.sleep(RENEW_SECONDS)
            raise
        if pause_seconds > ROUND_SECONDS:
            await first_of(self._woken, seconds=pause_seconds)
        else:
            await asyncio.sleep(pause_seconds)  # However often it is woken.
        self._woken.clear()

    async def _round(self) -> float:
        waiting = await self._waiting()
        if not waiting and not self._crowded:
            await self._lease.release()
            return LOOK_SECONDS
        if not await self._lease.hold(self._told(waiting)):
            return RENEW_SECONDS
        bounded = self._bounds = await self._bounded(waiting)
        moved = 0
        for (pool, priority), tenants in waiting.items():
            moved += await self._lane(pool, priority).move(tenants, self._allowances(pool, priority, bounded))
        self._still_rounds = 0 if moved else self._still_rounds + 1
        return ROUND_SECONDS if self._still_rounds < QUIET_ROUNDS else QUIET_SECONDS

    async def _waiting(self) -> Waiting:
        """How many messages each tenant has in each lane."""
        waiting: Waiting = defaultdict(dict)
        for lane, count in (await waiting_by_lane(self._requests)).items():
            waiting[lane.pool, lane.priority][lane.tenant] = count
        return waiting

    def _told(self, waiting: Waiting) -> tuple[LaneBacklog, ...]:
        told: list[LaneBacklog] = []
        for pool, priority in sorted(waiting.keys() | self._crowded):
            tenants = Counter(waiting.get((pool, priority), {}))
            held = [tenant for tenant in tenants if not self._goes_on(tenant, pool, priority)]
            named = dict(tenants.most_common(TENANTS_TOLD_MAX))
            told.append(
                LaneBacklog(
                    pool=pool,
                    priority=priority,  # type: ignore[arg-type]  # one of PRIORITIES
                    waiting=tenants.total(),
                    tenants_waiting=len(tenants),
                    tenants=named,
                    held=tuple(tenant for tenant in held if tenant in named),
                    held_waiting=sum(tenants[tenant] for tenant in held),
                )
            )
        return tuple(told)

    async def _bounded(self, waiting: Waiting) -> dict[str, int]:
        """How many more turns of each tenant may be worked on, or be next, of those whose settings bound them."""
        left: dict[str, int] = {}
        for tenant in {name for tenants in waiting.values() for name in tenants}:
            bound = self._tenant_of(tenant).running
            if bound is None:
                continue
            counts = [
                await subjects_of(self._requests, stream, f"{root}.*.*.{tenant}")
                for stream, root in ((TASKS.name, "tasks"), (TURNS.name, "turns"))
            ]
            left[tenant] = max(0, bound - sum(sum(each.values()) for each in counts))
        return left

    def _goes_on(self, tenant: str, pool: str, priority: str) -> bool:
        """Whether what waits of a tenant gets a place that is free."""
        return self._bounds.get(tenant) != 0 and self._may(tenant, pool, priority)

    def _may(self, tenant: str, pool: str, priority: str) -> bool:
        return all(may_go_on(tenant, pool, priority) for may_go_on in self._may_go_on)

    def _allowances(self, pool: str, priority: str, bounded: dict[str, int]) -> Callable[[str], Allowance | None]:
        def allowance_of(tenant: str) -> Allowance | None:
            if not self._may(tenant, pool, priority):
                return None
            return Allowance(self._tenant_of(tenant).weight, bounded.get(tenant))

        return allowance_of

    def _lane(self, pool: str, priority: str) -> LaneMoves:
        if (pool, priority) not in self._lanes and len(self._lanes) >= LANES_MAX:
            self._lanes.pop(next(iter(self._lanes)))
        return self._lanes.setdefault((pool, priority), LaneMoves(self._requests, pool, priority))

    async def _on_sample(self, message: Msg) -> None:
        try:
            sample = decode(message.data, LaneSample)
            pool, _, priority = message.subject.removeprefix("stats.lanes.").rpartition(".")
            lane = self._lane(subjects.check_pool(pool), subjects.check_priority(priority))
        except TaskmeshError:
            return  # Whoever keeps the statistics of lanes says so.
        for tenant, tokens in sample.tokens.items():
            lane.order.used(tenant, sample.begun.get(tenant, 0), tokens, self._tenant_of(tenant).weight)
