"""`meshctl streams`: what the mesh needs of its broker, created and compared."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import structlog

from mesh import telemetry
from mesh.connection import Connection, connect
from mesh.errors import BrokerUnavailable
from mesh.provisioning import Difference, apply, compare, declared
from mesh.settings import Settings, load_settings
from meshctl import output
from meshctl.broker import without_password
from meshctl.flags import add_setting_flags, environment_with

log = structlog.get_logger("meshctl.streams")

CONNECT_SECONDS_MAX: Final = 10.0
_SETTINGS = ("nats_url", "nats_port", "ack_wait_seconds", "max_deliver")


def add_commands(commands: Any) -> None:
    """Register `streams`."""
    streams: argparse.ArgumentParser = commands.add_parser(
        "streams", help="create and update the broker's streams", description="Streams, consumers and buckets."
    )
    actions = streams.add_subparsers(metavar="ACTION", required=True)
    text = "Create what is missing, update what differs, and say what was done. Nothing is ever deleted."
    parser = actions.add_parser("apply", help="make them as declared", description=text)
    add_setting_flags(parser, _SETTINGS)
    parser.set_defaults(run=_run_apply)


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to the broker. Raises `BrokerUnavailable` if none answers soon: a person waits."""
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                connection = await stack.enter_async_context(connect(settings, "meshctl"))
        except TimeoutError:
            raise BrokerUnavailable(f"no broker answers at {without_password(settings.broker_url)}") from None
        yield connection


async def provision(settings: Settings, *, ours: bool) -> None:
    """Create what is missing. What differs stays, and is only said: a running mesh, or its operator, may need it so.

    `ours`: the broker serves this mesh alone. Then its consumers follow the settings, since workers do: a lease that
    only one of the two sides knows of is none.
    """
    wanted = declared(settings)
    async with connected(settings) as connection:
        await apply(connection.requests, wanted, update=False)
        if ours:
            await apply(connection.requests, wanted._replace(streams=[]), update=True)
        for difference in await compare(connection.requests, wanted):
            log.warning("stream.differs", difference=str(difference), remedy="meshctl streams apply")


def _run_apply(arguments: argparse.Namespace) -> int:
    settings = load_settings(environment_with(arguments, os.environ))
    # What the connection has to say is said by the error, in one line.
    telemetry.configure(replace(settings, log_level="error"), "meshctl")
    asyncio.run(_apply(settings))
    return 0


async def _apply(settings: Settings) -> None:
    async with connected(settings) as connection:
        done = await apply(connection.requests, declared(settings), update=True)
    if output.for_people():
        for difference in done:
            print(f"{'created' if difference.missing else 'updated'}  {_described(difference)}")
        print("everything is as declared" if not done else f"{len(done)} changed; everything is as declared now")
        return
    for difference in done:
        output.json_line(
            {
                "event": "stream.created" if difference.missing else "stream.updated",
                "kind": difference.kind,
                "name": difference.name,
                "fields": {
                    name: {"declared": new, "was": existing} for name, (new, existing) in difference.fields.items()
                },
            }
        )
    output.json_line({"event": "streams.as_declared", "changed": len(done)})


def _described(difference: Difference) -> str:
    changes = ", ".join(f"{name} was {was!r}, is {new!r}" for name, (new, was) in difference.fields.items())
    return f"{difference.kind} {difference.name}" + (f": {changes}" if changes else "")
