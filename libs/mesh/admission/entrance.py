"""The entrance: which lane a new task gets, what it is thought to cost, and whether it goes into TASKS or BACKLOG."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from contracts import subjects
from contracts.journal.parts import Estimate
from contracts.messages.work import TurnWork
from contracts.streams import BACKLOG, LANE_BACKLOG_MAX, TASKS
from contracts.tasks import Priority, TaskRequest
from mesh.admission import backlog
from mesh.admission.counted_rooms import CountedRooms
from mesh.admission.estimate import estimate, placed
from mesh.broker.requests import PubAck, Requests
from mesh.broker.stream_states import messages_on
from mesh.configuration.mesh_toml import PoolConfiguration
from mesh.configuration.tenants_table import TenantConfiguration, TenantOf, TenantsConfiguration
from mesh.errors import NoRoom, QueueFull

_NO_LIMITS: Final = PoolConfiguration()
FULL_SECONDS: Final = 0.1
"""For how long a lane that has refused a tenant is not asked again: who floods must cost less than who is let in."""
FULL_LANES_MAX: Final = 10_000
SHARED_PERCENT: Final = 50
"""From here on a tenant may have less waiting in a lane the fuller BACKLOG is: the rest is for those with little."""
SHARE_MIN: Final = 16
"""So many a tenant may have waiting in a lane, as long as there is any room."""


class LaneView(Protocol):
    """What is known of the lanes beside the way: nothing here asks the broker."""

    def goes_by_backlog(self, pool: str, priority: str) -> bool:
        """Whether one more task would have to wait for long in its lane: then its order is the stewards' to say."""
        ...

    def median_output(self, pool: str) -> int | None:
        """What the pool's turns have put out lately, in tokens."""
        ...


class OrderedLanes:
    """What the stewards say alone, for those who submit now and then."""

    def __init__(self, requests: Requests) -> None:
        self._lanes = requests.backlog_lanes

    def goes_by_backlog(self, pool: str, priority: str) -> bool:
        """Whether the stewards order it."""
        return self._lanes.has(pool, priority)

    def median_output(self, pool: str) -> int | None:
        """Not known here."""
        return None


class Committed(NamedTuple):
    """The stream that has accepted a task, and its answer."""

    stream: str
    ack: PubAck


class Entrance:
    """Takes first turns in. Configured anew by `configure`."""

    def __init__(
        self,
        requests: Requests,
        pools: Mapping[str, PoolConfiguration],
        tenants: TenantsConfiguration,
        lanes: LaneView | None = None,
        tenant_of: TenantOf | None = None,
        is_paused: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`tenant_of`: what holds for a tenant at present, if that is more than `tenants`; `is_paused`: of a tenant."""
        self._requests = requests
        self._lanes = lanes or OrderedLanes(requests)
        self._is_paused = is_paused
        self._full_until: dict[subjects.LaneSubject, float] = {}
        self._rooms = CountedRooms()
        self._tenant_now = tenant_of
        self.configure(pools, tenants)

    def configure(self, pools: Mapping[str, PoolConfiguration], tenants: TenantsConfiguration) -> None:
        """Go by these from the next task on."""
        self._pools, self._tenants = pools, tenants

    def pool(self, name: str) -> PoolConfiguration:
        """The limits of a pool."""
        return self._pools.get(name, _NO_LIMITS)

    def estimate(self, request: TaskRequest, history_tokens: int) -> Estimate:
        """What a task is thought to cost that continues so many tokens."""
        return estimate(request, self.pool(request.pool), self._lanes.median_output(request.pool), history_tokens)

    def place(self, asked: Priority, tenant: str, cost: Estimate) -> tuple[Priority, Estimate]:
        """The lane that a task gets, and its estimate, which says why it is another than was asked for."""
        return placed(asked, self._tenant_of(tenant), cost)

    def goes_by_backlog(self, work: TurnWork) -> bool:
        """Whether a task is for the stewards to let in.

        Those of a tenant that is paused, or has a bound on what runs, always are, whatever the lane has room for.
        """
        if self._tenant_of(work.tenant).running is not None or self._is_paused(work.tenant):
            return True
        return self._lanes.goes_by_backlog(work.pool, work.priority)

    async def commit(
        self, work: TurnWork, payload: bytes, headers: dict[str, str], timeout_seconds: float, *, by_backlog: bool
    ) -> Committed:
        """Publish a first turn. What TASKS has no room for goes by BACKLOG.

        Raises `QueueFull`, `BrokerUnavailable`, or `BrokerError`.
        """
        lane = backlog.queue_of(work)
        if self._full_until and _time() < self._full_until.get(lane, 0.0):
            raise _full(lane)
        if not by_backlog:
            try:
                subject = subjects.tasks(*lane)
                return Committed(
                    TASKS.name, await self._requests.publish(subject, payload, headers, timeout_seconds=timeout_seconds)
                )
            except NoRoom:
                pass
        await self._check_backlog(lane)
        try:
            return Committed(BACKLOG.name, await backlog.put(self._requests, lane, payload, headers, timeout_seconds))
        except NoRoom as error:
            if len(self._full_until) >= FULL_LANES_MAX:
                self._full_until.clear()
            self._full_until[lane] = _time() + FULL_SECONDS
            raise _no_room(lane, error) from None

    def _tenant_of(self, name: str) -> TenantConfiguration:
        return self._tenants.of(name) if self._tenant_now is None else self._tenant_now(name)

    async def _check_backlog(self, lane: subjects.LaneSubject) -> None:
        """Raise `QueueFull` if the tenant has as much waiting there as it may. BACKLOG itself has the bound of all."""
        bound = self._tenant_of(lane.tenant).backlog
        if self._requests.backlog_lanes.waiting_of(*lane) >= share_of(self._requests.backlog_lanes.used_percent):
            raise _full(lane)
        if bound >= LANE_BACKLOG_MAX or self._rooms.takes(lane, bound, _time()):
            return
        waiting = await messages_on(self._requests, BACKLOG.name, backlog.backlog_subject(lane))
        if not self._rooms.count(lane, bound, waiting, _time()):
            raise _full(lane)


def share_of(used_percent: int) -> int:
    """How many of a tenant may wait in a lane while so much of BACKLOG is taken: all, or what is left, shared out."""
    left = LANE_BACKLOG_MAX * (100 - used_percent) // (100 - SHARED_PERCENT)
    return min(LANE_BACKLOG_MAX, max(SHARE_MIN, left))


def _time() -> float:
    return asyncio.get_running_loop().time()


def _full(lane: subjects.LaneSubject) -> QueueFull:
    return QueueFull(f"lane {lane.pool}.{lane.priority} takes no more of tenant {lane.tenant}")


def _no_room(lane: subjects.LaneSubject, error: NoRoom) -> QueueFull:
    """What is full, by what the broker says of it (nats-server: `ErrMaxMsgsPerSubject`, and the others)."""
    if "per subject" in error.said:
        return _full(lane)
    if "maximum messages" in error.said:
        return QueueFull("the queues of the mesh take no more", cause="queues")
    return QueueFull(f"there is no room for more tasks: {error.said}", cause="storage")
