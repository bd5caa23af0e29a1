"""Valves over HTTP: pause and let go on, and give a tenant other limits for a while."""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog
from litestar import Response, delete, get, put

from contracts import subjects
from contracts.api.valves import LimitsRequest, PauseRequest, ValveList
from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.records.status import Pause
from contracts.records.valves import WHY_CHARACTERS_MAX, TenantLimits, Valve
from contracts.tasks import BODY_BYTES_MAX
from contracts.valve_keys import LIMITS, ValveKind, check_valve_kind, check_valve_name, limits_key, valve_key
from mesh.access.audit import acted
from mesh.access.callers import Caller, caller_of
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.configuration.mesh_toml import Configuration
from mesh.serving.http import AnyRequest, RequestRefused, json_response, read_json_body
from mesh.valves import changes
from mesh.valves.limits import check_limits
from mesh.valves.watched import VALVES_MAX, Valves

log = structlog.get_logger("ingress.valves")


class ValveRoutes:
    """What the routes stand on."""

    def __init__(self, requests: Requests, valves: Valves, configuration: Configuration) -> None:
        self._requests = requests
        self._valves = valves
        self._configuration = configuration

    def configure(self, configuration: Configuration) -> None:
        """Know these pools and providers from now on."""
        self._configuration = configuration

    def pause_of(self, pool: str, priority: str, tenant: str | None) -> Pause | None:
        """What keeps a turn of this lane and tenant from being begun, as its submitter is told; None if nothing does.

        Who has paused it is nobody's business but the operators'.
        """
        if not self._valves.any_shut:
            return None  # Each acceptance asks.
        # A task may be of a pool that this ingress has no more.
        providers = self._configuration.providers_of(pool) if pool in self._configuration.pools else ()
        valve = self._valves.holding(pool, priority, tenant, providers)
        if valve is None:
            return None
        return Pause(kind=valve.kind, name=valve.name, since=valve.since, until=valve.until, reason=valve.reason)

    async def page(self, request: AnyRequest) -> Response[bytes]:
        """`GET /v1/valves`"""
        _operator_of(request)
        return json_response(ValveList(valves=self._valves.shut(), limits=self._valves.limits()))

    async def shut(self, request: AnyRequest, kind: str, name: str) -> Response[bytes]:
        """`PUT /v1/valves/{kind}/{name}`"""
        caller = _operator_of(request)
        checked = check_valve_kind(kind)
        check_valve_name(checked, name)
        body = await read_json_body(request, self._requests.fitting(BODY_BYTES_MAX), absent=b"{}")
        wanted = decode(body, PauseRequest, whole_numbers=True)
        at = now()
        until = _end_of(wanted, at)
        self._check_known(checked, name)
        self._check_room(known=any(each.name == name for each in self._valves.shut(checked)))
        acted(request, caller, "pause", target=f"{checked} {name}", reason=wanted.reason)
        valve = Valve(kind=checked, name=name, by=caller.name, since=at, until=until, reason=wanted.reason)
        stored = await changes.shut(self._requests, valve)
        await self._valves.refresh()
        log.warning("valve.pause_asked", kind=kind, name=name, by=caller.name, until=until, reason=wanted.reason)
        return json_response(stored)

    async def open_again(self, request: AnyRequest, kind: str, name: str) -> Response[bytes]:
        """`DELETE /v1/valves/{kind}/{name}`"""
        caller = _operator_of(request)
        checked = check_valve_kind(kind)
        key = valve_key(checked, name)
        acted(request, caller, "resume", target=f"{checked} {name}", reason=_reason_of(request))
        stored = await changes.open_again(self._requests, key, Valve)
        await self._valves.refresh()
        log.warning("valve.resume_asked", kind=kind, name=name, by=caller.name)
        return json_response(stored)

    async def limit(self, request: AnyRequest, tenant: str) -> Response[bytes]:
        """`PUT /v1/valves/limits/{tenant}`"""
        caller = _operator_of(request)
        subjects.check_tenant(tenant)
        body = await read_json_body(request, self._requests.fitting(BODY_BYTES_MAX))
        wanted = decode(body, LimitsRequest, whole_numbers=True)
        check_limits(wanted.limits)
        at = now()
        until = _end_of(wanted, at)
        if until is None:
            raise InvalidPayload("until: limits hold for a while: this or seconds has to be there (else: mesh.toml)")
        self._check_room(known=any(each.tenant == tenant for each in self._valves.limits()))
        told = ", ".join(f"{key}={value}" for key, value in wanted.limits.items())
        acted(request, caller, "limit", target=f"tenant {tenant}: {told}", reason=wanted.reason)
        limits = TenantLimits(
            tenant=tenant, limits=wanted.limits, by=caller.name, since=at, until=until, reason=wanted.reason
        )
        stored = await changes.limit(self._requests, limits)
        await self._valves.refresh()
        log.warning("tenant.limited", tenant=tenant, limits=told, by=caller.name, until=until, reason=wanted.reason)
        return json_response(stored)

    async def end_limits(self, request: AnyRequest, tenant: str) -> Response[bytes]:
        """`DELETE /v1/valves/limits/{tenant}`"""
        caller = _operator_of(request)
        key = limits_key(tenant)
        acted(request, caller, "end-limits", target=f"tenant {tenant}", reason=_reason_of(request))
        stored = await changes.open_again(self._requests, key, TenantLimits)
        await self._valves.refresh()
        log.warning("tenant.limited_no_more", tenant=tenant, by=caller.name)
        return json_response(stored)

    def _check_known(self, kind: ValveKind, name: str) -> None:
        """Hold a name against what there is: one that is written wrongly pauses nothing. Raises `RequestRefused`."""
        configured = self._configuration
        if kind in ("pool", "lane"):
            what, named, there = "pool", name.partition(".")[0], sorted(configured.pools)
        elif kind == "provider":
            what, named = "provider", name
            there = sorted({each for pool in configured.pools for each in configured.providers_of(pool)})
        else:
            return
        if named not in there:
            raise RequestRefused("not-found", f"there is no {what} {named}; there is {', '.join(there)}")

    def _check_room(self, *, known: bool) -> None:
        if not known and len(self._valves.shut()) + len(self._valves.limits()) >= VALVES_MAX:
            raise RequestRefused("conflict", f"{VALVES_MAX} valves are shut already: open some")


