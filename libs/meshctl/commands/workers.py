"""`meshctl workers`, `lanes`, `providers`: what a mesh writes about its processes, its queues and its models."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from rich.table import Table

from contracts.declarations import BucketDeclaration
from contracts.errors import InvalidPayload
from contracts.records.providers import ProviderRecord
from contracts.records.status import LaneStatistics, WorkerRecord
from contracts.streams import LANES_BUCKET, PROVIDERS_BUCKET, WORKERS_BUCKET
from contracts.subjects import PRIORITIES
from mesh.broker.requests import Requests
from mesh.clock import now
from mesh.configuration.settings import load_variables
from mesh.fleet.records import read_records
from mesh.telemetry import traces
from meshctl.display import output
from meshctl.display.tables import lanes_table, providers_table, workers_table
from meshctl.flags import add_setting_flags, environment_with
from meshctl.supervision import discovery
from meshctl.supervision.broker_setup import connected

_SETTINGS = ("home", "nats_url", "nats_domain", "nats_port")

Record = TypeVar("Record", WorkerRecord, LaneStatistics, ProviderRecord)


def add_commands(commands: Any) -> None:
    """Register `workers`, `lanes` and `providers`."""
    text = (
        "Print the processes of all services that live, by their heartbeats: what each serves, its build, and what is "
        "not well with it. One that was killed is listed for 90 s more."
    )
    workers = commands.add_parser("workers", help="list the processes of all services", description=text)
    add_setting_flags(workers, _SETTINGS)
    workers.set_defaults(run=_run_workers)

    text = "Print how each lane stands: waiting and running turns, turns a second, and how long tasks waited."
    lanes = commands.add_parser("lanes", help="show the queues", description=text)
    add_setting_flags(lanes, _SETTINGS)
    lanes.set_defaults(run=_run_lanes)

    text = (
        "Print the breaker of each model provider: whether it is called (closed), not called (open), or tried by one "
        "worker (half_open), since when, why, and when it is tried next. One that never opened is not listed."
    )
    providers = commands.add_parser("providers", help="show which providers are down", description=text)
    add_setting_flags(providers, _SETTINGS)
    providers.set_defaults(run=_run_providers)


def _run_workers(arguments: argparse.Namespace) -> int:
    return _run(arguments, WORKERS_BUCKET, WorkerRecord, lambda worker: worker.worker, workers_table)


def _run_lanes(arguments: argparse.Namespace) -> int:
    def place(lane: LaneStatistics) -> tuple[str, int]:
        return lane.pool, PRIORITIES.index(lane.priority)

    return _run(arguments, LANES_BUCKET, LaneStatistics, place, lanes_table)


def _run_providers(arguments: argparse.Namespace) -> int:
    return _run(arguments, PROVIDERS_BUCKET, ProviderRecord, lambda provider: provider.provider, providers_table)


def _run(
    arguments: argparse.Namespace,
    bucket: BucketDeclaration,
    kind: type[Record],
    place: Callable[[Record], Any],
    table: Callable[[Sequence[Record], datetime], Table],
) -> int:
    settings = discovery.at_broker(load_variables(environment_with(arguments, os.environ)))
    traces.configure(replace(settings, log_level="error"), "meshctl")

    async def read() -> list[Record]:
        async with connected(settings) as connection:
            return await read_bucket(connection.requests, bucket, kind)

    records = sorted(asyncio.run(read()), key=place)
    if output.for_people():
        output.show(table(records, now()))
    else:
        for record in records:
            output.json_line(record)
    return 0


async def read_bucket(requests: Requests, bucket: BucketDeclaration, kind: type[Record]) -> list[Record]:
    """Every record of a bucket, by direct get. One that can't be read is said on standard error."""

    def unreadable(subject: str, error: InvalidPayload) -> None:
        print(f"meshctl: {output.printable(subject)}: {error}", file=sys.stderr)

    return await read_records(requests, bucket, kind, unreadable)
