"""`GET /v1/usage`: what the caller's tenant has used, and what it cost."""

from __future__ import annotations

from datetime import date
from typing import get_args

from litestar import Response, get

from contracts.api.usage import UsageBy
from contracts.errors import InvalidPayload
from mesh.access.callers import tenant_of
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.ledger.reports import first_of_month, report
from mesh.serving.http import AnyRequest, json_response


class UsageReports:
    """Reads the counters of a tenant."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def read(self, request: AnyRequest) -> Response[bytes]:
        """`GET /v1/usage`"""
        tenant = tenant_of(request, "read")
        query = request.query_params
        until = parse_date("until", query.get("until")) or now().date()
        since = parse_date("since", query.get("since")) or first_of_month(until)
        by = parse_by(query.get("by"))
        try:
            return json_response(await report(self._requests, tenant, by, since, until))
        except ValueError as error:
            raise InvalidPayload(str(error)) from None


def usage_routes(usage: UsageReports) -> list[object]:
    """The route `/v1/usage`."""

    @get("/v1/usage")
    async def read(request: AnyRequest) -> Response[bytes]:
        return await usage.read(request)

    return [read]


def parse_date(name: str, value: str | None) -> date | None:
    """A day, as `2026-11-27`. Raises `InvalidPayload`."""
    if value is None:
        return None
    try:
        day = date.fromisoformat(value)
    except ValueError:
        day = None
    if day is None or day.isoformat() != value:
        raise InvalidPayload(f"{name}: must be a day, such as 2026-11-27")
    return day


def parse_by(value: str | None) -> UsageBy:
    """What rows are of; days if nothing says so. Raises `InvalidPayload`."""
    for by in get_args(UsageBy):
        if value == by:
            return by  # type: ignore[no-any-return]  # one of the words
    if value is None:
        return "day"
    raise InvalidPayload(f"by: must be one of {', '.join(get_args(UsageBy))}")
