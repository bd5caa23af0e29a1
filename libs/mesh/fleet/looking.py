"""One look at a mesh: its members, queues, providers and statistics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from contracts.records.providers import ProviderRecord
from contracts.records.status import LaneStatistics
from contracts.records.valves import Valve
from contracts.streams import LANES_BUCKET, PROVIDERS_BUCKET, VALVES_BUCKET
from mesh.broker.connection import Connection
from mesh.clock import now
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
    at = now()
    members, queues, providers, statistics, valves = await asyncio.gather(
        read_members(connection),
        read_queues(requests),
        read_records(requests, PROVIDERS_BUCKET, ProviderRecord),
        read_records(requests, LANES_BUCKET, LaneStatistics),
        read_records(requests, VALVES_BUCKET, Valve),
    )
    paused = [valve for valve in valves if holds(valve, at)]
    return Fleet(members, queues.queues, queues.full, providers, statistics, tuple(pools), now(), paused)