def _operator_of(request: AnyRequest) -> Caller:
    """A caller who may touch what is everybody's. Raises `RequestRefused`."""
    caller = caller_of(request, "operate")
    identity = caller.identity
    if (identity.tenant is not None and not identity.any_tenant) or identity.pool is not None:
        raise RequestRefused(
            "forbidden", "what is paused is everybody's: this takes credentials for any tenant, and any pool"
        )
    return caller


def _reason_of(request: AnyRequest) -> str | None:
    """Why something goes on: a DELETE has no body. Raises `InvalidPayload`."""
    reason = request.query_params.get("reason")
    if reason is not None and not 1 <= len(reason) <= WHY_CHARACTERS_MAX:
        raise InvalidPayload(f"reason: must have 1 to {WHY_CHARACTERS_MAX} characters")
    return reason


def _end_of(wanted: PauseRequest | LimitsRequest, at: datetime) -> datetime | None:
    """When it ends by itself. Raises `InvalidPayload`."""
    if wanted.seconds is not None:
        if wanted.until is not None:
            raise InvalidPayload("until, seconds: one of them, not both")
        return at + timedelta(seconds=wanted.seconds)
    if wanted.until is not None and wanted.until <= at:
        raise InvalidPayload(f"until: {wanted.until.isoformat()} has gone by")
    return wanted.until


def valve_routes(valves: ValveRoutes) -> list[object]:
    """The routes below `/v1/valves`."""

    @get("/v1/valves")
    async def page(request: AnyRequest) -> Response[bytes]:
        return await valves.page(request)

    @put("/v1/valves/{kind:str}/{name:str}")
    async def shut(request: AnyRequest, kind: str, name: str) -> Response[bytes]:
        if kind == LIMITS:
            return await valves.limit(request, name)
        return await valves.shut(request, kind, name)

    @delete("/v1/valves/{kind:str}/{name:str}", status_code=200)
    async def open_again(request: AnyRequest, kind: str, name: str) -> Response[bytes]:
        if kind == LIMITS:
            return await valves.end_limits(request, name)
        return await valves.open_again(request, kind, name)

    return [page, shut, open_again]
