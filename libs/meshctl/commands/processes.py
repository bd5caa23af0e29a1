"""`meshctl drain`, `meshctl restart`: taking processes of a mesh away, and replacing them."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from nats.micro.request import ERROR_HEADER

from contracts import subjects
from contracts.codec import decode, encode
from contracts.errors import TaskmeshError
from contracts.records.orders import DrainAnswer, DrainOrder
from contracts.records.status import WorkerRecord
from contracts.streams import WORKERS_BUCKET
from mesh.broker.connection import Connection
from mesh.configuration.settings import load_settings
from mesh.telemetry import traces
from meshctl.commands.workers import read_bucket
from meshctl.display import output
from meshctl.errors import MeshctlError
from meshctl.flags import add_setting_flags, environment_with
from meshctl.supervision import discovery
from meshctl.supervision.acts import tell_act
from meshctl.supervision.broker_setup import connected
from meshctl.supervision.control import Order, ordered
from meshctl.supervision.home import Home

ANSWER_SECONDS_MAX: Final = 3.0
"""How long a process may take to answer an order: one that is frozen gives none."""
LOOK_SECONDS: Final = 0.5
"""How often it is looked whether a process has left."""
_SETTINGS = ("home", "nats_url", "nats_port")
_DRAIN = """\
Tell processes, by their names in `meshctl workers`, to take no more work, to let what they have in hand end, and to
leave. They stay away: meshctl up does not fill their places again until it is started anew, and under systemd the exit
status 3 is in RestartPreventExitStatus=. What has not ended after MESH_DRAIN_SECONDS of the process is handed over to
others; with --wait it is waited for.

Ends when all have left. Ctrl-C does not take an order back.
"""
_RESTART = """\
Replace every process of the mesh that meshctl up runs on MESH_HOME: one after another a successor is started, and when
it serves, its predecessor ends as after SIGTERM. No connection is refused, clients that follow a stream go on with the
successor, and running steps have MESH_DRAIN_SECONDS. Places that were drained stay empty. A successor that does not
serve ends the restart: its predecessor stays.

The broker stays unless --broker says otherwise, and so does meshctl up itself.
"""


def add_commands(commands: Any) -> None:
    """Register `drain` and `restart`."""
    parser = commands.add_parser(
        "drain",
        help="have processes leave, for good, when their work is done",
        description=_DRAIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workers", nargs="*", metavar="WORKER", help="name of a process, as in `meshctl workers`")
    parser.add_argument("--all-of", metavar="HOST", help="all workers and tool runners of this machine")
    parser.add_argument("--wait", action="store_true", help="wait for running steps however long they take")
    add_setting_flags(parser, _SETTINGS)
    parser.set_defaults(run=_run_drain)

    parser = commands.add_parser(
        "restart",
        help="replace the processes of meshctl up without a gap",
        description=_RESTART,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rolling", action="store_true", required=True, help="one process after another")
    parser.add_argument("--broker", action="store_true", help="the embedded broker, too; it is away for a moment")
    add_setting_flags(parser, ("home",))
    parser.set_defaults(run=_run_restart)


def _run_drain(arguments: argparse.Namespace) -> int:
    if not arguments.workers and arguments.all_of is None:
        raise MeshctlError("name processes, as in `meshctl workers`, or a machine with --all-of")
    settings = discovery.at_broker(load_settings(environment_with(arguments, os.environ)))
    traces.configure(replace(settings, log_level="error"), "meshctl")

    async def drain() -> int:
        async with connected(settings) as connection:
            records = await read_bucket(connection.requests, WORKERS_BUCKET, WorkerRecord)
            chosen = _chosen(records, arguments.workers, arguments.all_of)
            # Before they leave: the steward that writes it down may be among them.
            await tell_act(connection, "drain")
            return await _drain(connection, chosen, DrainOrder(wait=arguments.wait))

    return asyncio.run(drain())


def _chosen(records: Sequence[WorkerRecord], names: Sequence[str], host: str | None) -> list[str]:
    """The processes that are meant. Raises `MeshctlError` for a name, or a machine, that there is none of."""
    known = {record.worker: record for record in records}
    for name in names:
        if name not in known:
            raise MeshctlError(f"there is no process {name!r}: `meshctl workers` lists them")
    of_host = [
        record.worker
        for record in records
        if record.host == host and record.service in ("inference_worker", "tool_runner")
    ]
    if host is not None and not of_host:
        hosts = ", ".join(sorted({record.host for record in records})) or "none"
        raise MeshctlError(f"no worker or tool runner is on {host!r}; there are processes on: {hosts}")
    return list(dict.fromkeys([*names, *of_host]))


async def _drain(connection: Connection, workers: Sequence[str], order: DrainOrder) -> int:
    """Give the order to each, and wait until those that took it have left. 1 if one did not."""
    leaving: dict[str, float] = {}
    failed = False
    for worker in workers:
        try:
            answer = await _order(connection, worker, order)
        except TaskmeshError as error:
            failed = True
            _say(worker, "no_answer", f"gives no answer ({error}): it is gone, or frozen; a kill is all that is left")
            continue
        leaving[worker] = time.monotonic()
        _say(worker, "draining", f"drains, with {answer.running} in hand", running=answer.running)
    while leaving:
        await asyncio.sleep(LOOK_SECONDS)
        here = {record.worker for record in await read_bucket(connection.requests, WORKERS_BUCKET, WorkerRecord)}
        for worker in [worker for worker in leaving if worker not in here]:
            seconds = round(time.monotonic() - leaving.pop(worker), 1)
            _say(worker, "left", f"has left after {seconds:g} s", seconds=seconds)
    return int(failed)


async def _order(connection: Connection, worker: str, order: DrainOrder) -> DrainAnswer:
    subject = subjects.process_order(worker, "drain")
    answer = await connection.requests.one(subject, encode(order), timeout_seconds=ANSWER_SECONDS_MAX)
    refused = (answer.headers or {}).get(ERROR_HEADER)
    if refused is not None:
        raise MeshctlError(refused)
    return decode(answer.data, DrainAnswer)


def _say(worker: str, event: str, text: str, **fields: object) -> None:
    if output.for_people():
        print(output.printable(f"{worker}  {text}"), flush=True)
    else:
        output.json_line({"event": f"process.{event}", "worker": worker, **fields})


def _run_restart(arguments: argparse.Namespace) -> int:
    settings = load_settings(environment_with(arguments, os.environ))
    home = Home(settings.home)

    async def restart() -> None:
        async for said in ordered(home, Order(order="restart", broker=arguments.broker)):
            if not output.for_people():
                output.json_line(said)
            elif said["event"] == "process.replaced":
                text = f"{said['process']}  {said['successor']} serves, {said['pid']} ends"
                print(output.printable(text), flush=True)
            else:
                text = f"{said['process']}  {said['pid']} has left after {said['seconds']:g} s"
                print(output.printable(text), flush=True)

    asyncio.run(restart())
    return 0
