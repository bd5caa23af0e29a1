"""The load of a pool, over HTTP: what an autoscaler starts and stops workers by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from contracts.api.pools import LaneLoad, PoolLoad
from contracts.records.status import WorkerRecord
from contracts.streams import WORKERS_BUCKET, lane_consumer
from contracts.subjects import PRIORITIES, LaneSubject
from mesh.admission.backlog import waiting_by_lane
from mesh.broker.direct_get import subjects_of
from mesh.broker.requests import Requests
from mesh.clock import lease_clock, now
from mesh.errors import BrokerError
from mesh.fleet.eta import places_of
from mesh.fleet.records import read_records
from mesh.serving.http import RequestRefused

FRESH_SECONDS: Final = 1.0
"""An answer serves all who ask within this time: the broker is asked once a second for each pool, whoever polls."""
WORKERS_SECONDS: Final = 5.0
"""Heartbeats come every 30 s, and at once when something changes: they need no closer look."""
WORKER_SILENT_SECONDS: Final = 45.0
"""A heartbeat and a half. A worker that was killed has a record for longer, and no place for anybody."""
_CONSUMER_NOT_FOUND: Final = 10014
_STREAMS: Final = (("TASKS", "tasks"), ("TURNS", "turns"))


IsPaused = Callable[[str, str, str | None], bool]


class _Counts(NamedTuple):
    """What a consumer has not delivered yet, and what it has; and whether somebody has paused it."""

    waiting: int
    running: int
    is_paused: bool = False


class PoolLoads:
    """The load of each pool, no older than a second."""

    def __init__(self, requests: Requests, concurrency: int, is_paused: IsPaused) -> None:
        """`concurrency`: how many places a worker is taken to have while none lives that says so.

        `is_paused`: whether people have paused what a turn of a pool, priority and tenant (None: of any) needs.
        """
        self._requests = requests
        self._concurrency = concurrency
        self._is_paused = is_paused
        self._locks: dict[str, asyncio.Lock] = {}
        self._loads: dict[str, tuple[float, PoolLoad]] = {}
        self._workers: tuple[float, list[WorkerRecord]] = (float("-inf"), [])
        self._workers_lock = asyncio.Lock()

    async def load(self, pool: str, pools: Sequence[str]) -> PoolLoad:
        """The load of one of these pools. Raises `RequestRefused` of another, `BrokerUnavailable`, `BrokerError`."""
        if pool not in pools:
            raise RequestRefused("not-found", f"there is no pool {pool[:64]!r}; there is {', '.join(pools)}")
        async with self._locks.setdefault(pool, asyncio.Lock()):
            at, known = self._loads.get(pool, (float("-inf"), None))
            if known is not None and lease_clock() - at < FRESH_SECONDS:
                return known
            workers, lanes = await asyncio.gather(
                self._living(), asyncio.gather(*(self._lane(pool, priority) for priority in PRIORITIES))
            )
            load = judge(pool, lanes, workers, self._concurrency, now())
            self._loads[pool] = (lease_clock(), load)
            return load

    async def _lane(self, pool: str, priority: str) -> LaneLoad:
        counts = await asyncio.gather(*(self._counts(stream, root, pool, priority) for stream, root in _STREAMS))
        behind = await waiting_by_lane(self._requests, f"backlog.{pool}.{priority}.*")
        waiting = sum(each.waiting for each in counts) + sum(behind.values())
        held = sum(each.waiting for each in counts if each.is_paused)
        held += sum(count for lane, count in behind.items() if self._is_held(lane))
        return LaneLoad(
            priority=priority,  # type: ignore[arg-type]  # one of PRIORITIES
            waiting=waiting,
            running=sum(each.running for each in counts),
            held=waiting if self._is_paused(pool, priority, None) else held,
        )

    def _is_held(self, lane: LaneSubject) -> bool:
        """Whether a tenant's messages in BACKLOG get no place: by the valves, and by what the steward says."""
        record = self._requests.backlog_lanes.record
        told = record.lanes if record is not None else ()
        return self._is_paused(*lane) or any(
            lane.tenant in each.held_tenants
            for each in told
            if (each.pool, each.priority) == (lane.pool, lane.priority)
        )

    async def _counts(self, stream: str, root: str, pool: str, priority: str) -> _Counts:
        # Of a consumer its leader answers: the counts of another replica, and those of the stream's own followers, are
        # behind, or for ever 0.
        try:
            info = await self._requests.api(f"CONSUMER.INFO.{stream}.{lane_consumer(stream, pool, priority)}")
        except BrokerError as error:
            if error.number != _CONSUMER_NOT_FOUND:
                raise
            # Nobody has created it, or somebody has deleted it: all that is stored waits.
            stored = await subjects_of(self._requests, stream, f"{root}.{pool}.{priority}.*")
            return _Counts(sum(stored.values()), 0)
        return _Counts(int(info["num_pending"]), int(info["num_ack_pending"]), bool(info.get("paused")))

    async def _living(self) -> list[WorkerRecord]:
        """Workers that have told of themselves lately."""
        async with self._workers_lock:
            at, records = self._workers
            if lease_clock() - at >= WORKERS_SECONDS:
                records = await read_records(self._requests, WORKERS_BUCKET, WorkerRecord)
                self._workers = (lease_clock(), records)
        since = now() - timedelta(seconds=WORKER_SILENT_SECONDS)
        return [record for record in records if record.time >= since]


def judge(
    pool: str, lanes: Iterable[LaneLoad], records: Iterable[WorkerRecord], concurrency: int, at: datetime
) -> PoolLoad:
    """What lanes and workers come to. Pure.

    A worker of several pools counts for each of them with all its places: they are there for whichever has work. What
    the pool's model servers can't bear is no place, and no more workers make one of it.
    """
    lanes = list(lanes)
    # A tool runner serves no pool, nor does any other service.
    workers = [record for record in records if pool in record.pools and not record.draining]
    places = sum(record.concurrency or 0 for record in workers)
    bears = max((record.capacity[pool].of_all for record in workers if pool in record.capacity), default=None)
    waiting, running = sum(lane.waiting for lane in lanes), sum(lane.running for lane in lanes)
    turns = waiting + running - sum(lane.held for lane in lanes)
    at_once = turns if bears is None else min(turns, bears)
    # ⌈turns ÷ places of one worker⌉, where workers may have different numbers of places.
    wanted = -(-at_once * len(workers) // places) if places else -(-at_once // concurrency)
    return PoolLoad(
        pool=pool,
        time=at,
        waiting=waiting,
        running=running,
        workers=len(workers),
        places=sum(places_of(record, pool) for record in workers),
        wanted_workers=wanted,
        lanes=lanes,
    )
