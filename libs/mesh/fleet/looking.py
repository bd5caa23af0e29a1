"""One look at a mesh: its members, queues, providers and statistics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from contracts.records.providers import ProviderRecord
from contracts.records.status import LaneStatistics
from contracts.records.valves import Valve
from contracts.streams import LANES_BUCKET, PROVIDERS_BUCKET, VALVES_BUCKET
from mesh.broker.connection import Connection
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.errors import BrokerUnavailable
from mesh.fleet.findings import Fleet
from mesh.fleet.members import read_members
from mesh.fleet.queues import read_queues
from mesh.fleet.records import read_records
from mesh.valves.watched import holds


async def read_fleet(connection: Connection, pools: Sequence[str]) -> Fleet:
    """What there is to see of a mesh with these pools. Takes 2 s if a process does not answer.

    Raises `BrokerUnavailable`, `BrokerError`.
    """
    requests = connection.requests
    members, queues, providers, statistics, valves = await asyncio.gather(
        read_members(connection),
        read_queues(requests),
        read_records(requests, PROVIDERS_BUCKET, ProviderRecord),
        read_records(requests, LANES_BUCKET, LaneStatistics),
        _read_valves(requests),
    )
    at = now()
    paused = [valve for valve in valves if holds(valve, at)]
    return Fleet(members, queues.queues, queues.full, providers, statistics, tuple(pools), at, paused)


async def _read_valves(requests: Requests) -> list[Valve]:
    """What is paused; nothing where there is no such bucket yet, before a steward of this version has run."""
    try:
        return await read_records(requests, VALVES_BUCKET, Valve)
    except BrokerUnavailable:
        return []  # Of a broker that is away the others tell.
