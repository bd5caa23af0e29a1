"""The mover: brings what waits in BACKLOG into TASKS, in fair order, while it holds the lease.

Any number of stewards run one. While BACKLOG is empty each of them looks now and then, and nothing is written.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final, NamedTuple

import structlog
from nats.aio.msg import Msg

from contracts import subjects
from contracts.codec import decode
from contracts.errors import TaskmeshError
from contracts.records.backlog import TENANTS_TOLD_MAX, LaneBacklog
from contracts.records.status import LaneSample
from contracts.streams import TASKS, TURNS
from mesh.admission.backlog import look
from mesh.background import first_of, repeatedly
from mesh.broker.connection import Connection
from mesh.broker.direct_get import subjects_of
from mesh.broker.requests import Requests
from mesh.configuration.tenants_table import TenantOf
from mesh.loop_health import LoopHealth
from steward.admission.lane_moves import LaneMoves
from steward.admission.lease import RENEW_SECONDS, MoverLease

log = structlog.get_logger("steward.admission")

LOOK_SECONDS: Final = 5.0
"""How often BACKLOG is looked at while it is empty: who puts something there says so, and that may be lost."""
ROUND_SECONDS: Final = 0.05
"""How long between two rounds while there is a backlog: less would cost more, and more lets fast lanes run dry."""
QUIET_SECONDS: Final = 0.2
"""The same while nothing could be moved for a while: places get free seldom."""
QUIET_ROUNDS: Final = 20
IDLE_ROUNDS: Final = 300
"""After so many there is no hurry at all: a pool may be paused for days."""
TENANTS_A_SECOND: Final = 20_000
"""Tenants that are counted a second: of many thousands those of a moment ago will do."""
LANES_MAX: Final = 10_000
LANES_AT_ONCE_MAX: Final = 8
ALL_TENANTS_TOLD_MAX: Final = 1_024
LANE_TENANTS_MIN: Final = 4
"""Tenants that the record names, of all lanes, and of one however many there are: all ingresses read it each second."""

MayGoOn = Callable[[str, str, str], bool]
"""Tells of a tenant, a pool and a priority whether what waits there may go on. It must not wait itself."""
Lane = tuple[str, str]
"""A pool, and a priority."""


class Pause(NamedTuple):
    """How long until the next round; `ends_early`: or until there is news."""

    seconds: float
    ends_early: bool = True


class _Bounds:
    """How many more turns of each tenant may be worked on, or be next, of those whose settings bound them.

    Looked up once a round, if anything has room to go. All lanes take from it.
    """

    def __init__(self, requests: Requests, tenant_of: TenantOf, waiting: Mapping[Lane, Mapping[str, int]]) -> None:
        self._requests = requests
        self._tenant_of = tenant_of
        self._waiting = waiting
        self._left: dict[str, int] | None = None
        self._looking = asyncio.Lock()

    @property
    def known(self) -> Mapping[str, int] | None:
        """The same, if it was looked up."""
        return self._left

    async def left(self) -> dict[str, int]:
        """By tenant. Raises `BrokerUnavailable`, `BrokerError`."""
        async with self._looking:
            if self._left is None:
                self._left = await self._look()
        return self._left

    async def _look(self) -> dict[str, int]:
        names = {name for tenants in self._waiting.values() for name in tenants}
        bounds = {name: bound for name in names if (bound := self._tenant_of(name).running) is not None}
        if not bounds:
            return {}
        # All at once, however many have a bound: TASKS is short.
        counts: Counter[str] = Counter()
        for stream in (TASKS, TURNS):
            for subject, count in (await subjects_of(self._requests, stream.name, stream.subjects[0])).items():
                counts[subject.rpartition(".")[2]] += count
        return {name: max(0, bound - counts[name]) for name, bound in bounds.items()}


class Mover:
    """Moves messages, and learns from workers what the tenants' turns have used."""

    def __init__(self, connection: Connection, tenant_of: TenantOf, steward: str) -> None:
        self._connection = connection
        self._requests = connection.requests
        self._lease = MoverLease(connection.requests, steward)
        self._lanes: dict[Lane, LaneMoves] = {}
        self._crowded: frozenset[Lane] = frozenset()
        self._may_go_on: list[MayGoOn] = []
        self._woken = asyncio.Event()
        self._still_rounds = 0
        self._tenant_of = tenant_of
        self._waiting: dict[Lane, dict[str, int]] = {}
        """Messages in BACKLOG, by lane and tenant, as they were counted last."""
        self._used_percent = 0
        self._count_again_at = 0.0
        self._left: Mapping[str, int] = {}
        """How many more turns may begin of each tenant whose settings bound them, as it was looked up last."""

    def add_condition(self, may_go_on: MayGoOn) -> None:
        """Ask this, too, before anything of a tenant goes on."""
        self._may_go_on.append(may_go_on)

    def wake(self) -> None:
        """Look at once: something may go on."""
        self._woken.set()

    def crowd(self, lanes: Iterable[Lane]) -> None:
        """These lanes have more waiting in TASKS than is good, whoever put it there: what is new goes by BACKLOG."""
        before, self._crowded = self._crowded, frozenset(lanes)
        if self._crowded - before:
            self._woken.set()

    async def run(self) -> None:
        """Move until cancelled; another steward takes over at once then."""
        await self._connection.client.subscribe("stats.lanes.*.*", cb=self._on_sample)
        await self._requests.on_announced(subjects.BACKLOG_GREW, lambda _: self._woken.set())
        try:
            await repeatedly(self.round, 0, LoopHealth(log, "mover.unavailable"))
        finally:
            await self._hand_over()

    async def round(self) -> None:
        """Look once, move what may go, and wait for the next time. Raises `TaskmeshError`."""
        try:
            pause = await self._round()
        except TaskmeshError:
            await asyncio.sleep(RENEW_SECONDS)
            raise
        # However often it is woken: while tasks pour in there is news at any time.
        least_seconds = ROUND_SECONDS if pause.ends_early else pause.seconds
        await asyncio.sleep(least_seconds)
        if pause.seconds > least_seconds:
            await first_of(self._woken, seconds=pause.seconds - least_seconds)
        self._woken.clear()

    async def _round(self) -> Pause:
        await self._count()
        if not self._waiting and not self._crowded:
            await self._lease.release()
            return Pause(LOOK_SECONDS)
        had_lease = self._lease.is_held
        if not await self._lease.hold(self._told(), self._used_percent):
            return Pause(RENEW_SECONDS, ends_early=False)
        if not had_lease:
            for lane in self._lanes.values():
                lane.forget()
        bounds = _Bounds(self._requests, self._tenant_of, self._waiting)
        moved = await self._of_each(self._move(lane, bounds) for lane in self._waiting)
        self._left = bounds.known or self._left
        self._still_rounds = 0 if moved else self._still_rounds + 1
        if self._still_rounds < QUIET_ROUNDS:
            return Pause(ROUND_SECONDS)
        somebody_may = any(self._may(lane, tenant) for lane, tenants in self._waiting.items() for tenant in tenants)
        return Pause(QUIET_SECONDS if somebody_may and self._still_rounds < IDLE_ROUNDS else RENEW_SECONDS)

    async def _count(self) -> None:
        """Count how many messages each tenant has in each lane, unless that was done a moment ago."""
        at = asyncio.get_running_loop().time()
        if at < self._count_again_at:
            return
        found, self._used_percent = await look(self._requests)
        waiting: dict[Lane, dict[str, int]] = defaultdict(dict)
        for lane, count in found.items():
            waiting[lane.pool, lane.priority][lane.tenant] = count
        self._waiting = dict(waiting)
        many = len(found) / TENANTS_A_SECOND
        self._count_again_at = at + many if many > ROUND_SECONDS else 0.0

    async def _move(self, lane: Lane, bounds: _Bounds) -> int:
        """Move what one lane has room for; returns how many messages went."""
        moves = self._lane(*lane)
        room = await moves.room()
        if not room:
            return 0
        left = await bounds.left()
        may_go = [tenant for tenant in self._waiting[lane] if self._may(lane, tenant)]
        weights = {tenant: self._tenant_of(tenant).weight for tenant in may_go}
        return await moves.move(room, weights, left, self._lease.keep)

    async def _of_each(self, moves: Iterable[Coroutine[Any, Any, int]]) -> int:
        """How many messages all of them moved. What one lane fails of keeps no other; it is raised after that."""
        gate = asyncio.Semaphore(LANES_AT_ONCE_MAX)

        async def one(move: Coroutine[Any, Any, int]) -> int:
            async with gate:
                return await move

        results = await asyncio.gather(*map(one, moves), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            raise failures[0]
        return sum(result for result in results if isinstance(result, int))

    def _may(self, lane: Lane, tenant: str) -> bool:
        return all(may_go_on(tenant, *lane) for may_go_on in self._may_go_on)

    def _is_held(self, lane: Lane) -> bool:
        """Whether all that waits is of tenants whom nobody need wait for.

        What such a tenant has must not go on at present, or comes here in any case, since its settings bound what runs.
        """
        if lane in self._crowded:
            return False
        tenants = self._waiting[lane]
        return not any(self._tenant_of(name).running is None and self._may(lane, name) for name in tenants)

    def _told(self) -> tuple[LaneBacklog, ...]:
        lanes = sorted(self._waiting.keys() | self._crowded)
        named_max = min(TENANTS_TOLD_MAX, max(LANE_TENANTS_MIN, ALL_TENANTS_TOLD_MAX // len(lanes)))
        told: list[LaneBacklog] = []
        for pool, priority in lanes:
            tenants = Counter(self._waiting.get((pool, priority), {}))
            held = [name for name in tenants if not self._goes_on((pool, priority), name)]
            named = dict(tenants.most_common(named_max))
            told.append(
                LaneBacklog(
                    pool=pool,
                    priority=priority,  # type: ignore[arg-type]  # one of PRIORITIES
                    waiting=tenants.total(),
                    tenants_waiting=len(tenants),
                    tenants=named,
                    held=self._is_held((pool, priority)),
                    held_tenants=tuple(name for name in held if name in named),
                    held_waiting=sum(tenants[name] for name in held),
                )
            )
        return tuple(told)

    def _goes_on(self, lane: Lane, tenant: str) -> bool:
        """Whether what waits of a tenant gets a place that is free."""
        return self._left.get(tenant) != 0 and self._may(lane, tenant)

    async def _hand_over(self) -> None:
        try:
            async with asyncio.timeout(RENEW_SECONDS):
                await self._lease.hand_over()
        except (TaskmeshError, TimeoutError) as error:
            log.info("mover.not_handed_over", error=str(error) or type(error).__name__)

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
