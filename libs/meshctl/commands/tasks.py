"""`meshctl submit`, `watch`, `get`, `cancel`, `list`: a client's view of tasks."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any, Final, get_args

import msgspec

from contracts import subjects
from contracts.api import sse
from contracts.codec import decode
from contracts.errors import InvalidPayload
from contracts.journal.events import TERMINAL_TYPES
from contracts.records.status import ENDED, STATUSES, TaskRecord
from contracts.subjects import PRIORITIES
from contracts.tasks import BODY_BYTES_MAX, ApprovalMode
from mesh.configuration.settings import load_variables
from meshctl.client import Client, Received
from meshctl.commands import mass_cancel
from meshctl.credentials import given_key
from meshctl.display import output
from meshctl.display.rendering import MARK, StreamText, accepted_text, record_text
from meshctl.display.screen import screen
from meshctl.display.tables import counts_table, tasks_table
from meshctl.errors import MeshctlError
from meshctl.flags import environment_with
from meshctl.supervision import discovery
from meshctl.variables import EDGE_URL_VARIABLE, INGRESS_URL_VARIABLE

APPEARS_SECONDS: Final = 10.0
"""An accepted task may be unknown to the edge until its first event is written."""
LIST_PAGE: Final = 100
APPROVAL_MODES: Final = get_args(ApprovalMode)
_WAITING_TYPES = frozenset({"input.requested", "approval.requested", "task.dead_lettered"})


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register the commands."""
    _add_submit(commands, common)
    text = "Print a task's events until it has ended. Survives restarts of the edge. Ends with 0 if the task completed."
    watch = commands.add_parser("watch", parents=[common], help="follow a task's events", description=text)
    watch.add_argument("task", help="id of the task")
    watch.add_argument("--after", metavar="N", type=_sequence, default=0, help="only events behind sequence N [0]")
    watch.add_argument("--raw", action="store_true", help="print the frames (id, event, data) instead of the events")
    watch.set_defaults(run=_run_watch)

    get = commands.add_parser(
        "get", parents=[common], help="show a task", description="Print a task's status record, its output included."
    )
    get.add_argument("task", help="id of the task")
    get.set_defaults(run=_run_get)

    text = (
        "Stop a task, for good. What it has put out so far stays. A task that is over stays as it is. With --all: many,"
        " by a filter; it is shown first which they are, and --yes stops them."
    )
    cancel = commands.add_parser("cancel", parents=[common], help="stop a task", description=text)
    cancel.add_argument("task", nargs="?", help="id of the task")
    mass_cancel.add_arguments(cancel)
    cancel.set_defaults(run=_run_cancel)

    text = (
        "Print tasks, the most recently changed first, without their outputs. With --counts: how many there are of each"
        " status."
    )
    listing = commands.add_parser("list", parents=[common], help="list tasks", description=text)
    listing.add_argument("--status", choices=STATUSES, metavar="STATUS", help=f"only: {', '.join(STATUSES)}")
    listing.add_argument(
        "--metadata",
        metavar="K=V",
        type=_pair,
        action="append",
        default=[],
        help="only tasks that have this value in their metadata; may be repeated",
    )
    listing.add_argument("--since", metavar="TIME", help="only those that changed last then or later")
    listing.add_argument("--until", metavar="TIME", help="only those that changed last before then")
    listing.add_argument("--counts", action="store_true", help="count all tasks instead, by status")
    listing.add_argument("--limit", metavar="N", type=_positive, default=20, help="at most so many [20]")
    listing.add_argument("--all", action="store_true", help="all of them, without a limit")
    listing.set_defaults(run=_run_list)


def _add_submit(commands: Any, common: argparse.ArgumentParser) -> None:
    text = (
        "Submit a task and print its id. With --wait or --watch: stay until it has ended, and end with 0 only if it"
        " completed."
    )
    submit = commands.add_parser("submit", parents=[common], help="submit a task", description=text)
    submit.add_argument("text", help="what to do; - reads it from standard input")
    submit.add_argument("--pool", help="the pool of workers [default]")
    submit.add_argument("--priority", choices=PRIORITIES, help="high, normal or low [normal]")
    submit.add_argument("--model", help="the model to use")
    submit.add_argument("--instructions", metavar="TEXT", help="what the model is told before the text")
    submit.add_argument("--max-output-tokens", metavar="N", type=_positive, help="the most tokens to generate")
    submit.add_argument("--deadline", metavar="SECONDS", type=float, help="expire after so many seconds")
    submit.add_argument(
        "--tool", metavar="NAME", action="append", help="a tool that the model may call; may be repeated"
    )
    submit.add_argument(
        "--unknown-tools",
        choices=("refuse", "allow"),
        help="what follows on a tool that nobody has ever declared: refuse the task, or take it all the same [refuse]",
    )
    submit.add_argument(
        "--approval",
        metavar="MODE",
        choices=APPROVAL_MODES,
        help="calls that a person has to agree to: never, destructive or always, or more if a tool says so",
    )
    submit.add_argument("--max-turns", metavar="N", type=_positive, help="end, incomplete, after so many turns")
    submit.add_argument(
        "--budget-tokens", metavar="N", type=_positive, help="end, incomplete, after reading and writing so many tokens"
    )
    submit.add_argument(
        "--budget-cost",
        metavar="AMOUNT",
        type=_amount,
        help="end, incomplete, after it has cost so much, in the currency of the prices in mesh.toml",
    )
    submit.add_argument("--continues", metavar="TASK", help="go on with the conversation of a task that has ended")
    submit.add_argument("--key", help="idempotency key: the same key and body are the same task")
    submit.add_argument(
        "--metadata", metavar="K=V", type=_pair, action="append", default=[], help="kept with the task; may be repeated"
    )
    until = submit.add_mutually_exclusive_group()
    until.add_argument("--wait", action="store_true", help="wait for the end, and print the task's record")
    until.add_argument("--watch", action="store_true", help="follow its events")
    submit.set_defaults(run=_run_submit)


