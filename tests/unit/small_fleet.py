"""A fleet of one process of each service that is well, for tests that make one thing of it unwell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from contracts.records.status import LaneStatistics, WorkerRecord
from contracts.subjects import PRIORITIES
from mesh.configuration.settings import SERVICES
from mesh.fleet.findings import Fleet
from mesh.fleet.members import Member
from mesh.fleet.queues import Queue

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def member(service: str, number: int = 1, *, answers: bool = True, **fields: Any) -> Member:
    """A process with a record; `fields` are of that."""
    worker = f"{service}-{number}@host"
    serves: dict[str, dict[str, Any]] = {
        "inference_worker": {"pools": ("default",)},
        "tool_runner": {"tools": ("add", "files_read")},
    }
    record = WorkerRecord(
        worker=worker, service=service, version="0.2.0", pid=number, host="host", running=0,
        started_at=AT - timedelta(hours=1), time=AT, build="b1", configuration="c1", clock_ahead_seconds=0.01,
    )  # fmt: skip
    record = msgspec.structs.replace(record, **{**serves.get(service, {}), **fields})
    return Member(worker, service, record.version, str(number), record, answers)


def lane(priority: str, *, age_seconds: float = 3.0, **fields: Any) -> LaneStatistics:
    """The statistics of a lane of the pool `default`."""
    values = {
        "pool": "default",
        "priority": priority,
        "time": AT - timedelta(seconds=age_seconds),
        "depth": 0,
        "running": 0,
    }
    return LaneStatistics(**{**values, **fields})


MEMBERS = [member(service) for service in SERVICES]
WELL = Fleet(
    members=MEMBERS,
    queues=[Queue("default", priority) for priority in PRIORITIES] + [Queue("add", "")],
    full=[],
    providers=[],
    statistics=[lane(priority) for priority in PRIORITIES],
    pools=("default",),
    at=AT,
)
