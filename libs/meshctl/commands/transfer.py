"""`meshctl export`, `import`: tasks as lines of JSON."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from contracts import subjects
from contracts.codec import encode
from contracts.errors import InvalidName, TaskmeshError
from contracts.records.status import STATUSES
from mesh.archive.contents import Unreadable
from mesh.configuration.settings import load_variables
from mesh.telemetry import traces
from meshctl.display import output
from meshctl.flags import add_setting_flags, environment_with
from meshctl.supervision import discovery
from meshctl.supervision.acts import tell_act
from meshctl.supervision.broker_setup import connected
from meshctl.transfer.exporting import Wanted, exported
from meshctl.transfer.importing import BATCH_BYTES_MAX, BATCH_TASKS_MAX, Imported, import_tasks, read_line

LINE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Of a task: its journal has 64 MiB of milestones, and what ends it."""
_SETTINGS = ("home", "nats_url", "nats_domain", "nats_port")


def add_commands(commands: Any) -> None:
    """Register `export` and `import`."""
    text = (
        "Print tasks as lines of JSON, each with its record and the milestones of its journal, whether they are packed "
        "or not. What deltas there are is left out, and so is what lies in the object store."
    )
    export = commands.add_parser("export", help="print tasks as lines of JSON", description=text)
    export.add_argument("task", nargs="*", help="ids of tasks; without any all that the options take")
    export.add_argument("--tenant", metavar="NAME", help="tasks of one tenant")
    export.add_argument("--status", action="append", choices=STATUSES, help="of one status; may be given again")
    export.add_argument("--since", metavar="TIME", type=_time, help="changed then or later, as 2026-01-31T09:30:00Z")
    export.add_argument("--until", metavar="TIME", type=_time, help="changed before")
    add_setting_flags(export, _SETTINGS)
    export.set_defaults(run=_run_export)

    text = (
        "Take tasks that `meshctl export` has printed into this mesh, as packed ones. Only tasks that have ended are "
        "taken. One that is there already stays as it is, so that an import that broke off can be run again."
    )
    taking = commands.add_parser("import", help="take tasks from lines of JSON", description=text)
    taking.add_argument("file", help="the file; - for standard input")
    add_setting_flags(taking, _SETTINGS)
    taking.set_defaults(run=_run_import)


def _run_export(arguments: argparse.Namespace) -> int:
    settings = discovery.at_broker(load_variables(environment_with(arguments, os.environ)))
    traces.configure(replace(settings, log_level="error"), "meshctl")
    wanted = Wanted(
        tenant=arguments.tenant,
        statuses=frozenset(arguments.status or ()),
        tasks=frozenset(arguments.task),
        since=arguments.since,
        until=arguments.until,
    )
    try:
        if wanted.tenant is not None:
            subjects.check_tenant(wanted.tenant)
    except InvalidName as error:
        raise TaskmeshError(f"--tenant: {error}") from None

    async def export() -> int:
        status = 0
        async with connected(settings) as connection, aclosing(exported(connection.requests, wanted)) as tasks:
            async for task in tasks:
                if isinstance(task, Unreadable):
                    print(f"meshctl: {task.sequence}: {output.printable(task.error)}", file=sys.stderr)
                    status = 1
                else:
                    sys.stdout.buffer.write(encode(task) + b"\n")
        return status

    return asyncio.run(export())


def _run_import(arguments: argparse.Namespace) -> int:
    settings = discovery.at_broker(load_variables(environment_with(arguments, os.environ)))
    traces.configure(replace(settings, log_level="error"), "meshctl")

    async def take(lines: Iterable[bytes]) -> Imported:
        done = Imported()
        async with connected(settings) as connection:
            batch, size = [], 0
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    batch.append(read_line(line))
                except TaskmeshError as error:
                    done.refused.append((number, str(error)))
                    continue
                size += len(line)
                if len(batch) == BATCH_TASKS_MAX or size > BATCH_BYTES_MAX:
                    await import_tasks(connection.requests, batch, done)
                    batch, size = [], 0
            await import_tasks(connection.requests, batch, done)
            if done.taken:
                await tell_act(connection, "import")
        return done

    try:
        if arguments.file == "-":
            done = asyncio.run(take(_lines(sys.stdin.buffer)))
        else:
            with Path(arguments.file).open("rb") as file:
                done = asyncio.run(take(_lines(file)))
    except OSError as error:
        raise TaskmeshError(f"{arguments.file}: {error.strerror}") from None
    for number, reason in done.refused:
        print(f"meshctl: line {number}: {output.printable(reason)}", file=sys.stderr)
    output.json_line({"taken": done.taken, "there": done.there, "refused": len(done.refused)})
    return 1 if done.refused else 0


def _lines(file: BinaryIO) -> Iterable[bytes]:
    while line := file.readline(LINE_BYTES_MAX):
        yield line


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a time: {text!r}") from None
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} says no offset, as in 2026-01-31T09:30:00Z")
    return time
