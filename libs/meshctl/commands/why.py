"""`meshctl why`: what a task waits for."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from contracts.records.status import TaskRecord
from meshctl.commands.tasks import client_of
from meshctl.display import output

_DESCRIPTION = """\
Say in one sentence what a task waits for: a place in its queue and how many stand before it, somebody who is
not there, a person and until when, a timer, a provider that is down, a queue that is paused, or a sub-task; or
that it is being carried out, by whom and since when.

Into a pipe: a JSON object with task, status, and waiting as the task's record has it, null of one that has ended.
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register `why`."""
    why = commands.add_parser(
        "why",
        parents=[common],
        help="say what a task waits for",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    why.add_argument("task", help="id of the task")
    why.set_defaults(run=_run_why)


def _run_why(arguments: argparse.Namespace) -> int:
    return asyncio.run(_why(arguments))


async def _why(arguments: argparse.Namespace) -> int:
    async with client_of(arguments) as client:
        record = (await client.get(arguments.task)).value
    if output.for_people():
        print(output.printable(sentence(record)))
    else:
        output.json_line({"task": record.id, "status": record.status, "waiting": record.waiting})
    return 0


def sentence(record: TaskRecord) -> str:
    """What a task waits for, for people."""
    if record.waiting is not None:
        return record.waiting.detail
    return f"Nothing: it is {record.status} since {record.updated_at:%Y-%m-%d %H:%M:%S} UTC."
