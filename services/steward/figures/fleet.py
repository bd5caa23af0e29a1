"""The processes of the mesh: which answer, whether they are alike, and what is not well with them and their models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from contracts.records.providers import ProviderRecord
from contracts.streams import PROVIDERS_BUCKET
from mesh.broker.connection import Connection
from mesh.clock import now
from mesh.configuration.settings import SERVICES
from mesh.fleet.members import Member, read_members
from mesh.fleet.records import read_records
from mesh.telemetry import figures, metrics


class FleetFigures:
    """Tells of processes and models, round by round. `pools` and `breakers`: those that are configured."""

    def __init__(self, connection: Connection, pools: Iterable[str], breakers: Iterable[str]) -> None:
        self._connection = connection
        self._pools = tuple(pools)
        self._breakers = tuple(breakers)
        self._began_at: datetime | None = None
        self._seen: set[str] = set()

    async def tell(self) -> None:
        """Tell how they are. Takes 2 s if one of them does not answer. Raises `BrokerUnavailable`."""
        members = await read_members(self._connection)
        providers = await read_records(self._connection.requests, PROVIDERS_BUCKET, ProviderRecord)
        closed = dict.fromkeys(self._breakers, 0.0)
        seen = {record.provider: float(record.state != "closed") for record in providers}
        figures.breakers_open.tell({(name,): value for name, value in (closed | seen).items()})
        self._tell_processes(members)
        self._count_starts(members)

    def _tell_processes(self, members: Sequence[Member]) -> None:
        alive = [member for member in members if member.answers]
        figures.workers_alive.tell(_by_service(alive))
        figures.workers_silent.tell(_by_service(member for member in members if not member.answers))
        records = [member.record for member in alive if member.record is not None]
        pools = Counter(pool for record in records for pool in record.pools)
        figures.pool_workers.tell({(pool,): pools[pool] for pool in {*self._pools, *pools}})
        figures.tool_runners.tell(_counted(tool for record in records for tool in record.tools))
        away = Counter({server: 0 for record in records for server in record.mcp_servers})
        away.update(server for record in records for server, reason in record.mcp_servers.items() if reason is not None)
        figures.mcp_away.tell({(server,): count for server, count in away.items()})
        failing = [(record.service, check.name) for record in records for check in record.checks if not check.ok]
        figures.checks_failing.tell({(service, name): failing.count((service, name)) for service, name in failing})
        # One that drains is about to go: a deploy is not two builds for long.
        staying = [record for record in records if not record.draining]
        figures.builds.tell({(): len({record.build for record in staying if record.build})})
        figures.configurations.tell({(): len({record.configuration for record in staying if record.configuration})})

    def _count_starts(self, members: Sequence[Member]) -> None:
        began_at = self._began_at
        if began_at is None:
            self._began_at = now()
            for service in SERVICES:
                metrics.processes_started(service, 0)
        started = [
            member.service
            for member in members
            if began_at is not None
            and member.record is not None
            and member.worker not in self._seen
            and member.record.started_at >= began_at
        ]
        # Only those that are there are kept: names of processes that are gone do not come again.
        self._seen = {member.worker for member in members}
        for service, count in Counter(started).items():
            metrics.processes_started(service, count)


def _by_service(members: Iterable[Member]) -> dict[tuple[str, ...], float]:
    """How many of each service, also where there is none."""
    counts = Counter(member.service for member in members)
    return {(service,): counts[service] for service in {*SERVICES, *counts}}


def _counted(names: Iterable[str]) -> dict[tuple[str, ...], float]:
    return {(name,): count for name, count in Counter(names).items()}
