"""`meshctl demo`: a mesh of its own shows, and checks, that a stream which is cut goes on where it was."""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, NamedTuple

from contracts.errors import TaskmeshError
from mesh.configuration.mesh_toml import NO_FILE
from mesh.configuration.settings import load_settings
from mesh.telemetry import traces
from meshctl.client import Client, Received
from meshctl.commands.tasks import APPEARS_SECONDS
from meshctl.display.output import printable
from meshctl.display.transcript import Transcript
from meshctl.errors import StreamBroken
from meshctl.flags import add_setting_flags, environment_with
from meshctl.interrupts import STATUS_INTERRUPTED
from meshctl.supervision.assembly import Assembly, run_mesh
from meshctl.supervision.stops import Stopped, Stops

TOKENS: Final = 120
TOKENS_PER_SECOND: Final = 40
SECONDS_MAX: Final = 60.0
_SETTINGS = ("nats_server", "workers", "runners", "sync_interval", "log_level")
_DESCRIPTION = (
    f"Start a mesh of its own on free ports in a temporary folder, stream a task of {TOKENS} tokens, cut the connection"
    " half way, resume it, check that nothing is missing or doubled, remove everything. Ends with 0 only if all held."
)


class Check(NamedTuple):
    """Something that has to hold."""

    name: str
    holds: bool


def add_commands(commands: Any) -> None:
    """Register `demo`."""
    parser = commands.add_parser("demo", help="watch a stream being cut and resumed", description=_DESCRIPTION)
    add_setting_flags(parser, _SETTINGS)
    parser.set_defaults(run=_run_demo)


def _run_demo(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="meshctl-demo-") as folder:
        environment = environment_with(arguments, demo_environment(os.environ, Path(folder)))
        settings = load_settings(environment)
        traces.configure(settings, "meshctl")
        started_at = time.monotonic()
        print(f"A mesh of its own, in {folder}, on free ports: starting …", flush=True)

        async def during(mesh: Assembly, stops: Stops) -> int:
            print(
                f"Ready after {time.monotonic() - started_at:.1f} s: {mesh.ingress_url}, {mesh.edge_url}\n", flush=True
            )
            return await _demonstrate(mesh)

        try:
            status = asyncio.run(run_mesh(settings, environment, during))
        except Stopped:
            status = STATUS_INTERRUPTED
    print("Everything is stopped and removed.", flush=True)
    return status


def demo_environment(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment without the settings of any other mesh; of those only MESH_NATS_SERVER counts here."""
    kept = {
        name: value for name, value in environment.items() if not name.startswith("MESH_") or name == "MESH_NATS_SERVER"
    }
    return kept | {
        "MESH_HOME": str(folder),
        "MESH_NATS_PORT": "0",
        "MESH_INGRESS_ADDRESS": "127.0.0.1:0",
        "MESH_EDGE_ADDRESS": "127.0.0.1:0",
        "MESH_LOG_LEVEL": "warning",
        "MESH_CONFIG": NO_FILE,
    }


async def _demonstrate(mesh: Assembly) -> int:
    try:
        client_of_mesh = Client(mesh.ingress_url, mesh.edge_url, key=mesh.operator_key, certificate=mesh.certificate)
        async with asyncio.timeout(SECONDS_MAX), client_of_mesh as client:
            checks = await _scenario(client)
    except (TaskmeshError, TimeoutError) as error:
        print(f"\nThe demonstration broke off: {str(error) or f'it took more than {SECONDS_MAX:.0f} s'}")
        return 1
    for check in checks:
        print(f"  {'ok    ' if check.holds else 'FAILED'}  {check.name}")
    return 0 if all(check.holds for check in checks) else 1


async def _scenario(client: Client) -> list[Check]:
    body = {"input": f"!rate {TOKENS_PER_SECOND}\n!say {TOKENS}"}
    started_at = time.monotonic()
    task = (await client.submit(body)).value.id
    print(f"Task {task}, {TOKENS} tokens at {TOKENS_PER_SECOND}/s, was accepted after {_ms(started_at)}.\n", flush=True)

    transcript = Transcript()
    async with aclosing(client.follow(task, appears_within_seconds=APPEARS_SECONDS)) as stream:
        async for received in stream:
            _show(transcript, received)
            if len(transcript.text.split()) >= TOKENS // 2:
                break
    if not transcript.sequences:
        raise StreamBroken("the stream ended before it had begun")
    cut_after, cut_at = transcript.sequences[-1], time.monotonic()
    seen_before = len(transcript.sequences)
    print(f"\n\nThe connection is cut after sequence {cut_after}.", flush=True)

    resumed = False
    async with aclosing(client.follow(task, cut_after)) as stream:
        async for received in stream:
            if not resumed:
                print(f"Resumed after {cut_after}, with Last-Event-ID, in {_ms(cut_at)}.\n", flush=True)
                resumed = True
            _show(transcript, received)

    record = (await client.get(task)).value
    events, text = len(transcript.sequences), transcript.text
    print(f"\n\n{events} events, {seen_before} of them before the cut, {time.monotonic() - started_at:.1f} s in all:")
    return [
        Check(f"the task is {record.status}", record.status == "completed"),
        Check(f"n is dense: 0 to {transcript.numbers[-1]}, none missing, none twice", transcript.is_dense),
        Check(f"sequences rise: {transcript.sequences[0]} to {transcript.sequences[-1]}", transcript.rises),
        Check("the connection was cut in mid-stream, and the rest came after it", 0 < seen_before < events),
        Check(
            f"the deltas joined are the task's output ({len(text)} characters, {len(text.split())} tokens)",
            text == record.output and len(text.split()) == TOKENS,
        ),
    ]


def _show(transcript: Transcript, received: Received) -> None:
    if not received.is_stored:
        raise StreamBroken(f"{received.type} came: a part of a fresh journal is gone")
    print(printable(transcript.add(received.cursor, received.payload)), end="", flush=True)


def _ms(since: float) -> str:
    return f"{(time.monotonic() - since) * 1000:.0f} ms"
