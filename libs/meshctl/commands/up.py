"""`meshctl up`: the mesh on this machine, until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
from contextlib import ExitStack
from typing import Any

from contracts import VERSION
from mesh.configuration.broker_urls import without_password
from mesh.configuration.secret_sources import read_secrets
from mesh.configuration.settings import SERVICES, Settings, load_settings
from mesh.serving.privacy import has_secrets, keep_private
from mesh.telemetry import traces
from meshctl.client import Client
from meshctl.commands.first_task import run_first_task
from meshctl.display import output
from meshctl.flags import add_setting_flags, environment_with
from meshctl.interrupts import STATUS_INTERRUPTED
from meshctl.supervision.assembly import Assembly, run_mesh
from meshctl.supervision.stops import Stopped, Stops

_DESCRIPTION = """\
Start the mesh on this machine and keep it running until Ctrl-C: nats-server (unless MESH_NATS_URL names
one), an ingress, a stream edge, inference workers, tool runners and a steward. What dies is started again.

On a terminal it prints where everything is. Into a pipe it prints one JSON line once all is ready:
{"event": "mesh.ready", "nats_url", "ingress_url", "edge_url", "pids": {service: [pid, ...]}}.
What happens afterwards are log lines on standard error. The current pids are in MESH_HOME/pids.json,
the logs in MESH_HOME/logs, and in MESH_HOME/addresses.json where everything is: by that the other commands
find the mesh. SIGINT and SIGTERM stop everything; a second SIGINT does not wait.
"""


def add_commands(commands: Any) -> None:
    """Register `up`."""
    parser = commands.add_parser(
        "up",
        help="start the mesh on this machine",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--first-task", action="store_true", help="run one task while you watch, then keep serving")
    add_setting_flags(parser)
    parser.set_defaults(run=_run_up)


def _run_up(arguments: argparse.Namespace) -> int:
    environment = environment_with(arguments, os.environ)
    settings = load_settings(environment)
    # The services would say so too, but only once everything else has been started.
    read_secrets(settings.configuration, environment)
    if any(has_secrets(settings.configuration, service) for service in SERVICES):
        keep_private()
    traces.configure(settings, "meshctl")
    return asyncio.run(_up(settings, environment, first_task=arguments.first_task))


async def _up(settings: Settings, environment: dict[str, str], *, first_task: bool) -> int:
    async def during(mesh: Assembly, stops: Stops) -> int:
        spinner.close()
        people = output.for_people()
        if people:
            print(_summary(mesh), flush=True)
        else:
            output.json_line(
                {
                    "event": "mesh.ready",
                    "nats_url": without_password(mesh.nats_url),
                    "ingress_url": mesh.ingress_url,
                    "edge_url": mesh.edge_url,
                    "pids": mesh.pids,
                }
            )
        if first_task:
            # A pipe gets its one JSON line, and nothing else.
            out = sys.stdout if people else sys.stderr
            client_of_mesh = Client(
                mesh.ingress_url, mesh.edge_url, key=mesh.operator_key, certificate=mesh.certificate
            )
            async with client_of_mesh as client:
                await run_first_task(client, out)
            print(_how_to_go_on(mesh), file=out, flush=True)
        elif people:
            print(_how_to_go_on(mesh), flush=True)
        await stops.wait()
        raise Stopped(stops)

    with ExitStack() as spinner:
        progress = spinner.enter_context(output.progress("starting"))
        try:
            return await run_mesh(settings, environment, during, progress)
        except Stopped as stopped:
            return STATUS_INTERRUPTED if stopped.insisted else 0


def _summary(mesh: Assembly) -> str:
    counts = {service: len(pids) for service, pids in mesh.pids.items()}
    return "\n".join(
        [
            f"taskmesh {VERSION} is ready. Ctrl-C stops it.",
            f"  ingress      {mesh.ingress_url}",
            f"  stream edge  {mesh.edge_url}",
            f"  broker       {without_password(mesh.nats_url)}",
            f"  processes    {', '.join(f'{count} {service}' for service, count in counts.items() if count)}",
            f"  logs         {mesh.home.logs}",
            "",
        ]
    )


def _how_to_go_on(mesh: Assembly) -> str:
    # Not the key itself: what is on a screen is seen by others, and a shell remembers it.
    key = f' -H "Authorization: Bearer $(cat {shlex.quote(str(mesh.home.operator_key))})"' if mesh.operator_key else ""
    json_type = "-H 'Content-Type: application/json'"
    return "\n".join(
        [
            "",
            "Submit a task, and follow it by the id in the answer:",
            f'  curl -s {mesh.ingress_url}/v1/tasks{key} {json_type} -d \'{{"input": "Hello"}}\'',
            f"  curl -sN {mesh.edge_url}/v1/tasks/<id>/events{key}",
            f"  curl -s {mesh.ingress_url}/v1/tasks/<id>{key}",
            "or both at once: meshctl submit --watch Hello" + _where(mesh),
            "",
        ]
    )


def _where(mesh: Assembly) -> str:
    """The option that a second terminal needs, where the mesh is not at the default addresses."""
    defaults = Settings()
    if mesh.ingress_url == f"http://{defaults.ingress_address}" and mesh.edge_url == f"http://{defaults.edge_address}":
        return ""
    return f" --home {shlex.quote(str(mesh.home.path))}"
