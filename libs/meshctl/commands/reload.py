"""`meshctl reload`: a changed mesh.toml for all processes of a mesh, or for none."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec
import nats.errors
from nats.aio.msg import Msg

from contracts.codec import decode, encode
from contracts.errors import InvalidPayload
from contracts.identifiers import new_id
from contracts.messages.reloading import ReloadAnswer, ReloadOrder, Step
from contracts.records.status import WorkerRecord
from contracts.streams import WORKERS_BUCKET
from contracts.subjects import CONFIGURATION_RELOAD
from mesh.broker.connection import Connection
from mesh.broker.embedded import is_alive
from mesh.configuration.settings import load_variables
from mesh.telemetry import traces
from meshctl.commands.workers import read_bucket
from meshctl.display import output
from meshctl.errors import MeshctlError
from meshctl.flags import add_setting_flags, environment_with
from meshctl.supervision import discovery
from meshctl.supervision.acts import tell_act
from meshctl.supervision.broker_setup import connected

STATUS_REFUSED: Final = 1
PING_SECONDS: Final = 1.0
"""How long a process may take to say that it is there. One that takes longer is frozen, or gone."""
ANSWER_SECONDS_MAX: Final = 10.0
"""How long one may take for a step: it reads a file, and may have much in hand."""
ROUNDS_MAX: Final = 3
"""How often those that have come up meanwhile, with what held before, are told as well."""
_DESCRIPTION = f"""\
Have all processes of a mesh go by mesh.toml as it is now: providers, models, limits and breakers of pools, settings of
tools, webhooks, the critic, the share of results, and the level of logs. What runs goes on, and ends by what it began
with.

Each process first checks the file, its own where it has one. Only if all have agreed they take it. Where one finds a
mistake, gives no answer, or would have to be started again, all keep what they have, it is said why, and the command
ends with {STATUS_REFUSED}.

Into a pipe it prints JSON lines.
"""


class Gathered(NamedTuple):
    """Who should answer, and what came."""

    expected: Mapping[str, str]
    """The process, and why it is known."""
    answers: Mapping[str, ReloadAnswer]


def add_commands(commands: Any) -> None:
    """Register `reload`."""
    parser = commands.add_parser(
        "reload",
        help="have all processes go by mesh.toml as it is now",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--without",
        metavar="WORKER",
        action="append",
        default=[],
        help="don't wait for this process, as for one on a machine that is gone; may be repeated",
    )
    add_setting_flags(parser, ("home", "nats_url", "nats_port"))
    parser.set_defaults(run=_run_reload)


def _run_reload(arguments: argparse.Namespace) -> int:
    settings = discovery.at_broker(load_variables(environment_with(arguments, os.environ)))
    traces.configure(settings, "meshctl", least="error")

    async def run() -> int:
        async with connected(settings) as connection:
            return await reload(connection, frozenset(arguments.without))

    return asyncio.run(run())


async def reload(connection: Connection, without: frozenset[str] = frozenset()) -> int:
    """Check, and take if all agree. Returns the exit status."""
    expected = {name: why for name, why in (await _known(connection)).items() if name not in without}
    order = new_id()
    checked = await _ask(connection, order, "check", expected)
    objections = objections_to(Gathered(expected, checked))
    if objections:
        return _refused(objections)
    if not checked:
        raise MeshctlError("no process answers: is this the mesh?")
    keepers = {name: "" for name, answer in checked.items() if answer.service == "meshctl"}
    kept = await _ask(connection, order, "keep", keepers)
    failed = [name for name in keepers if name not in kept or not kept[name].ok]
    if failed:
        await _ask(connection, order, "undo", keepers)
        said = [line for name in failed if name in kept for line in kept[name].mistakes]
        return _refused([f"{', '.join(failed)}: the copy for restarts was not written", *said])
    await tell_act(connection, "reload")
    takers = {name: "" for name in checked if name not in keepers}
    taken = await _ask(connection, order, "take", takers)
    late = sorted(name for name in takers if name not in taken or not taken[name].ok)
    offered = {answer.offered or "" for answer in checked.values()}
    late += [name for name in await _stragglers(connection, offered, without) if name not in late]
    changed = sum(answer.configuration != answer.offered for answer in checked.values() if answer.service != "meshctl")
    _say_end(sorted(offered), changed, len(taken), late)
    return STATUS_REFUSED if late else 0


async def _stragglers(connection: Connection, offered: Collection[str], without: frozenset[str]) -> list[str]:
    """Have those take it, too, that came up meanwhile with what held before; the ones that have not."""
    for _ in range(ROUNDS_MAX):
        expected = {name: why for name, why in (await _known(connection)).items() if name not in without}
        told = await _ask(connection, new_id(), "tell", expected)
        behind = {name: "" for name, answer in told.items() if answer.configuration not in offered}
        if not behind:
            return []
        order = new_id()
        checked = await _ask(connection, order, "check", behind)
        ready = {name: "" for name in behind if name in checked and checked[name].offered in offered}
        await _ask(connection, order, "take", ready)
    return sorted(behind)


def objections_to(gathered: Gathered) -> list[str]:
    """Why the file can't be taken by all, one line each; empty if it can. Pure."""
    objections: list[str] = []
    for name, why in gathered.expected.items():
        if name not in gathered.answers:
            objections.append(f"{name}: {why}")
    by_line: dict[str, list[str]] = {}
    for name, answer in gathered.answers.items():
        for line in (*answer.mistakes, *answer.fixed):
            by_line.setdefault(line, []).append(name)
        if not answer.ok and not answer.mistakes and not answer.fixed:
            by_line.setdefault("it does not agree", []).append(name)
    # What a file says wrong all of its readers say: once is enough.
    for line, names in by_line.items():
        objections.append(line if len(names) > 1 else f"{line} ({names[0]})")
    if objections:
        return objections
    keepers = {answer.copy for answer in gathered.answers.values() if answer.service == "meshctl"}
    for name, answer in gathered.answers.items():
        if answer.copy is not None and answer.copy not in keepers:
            objections.append(f"{name}: the meshctl up that keeps {answer.copy} gives no answer")
    return objections + _divided(gathered.answers)


