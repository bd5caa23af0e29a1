"""Whether a lane is crowded: then what is new goes by BACKLOG, and the stewards say in which order it is worked on.

TASKS is a queue in the order of arrival, and so it must be short. Nobody asks the broker for that: an ingress knows how
much lay there a moment ago, what it has put there itself since, and what workers take away. Where that comes to much,
the broker is asked beside what goes on: who submits one task after the other, and has each worked on at once, is no
crowd, though nobody has measured yet how fast they go.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from contextlib import suppress
from typing import Final, NamedTuple

import structlog

from contracts.errors import TaskmeshError
from contracts.streams import LANES_BUCKET, TASKS, lane_consumer
from contracts.subjects import BACKLOG_KEY
from ingress.lane_statistics import Lanes
from mesh.broker.requests import Requests
from mesh.fleet.findings import Fleet
from mesh.loop_health import LoopHealth

log = structlog.get_logger("ingress.crowding")

ROOM_MIN: Final = 16
"""Messages of a lane that may lie in TASKS however few places its pool has: some tasks at once are no flood."""
UNSEEN_SECONDS: Final = 2.0
"""How old what is known of a lane may be: a steward looks once a second, and an ingress reads that once a second."""
UNSEEN_MAX: Final = 10_000
LOOK_SECONDS: Final = 0.05
"""How often the broker is asked what lies in a lane, at the most."""
LOOK_GOOD_SECONDS: Final = 0.5
"""For so long its answer is better than the statistics."""
LOOK_ANSWER_SECONDS_MAX: Final = 1.0


class _Look(NamedTuple):
    """What lay in a lane, by the broker: `put` messages had been put there by then, of all that this ingress puts."""

    at: float
    waiting: int
    put: int


class Crowding:
    """The lanes, as one ingress sees them: a `LaneView`."""

    def __init__(self, requests: Requests, lanes: Lanes) -> None:
        self._requests = requests
        self._lanes = lanes
        self._unseen: dict[tuple[str, str], deque[float]] = defaultdict(lambda: deque(maxlen=UNSEEN_MAX))
        """When this ingress put messages there that no statistics can show yet."""
        self._put: Counter[tuple[str, str]] = Counter()
        self._looks: dict[tuple[str, str], _Look] = {}
        self._look_at: dict[tuple[str, str], float] = {}
        self._looking: set[asyncio.Task[None]] = set()
        self._looked_at: Fleet | None = None
        self._places: dict[str, int] = {}
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Hear of lanes that the stewards begin or end to order, until cancelled."""
        await self._requests.on_announced(f"$KV.{LANES_BUCKET.name}.{BACKLOG_KEY}", lambda _: self._changed.set())
        health = LoopHealth(log, "crowding.unavailable")
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._refresh(health)

    def goes_by_backlog(self, pool: str, priority: str) -> bool:
        """Whether one more task would have to wait for long; if not, it is taken to be put there."""
        if self._requests.backlog_lanes.has(pool, priority):
            return True
        known = self._lanes.view(pool).lanes.get(priority)
        if known is None:
            return False  # Nobody would bring it back from BACKLOG, as far as is known.
        at, lane = asyncio.get_running_loop().time(), (pool, priority)
        unseen = self._unseen[lane]
        while unseen and unseen[0] < at - UNSEEN_SECONDS:
            unseen.popleft()
        self._look_at_fleet()
        look = self._looks.get(lane)
        if look is not None and at - look.at < LOOK_GOOD_SECONDS:
            lay, put, since = look.waiting, self._put[lane] - look.put, look.at
        else:
            lay, put, since = known.depth - known.backlog, len(unseen), unseen[0] if unseen else at
        taken = (known.drain_per_second or 0.0) * (at - since)
        # Every ingress sees only its own: each takes its part of what there is room for.
        waiting = lay + max(0.0, put * self._lanes.fleet.ingresses - taken)
        room = max(ROOM_MIN, self._places.get(pool, 0))
        if put and waiting >= room / 2 and at >= self._look_at.get(lane, 0.0):
            self._look_at[lane] = at + LOOK_SECONDS
            looking = asyncio.create_task(self._look(pool, priority))
            self._looking.add(looking)
            looking.add_done_callback(self._looking.discard)
        if waiting >= room:
            return True
        unseen.append(at)
        self._put[lane] += 1
        return False

    async def _look(self, pool: str, priority: str) -> None:
        """Ask what lies in a lane. Without an answer it is as the statistics say."""
        at, put = asyncio.get_running_loop().time(), self._put[pool, priority]
        consumer = f"CONSUMER.INFO.{TASKS.name}.{lane_consumer(TASKS.name, pool, priority)}"
        with suppress(TaskmeshError):
            info = await self._requests.api(consumer, timeout_seconds=LOOK_ANSWER_SECONDS_MAX)
            self._looks[pool, priority] = _Look(at, int(info["num_pending"]), put)

    def median_output(self, pool: str) -> int | None:
        """What a turn of the pool puts out, by the lane that has ended most lately."""
        return self._lanes.median_output(pool)

    def _look_at_fleet(self) -> None:
        fleet = self._lanes.fleet.fleet
        if fleet is None or fleet is self._looked_at:
            return
        self._looked_at = fleet
        places: dict[str, int] = defaultdict(int)
        for member in fleet.alive:
            record = member.record
            if record is not None and not record.draining:
                for pool in record.pools:
                    places[pool] += record.places.get(pool, record.concurrency or 0)
        self._places = places

    async def _refresh(self, health: LoopHealth) -> None:
        try:
            await self._requests.backlog_lanes.refresh()
            health.succeeded()
        except TaskmeshError as error:
            health.failed(error)
