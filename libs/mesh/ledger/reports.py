"""Counters put together for who reads them: by day, provider, model or pool. Pure, but for `report`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import Final, Literal

import msgspec

from contracts.api.usage import UsageBy, UsageReport, UsageRow
from contracts.records.usage import Counter, Place, What, days_of, month_of
from mesh.broker.requests import Requests
from mesh.ledger import counters

Grouping = UsageBy | Literal["tenant"]
DAYS_MAX: Final = 366
MONTHS_MAX: Final = 120

_NAMES: Final[Mapping[Grouping, Callable[[Place], str]]] = {
    "day": lambda place: place.period,
    "month": lambda place: place.period,
    "provider": lambda place: place.provider,
    "model": lambda place: f"{place.provider}/{place.model}",
    "pool": lambda place: place.pool,
    "tenant": lambda place: place.tenant,
}


def periods(by: Grouping, since: date, until: date) -> list[str]:
    """The counters' periods that a report is of: days, or whole months. Raises `ValueError` that says what is wrong."""
    if since > until:
        raise ValueError(f"since: {since} is after until, {until}")
    if by == "month" and (until - since).days > MONTHS_MAX * 31:
        raise ValueError(f"since: at most {MONTHS_MAX} months before until")
    if by != "month" and (until - since).days >= DAYS_MAX:
        raise ValueError(f"since: at most {DAYS_MAX} days with until; by months it may be further back")
    days = days_of(since, until)
    return list(dict.fromkeys(map(month_of, days))) if by == "month" else days


async def report(requests: Requests, tenant: str, by: UsageBy, since: date, until: date) -> UsageReport:
    """What a tenant has used. Raises `BrokerUnavailable`, and `ValueError` as `periods` does."""
    of = periods(by, since, until)
    values = await counters.read(requests, tenant, of)
    return UsageReport(tenant=tenant, since=of[0], until=of[-1], by=by, rows=rows(values, by), total=total(values))


def rows(values: Mapping[Counter, int], by: Grouping) -> list[UsageRow]:
    """The sums of counters, by the name of what they are of, in its order."""
    named: dict[str, dict[What, int]] = {}
    name_of = _NAMES[by]
    for (place, what), value in values.items():
        of_name = named.setdefault(name_of(place), {})
        of_name[what] = of_name.get(what, 0) + value
    return [msgspec.structs.replace(_row(amounts), name=name) for name, amounts in sorted(named.items())]


def total(values: Mapping[Counter, int]) -> UsageRow:
    """The sum of all."""
    amounts: dict[What, int] = {}
    for counter, value in values.items():
        amounts[counter.what] = amounts.get(counter.what, 0) + value
    return _row(amounts)


def first_of_month(today: date) -> date:
    """Where a report begins that says nothing else."""
    return today - timedelta(days=today.day - 1)


def _row(amounts: Mapping[What, int]) -> UsageRow:
    # A counter below 0 was corrected twice: it is for `meshctl usage --verify` to tell.
    of: dict[What, int] = {what: max(0, value) for what, value in amounts.items()}
    tokens, unpriced = of.get("input", 0) + of.get("output", 0), of.get("unpriced", 0)
    is_priced = "cost" in of or tokens > unpriced
    return UsageRow(
        input_tokens=of.get("input", 0),
        output_tokens=of.get("output", 0),
        cached_tokens=of.get("cached", 0),
        cache_creation_tokens=of.get("cache_creation", 0),
        reasoning_tokens=of.get("reasoning", 0),
        turns=of.get("turns", 0),
        cost_micros=of.get("cost", 0) if is_priced else msgspec.UNSET,
        unpriced_tokens=unpriced,
        untold_calls=of.get("untold", 0),
    )