def _divided(answers: Mapping[str, ReloadAnswer]) -> list[str]:
    """Those that are alike now and would not be: their files differ."""
    groups: dict[str, dict[str | None, list[str]]] = {}
    for name, answer in answers.items():
        groups.setdefault(answer.configuration, {}).setdefault(answer.offered, []).append(name)
    return [
        "the files differ that these read: "
        + "; ".join(f"{digest}: {', '.join(names)}" for digest, names in by.items())
        for by in groups.values()
        if len(by) > 1
    ]


async def _known(connection: Connection) -> dict[str, str]:
    """The processes of the mesh, by what answers and by what is written down, with what to say if one is silent."""
    known = dict.fromkeys(await _pinged(connection), "gives no answer")
    for record in await read_bucket(connection.requests, WORKERS_BUCKET, WorkerRecord):
        if record.worker in known:
            continue
        here = record.host == platform.node()
        if here and not is_alive(record.pid):
            continue  # It was killed: its record goes by itself.
        known[record.worker] = (
            "gives no answer: it is frozen, or gone without a word. End it, or name it with --without"
        )
    return known


async def _pinged(connection: Connection) -> list[str]:
    """The processes that answer `$SRV.PING`."""
    names: list[str] = []

    def on_answer(message: Msg) -> bool:
        with suppress(msgspec.MsgspecError, AttributeError, TypeError):
            metadata = msgspec.json.decode(message.data, type=dict[str, Any]).get("metadata") or {}
            if isinstance(name := metadata.get("worker"), str):
                names.append(name)
        return False

    await _gather(connection, "$SRV.PING", b"", on_answer, PING_SECONDS)
    return names


async def _ask(connection: Connection, order: str, step: Step, expected: Mapping[str, str]) -> dict[str, ReloadAnswer]:
    """The answers to a step, by process: until all that are expected have come, and for so long at most."""
    answers: dict[str, ReloadAnswer] = {}
    if step in ("keep", "undo", "take") and not expected:
        return answers

    def on_answer(message: Msg) -> bool:
        with suppress(InvalidPayload):
            answer = decode(message.data, ReloadAnswer)
            answers[answer.worker] = answer
        # Who keeps a copy is known by those that read it alone.
        copies = {answer.copy for answer in answers.values() if answer.copy is not None and step != "take"}
        keepers = {answer.copy for answer in answers.values() if answer.service == "meshctl"}
        return expected.keys() <= answers.keys() and copies <= keepers

    payload = encode(ReloadOrder(id=order, step=step))
    await _gather(connection, CONFIGURATION_RELOAD, payload, on_answer, ANSWER_SECONDS_MAX)
    return answers


async def _gather(
    connection: Connection, subject: str, payload: bytes, on_answer: Callable[[Msg], bool], seconds_max: float
) -> None:
    """Publish, and hand out answers until `on_answer` says that it is enough, or the time is over."""
    enough = asyncio.Event()

    async def heard(message: Msg) -> None:
        if on_answer(message):
            enough.set()

    inbox = connection.client.new_inbox()
    subscription = await connection.client.subscribe(inbox, cb=heard)
    try:
        await connection.client.publish(subject, payload, reply=inbox)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                await enough.wait()
    finally:
        with suppress(nats.errors.Error):
            await subscription.unsubscribe()


def _refused(objections: Sequence[str]) -> int:
    if output.for_people():
        for objection in objections:
            print(output.printable(objection))
        print("nothing was changed")
    else:
        for objection in objections:
            output.json_line({"event": "reload.objection", "reason": objection})
        output.json_line({"event": "reload.refused"})
    return STATUS_REFUSED


def _say_end(configurations: Sequence[str], changed: int, processes: int, late: Sequence[str]) -> None:
    if not output.for_people():
        output.json_line(
            {
                "event": "reload.taken",
                "configurations": configurations,
                "changed": changed,
                "processes": processes,
                "late": late,
            }
        )
        return
    if changed or late:
        print(f"{processes} processes go by configuration {', '.join(configurations)}")
    else:
        print(f"nothing has changed: {', '.join(configurations)}")
    for name in late:
        print(f"{name} has not taken it: start it again")
