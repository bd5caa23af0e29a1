"""`meshctl streams`: what the mesh needs of its broker, created and compared."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from rich.text import Text

from mesh.broker.connection import Connection
from mesh.broker.other_meshes import check_alone
from mesh.broker.provisioning import Difference, apply, compare, find_declared
from mesh.broker.replication import CURRENT_SECONDS_MAX, until_current
from mesh.broker.suitability import check_start
from mesh.configuration.settings import Settings, load_settings
from mesh.telemetry import traces
from meshctl.display import output
from meshctl.flags import add_setting_flags, environment_with
from meshctl.supervision import discovery
from meshctl.supervision.acts import tell_act
from meshctl.supervision.assembly import broker_for_a_look
from meshctl.supervision.broker_setup import connected
from meshctl.supervision.home import Home

STATUS_DIFFERS: Final = 3
"""Apart from 1, "it did not work": a script can tell a mesh that differs from one that is away."""
_SETTINGS = ("home", "nats_url", "nats_domain", "nats_port", "ack_wait_seconds", "max_deliver")


def add_commands(commands: Any) -> None:
    """Register `streams`."""
    streams: argparse.ArgumentParser = commands.add_parser(
        "streams", help="create and update the broker's streams", description="Streams, consumers and buckets."
    )
    actions = streams.add_subparsers(metavar="ACTION", required=True)
    text = (
        "Say what apply would create and change, and what it would leave as it is. Changes nothing."
        " The mesh need not run: the broker of its MESH_HOME is then started for the look."
        f" Ends with 0 if all is as declared, with {STATUS_DIFFERS} if it is not."
    )
    plan = actions.add_parser("plan", help="show what is not as declared", description=text)
    add_setting_flags(plan, _SETTINGS)
    plan.set_defaults(run=_run_plan)
    text = (
        "Create what is missing, update what differs, and say what was done. Nothing is ever deleted: what could lose"
        " stored messages, and what the server can't change, is left and said. New copies on a cluster are waited for,"
        f" a minute at most. Ends with {STATUS_DIFFERS} if something is left."
    )
    parser = actions.add_parser("apply", help="make them as declared", description=text)
    add_setting_flags(parser, _SETTINGS)
    parser.set_defaults(run=_run_apply)


def _run_plan(arguments: argparse.Namespace) -> int:
    return asyncio.run(_plan(_settings(arguments)))


def _run_apply(arguments: argparse.Namespace) -> int:
    return asyncio.run(_apply(_settings(arguments)))


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = load_settings(environment_with(arguments, os.environ))
    # What the connection has to say is said by the error, in one line.
    traces.configure(settings, "meshctl", least="error")
    return settings


@asynccontextmanager
async def _broker(settings: Settings) -> AsyncIterator[Connection]:
    """The broker that is named, or of the mesh that runs; of one that does not run, started for as long as this takes.

    So what an upgrade is about to change can be seen, and done, before the mesh runs.
    """
    home = Home(settings.home)
    given = settings.nats_url is not None or (settings.nats_port and settings.is_given("nats_port"))
    runs = home.is_locked() or discovery.running_url(home) is not None
    if given or runs or not home.jetstream.is_dir():
        async with connected(discovery.at_broker(settings)) as connection:
            yield connection
        return
    async with broker_for_a_look(settings, os.environ) as url, connected(replace(settings, nats_url=url)) as connection:
        yield connection


async def _plan(settings: Settings) -> int:
    async with _broker(settings) as connection:
        await check_start(connection)
        differences = await compare(connection.requests, await find_declared(connection.requests, settings))
    single = _with_one_copy(differences)
    if output.for_people():
        for difference in differences:
            if difference.missing or difference.changes:
                _say("create" if difference.missing else "update", difference)
            _say_kept(difference)
        if single:
            print(f"R1 on a cluster: {len(single)} streams and buckets have one copy, on one of its servers")
        if not differences:
            print("everything is as declared")
        elif any(difference.missing or difference.changes for difference in differences):
            print("make it so: meshctl streams apply")
    else:
        for difference in differences:
            if difference.missing or difference.changes:
                output.json_line(_event("stream.to_create" if difference.missing else "stream.to_update", difference))
            _tell_kept(difference)
        if single:
            output.json_line({"event": "streams.one_copy_on_a_cluster", "streams": single})
        _tell_end(0, len(differences))
    return STATUS_DIFFERS if differences else 0


async def _apply(settings: Settings) -> int:
    async with _broker(settings) as connection:
        await check_start(connection)
        await check_alone(connection)
        wanted = await find_declared(connection.requests, settings)
        done = await apply(connection.requests, wanted, update=True)
        if done:
            await tell_act(connection, "streams-apply")
        left = await compare(connection.requests, wanted)
        copied = wanted.replication.replicas > 1 and any(map(_has_new_copies, done))
        behind = await until_current(connection.requests, [each.name for each in wanted.streams]) if copied else []
    if output.for_people():
        for difference in done:
            _say("created" if difference.missing else "updated", difference)
        for difference in left:
            _say_kept(difference)
        for each in behind:
            output.show(Text.assemble((f"{'copying':<9}", "yellow"), output.printable(each)))
        if behind:
            print(f"not all copies are current after {CURRENT_SECONDS_MAX:g} s; the broker goes on: see meshctl doctor")
        elif copied:
            print(f"all {wanted.replication.replicas} copies are current")
        end = "everything is as declared" if not left else f"{len(left)} not as declared"
        print(end if not done else f"{len(done)} changed; {end}{'' if left else ' now'}")
    else:
        for difference in done:
            output.json_line(_event("stream.created" if difference.missing else "stream.updated", difference))
        for difference in left:
            _tell_kept(difference)
        if copied:
            event = "streams.copying" if behind else "streams.copied"
            output.json_line({"event": event, "replicas": wanted.replication.replicas, "behind": behind})
        _tell_end(len(done), len(left))
    return STATUS_DIFFERS if left else 0


def _with_one_copy(differences: list[Difference]) -> list[str]:
    """The streams that there are with one copy where the cluster is to have more."""
    return [each.name for each in differences if each.fields.get("num_replicas", (1, 0))[1] == 1]


def _has_new_copies(difference: Difference) -> bool:
    return difference.kind == "stream" and (difference.missing or "num_replicas" in difference.fields)


def _say(verb: str, difference: Difference) -> None:
    changes = ", ".join(f"{name} {was!r} → {new!r}" for name, (new, was) in difference.changes.items())
    what = f"{difference.kind} {difference.name}" + (f": {changes}" if changes else "")
    output.show(Text.assemble((f"{verb:<9}", "green" if difference.missing else "yellow"), output.printable(what)))


def _say_kept(difference: Difference) -> None:
    for name, why in difference.obstacles.items():
        new, was = difference.fields[name]
        what = f"{difference.kind} {difference.name}: {name} is {was!r}, declared {new!r}; {why}"
        output.show(Text.assemble((f"{'left':<9}", "bold red"), output.printable(what)))


def _event(event: str, difference: Difference) -> dict[str, Any]:
    fields = {name: {"declared": new, "was": existing} for name, (new, existing) in difference.changes.items()}
    return {"event": event, "kind": difference.kind, "name": difference.name, "fields": fields}


def _tell_kept(difference: Difference) -> None:
    for name, why in difference.obstacles.items():
        new, existing = difference.fields[name]
        field = {name: {"declared": new, "was": existing}}
        place = {"kind": difference.kind, "name": difference.name}
        output.json_line({"event": "stream.left", **place, "fields": field, "reason": why})


def _tell_end(changed: int, left: int) -> None:
    if left:
        output.json_line({"event": "streams.differ", "changed": changed, "left": left})
    else:
        output.json_line({"event": "streams.as_declared", "changed": changed})