def add_address_options(parser: argparse.ArgumentParser) -> None:
    """Where the mesh is, and as whom: for every command that asks it something."""
    options = parser.add_argument_group("where")
    # No defaults: these may stand before or behind the command, and a default there would undo what was given here.
    nothing = argparse.SUPPRESS
    found = "that of the mesh on MESH_HOME"
    options.add_argument("--url", default=nothing, help=f"the ingress [{INGRESS_URL_VARIABLE}, else {found}]")
    options.add_argument(
        "--edge-url", metavar="URL", default=nothing, help=f"the edge [{EDGE_URL_VARIABLE}, else {found}]"
    )
    options.add_argument("--tenant", default=nothing, help="the tenant [default]")


def client_of(arguments: argparse.Namespace) -> Client:
    """A client of the mesh that the command line or the environment names, else of the one on MESH_HOME."""
    settings = load_variables(environment_with(arguments, os.environ))
    urls = discovery.at_services(
        settings,
        getattr(arguments, "url", None) or os.environ.get(INGRESS_URL_VARIABLE) or None,
        getattr(arguments, "edge_url", None) or os.environ.get(EDGE_URL_VARIABLE) or None,
    )
    tenant = getattr(arguments, "tenant", None)
    return Client(
        urls.ingress,
        urls.edge,
        subjects.check_tenant(tenant) if tenant is not None else None,
        key=given_key(os.environ) or discovery.operator_key(settings, urls),
        certificate=urls.certificate,
    )


def _run_submit(arguments: argparse.Namespace) -> int:
    return _run(_submit(arguments))


def _run_watch(arguments: argparse.Namespace) -> int:
    return _run(_watch_command(arguments))


def _run_get(arguments: argparse.Namespace) -> int:
    return _run(_get(arguments))


def _run_cancel(arguments: argparse.Namespace) -> int:
    return _run(_cancel(arguments))


def _run_list(arguments: argparse.Namespace) -> int:
    return _run(_list(arguments))


def _run(command: Coroutine[Any, Any, int]) -> int:
    return asyncio.run(command)


async def _submit(arguments: argparse.Namespace) -> int:
    wanted = {
        "pool": arguments.pool,
        "priority": arguments.priority,
        "model": arguments.model,
        "instructions": arguments.instructions,
        "max_output_tokens": arguments.max_output_tokens,
        "deadline_seconds": arguments.deadline,
        "tools": arguments.tool,
        "unknown_tools": arguments.unknown_tools,
        "approval": arguments.approval,
        "max_turns": arguments.max_turns,
        "budget_tokens": arguments.budget_tokens,
        "budget_cost": arguments.budget_cost,
        "continues": arguments.continues,
        "metadata": dict(arguments.metadata) or None,
    }
    body = {"input": text_of(arguments.text)} | {name: value for name, value in wanted.items() if value is not None}
    async with client_of(arguments) as client:
        answer = await client.submit(body, arguments.key)
        task = answer.value.id
        if arguments.watch:
            return await _watch(client, task, 0, appears_within_seconds=APPEARS_SECONDS)
        if arguments.wait:
            return await _wait(client, task)
        if output.for_people():
            print(accepted_text(answer.value))
            print(f"{MARK}follow it: meshctl watch {task}")
        else:
            output.raw_line(answer.raw)
    return 0


async def _wait(client: Client, task: str) -> int:
    """Wait for the end, silently but for what keeps it from ending, and print the record."""
    async with aclosing(client.follow(task, appears_within_seconds=APPEARS_SECONDS)) as received:
        async for event in received:
            if event.type in _WAITING_TYPES:
                print(f"meshctl: task {task} waits: {event.type}", file=sys.stderr, flush=True)
    answer = await client.get(task)
    if output.for_people():
        print(record_text(answer.value))
    else:
        output.raw_line(answer.raw)
    return 0 if answer.value.status == "completed" else 1


