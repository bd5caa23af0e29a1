"""`meshctl storage`: how full each stream is, how it grows, and how many tasks a day fit."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from contracts.codec import decode
from contracts.records.storage import SAMPLES_KEY, StorageSample, StorageSamples
from contracts.streams import ARCHIVE, STORAGE_BUCKET
from mesh.archive.lookup import directory_of
from mesh.broker import key_value
from mesh.broker.direct_get import read_next
from mesh.broker.levels import Level, read_all_levels
from mesh.broker.requests import Requests
from mesh.broker.scanning import ALL
from mesh.clock import now
from mesh.configuration.settings import Settings, load_variables
from mesh.telemetry import traces
from meshctl.diagnosis.capacity import TaskBytes, TasksADay, days_left, growth, kept, task_bytes, tasks_a_day
from meshctl.display import output
from meshctl.display.storage_table import Shown, capacity_lines, storage_table
from meshctl.flags import add_setting_flags, environment_with
from meshctl.supervision import discovery
from meshctl.supervision.broker_setup import connected

PACKS_MAX: Final = 16
"""Packs that are looked at, evenly spread: each has up to 512 tasks."""
_SETTINGS: Final = (
    "home",
    "nats_url",
    "nats_domain",
    "nats_port",
    "high_water_percent",
    "filling_percent",
    "pack_after_hours",
    "retention_days",
)
_DESCRIPTION = """\
Print how full each stream, bucket, the account and the disk of the embedded broker are, by how much each grows
in a day, and in how many days it is at the mark from which on new tasks are refused. Below that: how many tasks
a day fit for good, by what a task takes here and how long it is kept.

Growth is what has become of a day: bytes now, less those of a day ago, as a steward notes them each hour. On the
first day it is worked out from what there is, and marked with ~. Into a pipe each line is a JSON object.
"""


def add_commands(commands: Any) -> None:
    """Register `storage`."""
    parser = commands.add_parser(
        "storage",
        help="show how full streams are, and how long they last",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="JSON lines on a terminal, too")
    add_setting_flags(parser, _SETTINGS)
    parser.set_defaults(run=_run_storage)


def _run_storage(arguments: argparse.Namespace) -> int:
    settings = discovery.at_broker(load_variables(environment_with(arguments, os.environ)))
    traces.configure(replace(settings, log_level="error"), "meshctl")
    return asyncio.run(_storage(settings, as_json=arguments.json or not output.for_people()))


async def _storage(settings: Settings, *, as_json: bool) -> int:
    async with connected(settings) as connection:
        requests = connection.requests
        levels = await read_all_levels(requests)
        by_name = {level.name: level for level in levels}
        # A mesh of an earlier version has no such bucket until it is applied.
        samples = await read_samples(requests) if STORAGE_BUCKET.stream_name in by_name else []
        each = task_bytes(by_name, *await look_at_packs(requests, by_name))
    keeps = kept(settings.pack_after_hours, settings.retention_days, settings.high_water_percent)
    fits = tasks_a_day(by_name, each, keeps)
    lines = [_shown(level, samples, settings) for level in levels]
    if as_json:
        for line in lines:
            output.json_line(_as_json(line))
        output.json_line(_capacity_as_json(fits, each))
    else:
        output.show(storage_table(lines))
        for said in capacity_lines(fits, each, keeps, lines):
            output.show(said)
    return 0


async def read_samples(requests: Requests) -> Sequence[StorageSample]:
    """What the stewards have noted; nothing where none has. Raises `BrokerUnavailable`, `InvalidPayload`."""
    entry = await key_value.get(requests, STORAGE_BUCKET.name, SAMPLES_KEY)
    return decode(entry.value, StorageSamples).samples if entry is not None and entry.value else []


async def look_at_packs(requests: Requests, levels: dict[str, Level]) -> tuple[Level, int]:
    """What some messages of ARCHIVE take, and how many tasks they hold. Raises as `read_samples`."""
    archive = levels.get(ARCHIVE.name)
    none = Level(ARCHIVE.name, 0, 0)
    if archive is None or not archive.messages:
        return none, 0
    state = (await requests.api(f"STREAM.INFO.{ARCHIVE.name}"))["state"]
    first, last = int(state["first_seq"]), int(state["last_seq"])
    tasks = size_bytes = 0
    for after in sorted({first - 1 + (last - first) * at // PACKS_MAX for at in range(PACKS_MAX)}):
        message = await read_next(requests, ARCHIVE.name, ALL, after)
        if message is None:
            break
        size_bytes += len(message.payload)
        directory = directory_of(message)
        tasks += len(directory.tasks) if directory is not None else 0
    return none._replace(used_bytes=size_bytes), tasks


def _shown(level: Level, samples: Sequence[StorageSample], settings: Settings) -> Shown:
    state = "ok"
    if level.percent >= settings.filling_percent:
        state = "full" if level.percent >= settings.high_water_percent else "filling"
    grows = growth(level.name, level.used_bytes, samples, now())
    return Shown(level, state, grows, days_left(level, grows, settings.high_water_percent))


def _as_json(line: Shown) -> dict[str, Any]:
    level, grows = line.level, line.growth
    return {
        "event": "storage.level",
        "name": level.name,
        "state": line.state,
        "used_bytes": level.used_bytes,
        "limit_bytes": level.limit_bytes if level.limit_bytes > 0 else None,
        "percent": round(level.percent, 1),
        "messages": level.messages,
        "subjects": level.subjects,
        "growth_bytes_a_day": round(grows.bytes_a_day) if grows is not None else None,
        "growth_over_seconds": round(grows.over_seconds) if grows is not None else None,
        "days_left": round(line.days_left, 1) if line.days_left is not None else None,
    }


def _capacity_as_json(fits: TasksADay | None, each: TaskBytes) -> dict[str, Any]:
    return {
        "event": "storage.capacity",
        "tasks_a_day": round(fits.tasks) if fits is not None else None,
        "bound_by": fits.bound_by if fits is not None else None,
        "unpacked_task_bytes": round(each.journal + each.record),
        "unpacked_is_measured": each.is_measured,
        "packed_task_bytes": round(each.packed + each.place),
        "packed_is_measured": each.is_packed_measured,
    }
