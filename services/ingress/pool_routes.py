"""Pools over HTTP: how all of them stand, and the load of one."""

from __future__ import annotations

from litestar import Response, get

from contracts.api.pools import PoolList, PoolState
from contracts.records.status import QueueState
from ingress.lane_statistics import Lanes
from ingress.pool_availability import Providers
from ingress.pool_load import PoolLoads
from ingress.waiting import Waits
from mesh.access.callers import Caller, caller_of, tenant_of
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.configuration.settings import Settings
from mesh.fleet.pool_states import pool_state, provider_states
from mesh.serving.http import AnyRequest, json_response


class Pools:
    """What the routes stand on."""

    def __init__(
        self, settings: Settings, requests: Requests, lanes: Lanes, providers: Providers, waits: Waits
    ) -> None:
        self._settings = settings
        self._lanes = lanes
        self._providers = providers
        self._waits = waits
        self._loads = PoolLoads(requests, settings.worker_concurrency, waits.is_paused)

    def take(self, settings: Settings) -> None:
        """Go by these settings from the next request on."""
        self._settings = settings

    async def page(self, request: AnyRequest) -> Response[bytes]:
        """`GET /v1/pools`"""
        caller = caller_of(request, "read")
        own = caller.identity.pool
        pools = [pool for pool in sorted(self._settings.pools) if own in (None, pool)]
        return json_response(PoolList(time=now(), pools=[self._state(pool, caller) for pool in pools]))

    async def load(self, request: AnyRequest, pool: str) -> Response[bytes]:
        """`GET /v1/pools/{pool}/load`"""
        tenant_of(request, "operate")
        return json_response(await self._loads.load(pool, self._settings.pools))

    def _state(self, pool: str, caller: Caller) -> PoolState:
        fleet = self._lanes.fleet.fleet
        workers = None if fleet is None else [each.record for each in fleet.alive if each.record is not None]
        names = self._settings.configuration.providers_of(pool)
        tenant = None if sees_all(caller) else caller.tenant

        def place(pool: str, priority: str) -> QueueState:
            return self._waits.held_up(pool, priority, tenant, self._lanes.queue(pool, priority))

        return pool_state(
            pool,
            self._lanes.view(pool),
            place,
            workers,
            provider_states(names, self._providers.records(names), self._providers.rooms(names)),
            tenant,
        )


def sees_all(caller: Caller) -> bool:
    """Whether a caller may know of other tenants."""
    identity = caller.identity
    return "operate" in identity.scopes and (identity.tenant is None or identity.any_tenant)


def pool_routes(pools: Pools) -> list[object]:
    """The routes."""

    @get("/v1/pools")
    async def page(request: AnyRequest) -> Response[bytes]:
        return await pools.page(request)

    @get("/v1/pools/{pool:str}/load")
    async def load(request: AnyRequest, pool: str) -> Response[bytes]:
        return await pools.load(request, pool)

    return [page, load]