async def _watch_command(arguments: argparse.Namespace) -> int:
    async with client_of(arguments) as client:
        return await _watch(client, arguments.task, arguments.after, raw=arguments.raw)


async def _watch(
    client: Client, task: str, after: int, *, raw: bool = False, appears_within_seconds: float = 0.0
) -> int:
    in_colour = output.in_colour()
    text = StreamText(in_colour=in_colour) if output.for_people() else None
    end = "task.completed"  # A cursor at the end of a task has nothing more to say.
    async with (
        screen(is_live=in_colour and not raw) as shown,
        aclosing(client.follow(task, after, appears_within_seconds=appears_within_seconds)) as stream,
    ):
        async for received in stream:
            if raw:
                frame = _frame(received)
                print(frame if text is None else output.printable(frame), end="", flush=True)
            elif text is not None:
                shown.add(received, text.add(received))
            else:
                output.raw_line(received.payload)
            if received.type in TERMINAL_TYPES:
                end = received.type
    return 0 if end == "task.completed" else 1


def _frame(received: Received) -> str:
    sequence = None if received.type == "stream.gap" else received.cursor
    return sse.frame(sequence, received.type, received.payload).decode("utf-8", "replace")


async def _get(arguments: argparse.Namespace) -> int:
    async with client_of(arguments) as client:
        answer = await client.get(arguments.task)
    if output.for_people():
        print(record_text(answer.value))
    else:
        output.raw_line(answer.raw)
    return 0


async def _cancel(arguments: argparse.Namespace) -> int:
    mass_cancel.check_arguments(arguments)
    async with client_of(arguments) as client:
        if arguments.all:
            return await mass_cancel.cancel_many(client, arguments)
        answer = await client.cancel(arguments.task)
    if output.for_people():
        ended = answer.value.status in ENDED
        print(f"{answer.value.id} is {answer.value.status} already" if ended else f"{answer.value.id} will be stopped")
    else:
        output.raw_line(answer.raw)
    return 0


async def _list(arguments: argparse.Namespace) -> int:
    if arguments.counts:
        return await _counts(arguments)
    wanted = [(name, getattr(arguments, name)) for name in ("status", "since", "until")]
    query = [(name, value) for name, value in wanted if value is not None]
    query += [(f"metadata.{key}", value) for key, value in arguments.metadata]
    left: int | None = None if arguments.all else arguments.limit
    people = output.for_people()
    cursor: str | None = None
    shown = 0
    async with client_of(arguments) as client:
        while left is None or left > 0:
            paging = [("limit", str(min(left or LIST_PAGE, LIST_PAGE)))]
            page = await client.list([*query, *paging, *([("cursor", cursor)] if cursor is not None else [])])
            tasks = page.tasks[:left]
            if people:
                records = [decode(bytes(task), TaskRecord) for task in tasks]
                # The head stands once, above the first page.
                output.show(tasks_table(records, with_head=shown == 0))
            else:
                for task in tasks:
                    output.raw_line(msgspec.json.format(bytes(task), indent=-1))
            shown += len(tasks)
            left = None if left is None else left - len(tasks)
            cursor = page.cursor
            if cursor is None:
                break
    return 0


async def _counts(arguments: argparse.Namespace) -> int:
    async with client_of(arguments) as client:
        answer = await client.counts()
    if output.for_people():
        output.show(counts_table(answer.value))
    else:
        output.raw_line(answer.raw)
    return 0


def text_of(argument: str) -> str:
    """What a command is to send: its argument, or for `-` standard input. Raises `TaskmeshError`."""
    return _standard_input() if argument == "-" else argument


def _standard_input() -> str:
    payload = sys.stdin.buffer.read(BODY_BYTES_MAX + 1)
    if len(payload) > BODY_BYTES_MAX:
        raise MeshctlError(f"the text may have {BODY_BYTES_MAX} bytes", code="payload-too-large")
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidPayload(f"standard input is not UTF-8: {error}") from None


def _sequence(raw: str) -> int:
    if not (raw.isascii() and raw.isdigit()):
        raise argparse.ArgumentTypeError("must be a sequence number, 0 or more")
    return int(raw)


def _positive(raw: str) -> int:
    if not (raw.isascii() and raw.isdigit()) or int(raw) == 0:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return int(raw)


def _amount(raw: str) -> float:
    try:
        amount = float(raw)
    except ValueError:
        amount = 0.0
    if not (math.isfinite(amount) and amount > 0):
        raise argparse.ArgumentTypeError("must be an amount above 0")
    return amount


def _pair(raw: str) -> tuple[str, str]:
    key, equals, value = raw.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError("must be <key>=<value>")
    return key, value
