"""Tools of real MCP servers, over a runner process: over stdio and HTTP, and each way in which they can go wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from contracts.codec import decode
from contracts.journal.events import ToolCompleted, ToolFailed, ToolProgress
from contracts.records.status import WorkerRecord
from contracts.streams import WORKERS_BUCKET, consumers
from mesh.broker.connection import Connection, connect
from mesh.broker.provisioning import Declared, apply
from mesh.configuration.mesh_toml import load_configuration
from mesh.fleet.findings import findings
from mesh.fleet.looking import read_fleet
from mesh.tools.toolbox import Toolbox
from meshctl.commands.workers import read_bucket
from tests.support import children
from tests.support.broker import free_port
from tests.support.calls import Calls
from tests.support.checker import read_stored
from tests.support.mcp_server import PNG
from tests.support.processes import ROOT, Mesh, running_mesh
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

TRANSPORTS = ("local", "remote")
CONFIGURATION = """
[mcp.local]
command = ["{python}", "-m", "tests.support.mcp_server", "stdio"]
env = {{ TRACE_FILE = "{trace}", PYTHONPATH = "{root}" }}
timeout_seconds = 20

[mcp.remote]
url = "http://127.0.0.1:{port}/mcp"
timeout_seconds = 20

[mcp.absent]
command = ["{folder}/there-is-no-such-program"]

[tools.local_hangs]
timeout_seconds = 0.5
approval = "always"

[tools.remote_hangs]
timeout_seconds = 0.5
idempotent = true
"""


class RemoteServer:
    """The MCP server over HTTP, as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.trace = folder / "trace"
        self.trace.touch()
        self._log = folder / "remote.log"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start, and wait until it listens."""
        with self._log.open("ab") as log:
            self._process = children.start(
                [sys.executable, "-m", "tests.support.mcp_server", "http", str(self.port)],
                {"PYTHONPATH": str(ROOT), "TRACE_FILE": str(self.trace), "PATH": "/usr/bin:/bin"},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

        async def listens() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return False
            writer.close()
            return True

        await until(listens)

    def stop(self) -> None:
        """Kill it, and wait for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@dataclass
class Bench:
    """A runner with two servers that are there, and one that is not."""

    mesh: Mesh
    connection: Connection
    calls: Calls
    toolbox: Toolbox
    remote: RemoteServer

    def traced(self, line: str) -> int:
        """How often the servers have left a line."""
        return self.remote.trace.read_text().splitlines().count(line)


SERVED = ("shout", "count_up", "breaks", "hangs")
"""The server's tools that are looked at here."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("mcp")
    remote = RemoteServer(folder)
    await remote.start()
    file = folder / "mesh.toml"
    places = {"python": sys.executable, "trace": remote.trace, "root": ROOT, "port": remote.port, "folder": folder}
    file.write_text(CONFIGURATION.format(**places))
    try:
        async with (
            running_mesh(folder, "tool_runner", MESH_CONFIG=str(file), MESH_ACK_WAIT_SECONDS="2") as mesh,
            connect(mesh.settings, "test") as connection,
        ):
            toolbox = Toolbox(connection.requests, load_configuration(file).tools)
            names = [f"{transport}_{tool}" for transport in TRANSPORTS for tool in SERVED]

            async def declared() -> bool:
                return len(await toolbox.declarations(names)) == len(names)

            await until(declared)
            yield Bench(mesh, connection, Calls(connection), toolbox, remote)
            assert mesh.tracebacks() == []
    finally:
        remote.stop()


async def failure(bench: Bench, tool: str, arguments: dict[str, Any]) -> tuple[str, str]:
    """A call that must fail: its code and outcome."""
    ended = await bench.calls.run(tool, arguments)
    assert isinstance(ended, ToolFailed), ended
    return ended.error.code, ended.outcome


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_servers_tools_are_declared_by_its_hints_and_the_operators_word(bench: Bench, transport: str) -> None:
    names = [f"{transport}_{tool}" for tool in SERVED]
    shout, count_up, breaks, hangs = (await bench.toolbox.declarations(names)).values()
    assert (shout.idempotent, shout.destructive) == (True, False)
    assert shout.parameters["required"] == ["text"]
    assert shout.description == "Says it in capitals."
    assert (count_up.idempotent, count_up.destructive) == (True, False)
    assert (breaks.idempotent, breaks.destructive, breaks.approval) == (False, True, "destructive")
    assert (breaks.timeout_seconds, hangs.timeout_seconds) == (20, 0.5)
    assert (hangs.approval, hangs.idempotent) == (("always", False) if transport == "local" else ("destructive", True))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_call_is_run_and_large_results_lie_in_the_object_store(bench: Bench, transport: str) -> None:
    ended = await bench.calls.run(f"{transport}_shout", {"text": "hello"})
    assert isinstance(ended, ToolCompleted)
    assert ended.result == {"result": "HELLO!"}
    large = await bench.calls.run(f"{transport}_shout", {"text": "a" * 100, "times": 10_000})
    assert isinstance(large, ToolCompleted)
    assert large.object is not None
    store = await bench.connection.client.jetstream().object_store(large.object.bucket)
    stored = (await store.get(large.object.name)).data
    assert stored is not None
    assert stored.startswith(large.result.encode())
    assert len(stored) == large.object.size > 1_000_000


async def test_an_image_is_told_by_type_and_size_and_its_bytes_are_kept(bench: Bench) -> None:
    drawn = await bench.calls.run("local_draw", {})
    assert isinstance(drawn, ToolCompleted)
    told = drawn.result
    assert told[0] == {"type": "text", "text": "A dot."}
    assert told[1] == {"type": "image", "mimeType": "image/png", "bytes": 200_008}
    assert drawn.object is not None
    store = await bench.connection.client.jetstream().object_store(drawn.object.bucket)
    kept = json.loads((await store.get(drawn.object.name)).data or b"")
    assert base64.b64decode(kept[1]["data"]) == PNG


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_progress_is_told(bench: Bench, transport: str) -> None:
    asked = await bench.calls.ask(f"{transport}_count_up", {"to": 50})
    await bench.calls.publish(asked, f"{transport}_count_up")

    async def ended() -> bool:
        return "1-0" in (await bench.calls.journal(asked)).state.call_results

    await until(ended)
    stored = (await read_stored(bench.connection.requests)).journals[asked.state.task]
    told = [decode(each.data, ToolProgress) for each in stored if each.event["type"] == "tool.progress"]
    assert told
    assert (told[0].call, told[0].total) == ("1-0", 50)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("tool", "arguments", "code", "outcome"),
    [
        ("shout", {"text": 1}, "tool-arguments-invalid", "failed"),
        ("shout", {}, "tool-arguments-invalid", "failed"),
        ("breaks", {"reason": "because"}, "tool-error", "unknown"),
        ("hangs", {}, "tool-timeout", None),
    ],
)
async def test_what_goes_wrong_is_a_failed_call(
    bench: Bench, transport: str, tool: str, arguments: dict[str, Any], code: str, outcome: str | None
) -> None:
    expected = outcome or ("unknown" if transport == "local" else "failed")
    assert await failure(bench, f"{transport}_{tool}", arguments) == (code, expected)


async def test_a_call_that_took_too_long_is_cancelled_at_the_server(bench: Bench) -> None:
    before = bench.traced("hangs.cancelled")
    assert (await failure(bench, "local_hangs", {}))[0] == "tool-timeout"
    await until(lambda: bench.traced("hangs.cancelled") > before)


async def test_a_server_that_writes_rubbish_is_still_understood(bench: Bench) -> None:
    ended = await bench.calls.run("local_rubbish", {})
    assert isinstance(ended, ToolCompleted)
    assert ended.result == {"result": "after rubbish"}


async def test_a_server_that_dies_fails_its_call_and_is_started_again(bench: Bench) -> None:
    before = await bench.calls.run("local_pid", {})
    assert await failure(bench, "local_dies", {}) == ("tool-unavailable", "unknown")
    after = await bench.calls.run("local_pid", {})
    assert isinstance(before, ToolCompleted)
    assert isinstance(after, ToolCompleted)
    assert before.result != after.result
    assert bench.traced("dies") == 1, "a call that may have had its effect is not run again"


async def test_a_call_that_may_be_run_twice_survives_its_servers_death(bench: Bench) -> None:
    ended = await bench.calls.run("local_dies_once", {})
    assert isinstance(ended, ToolCompleted)
    assert ended.result == {"result": "alive"}


async def test_a_remote_server_that_goes_and_comes_back_is_found_again(bench: Bench) -> None:
    bench.remote.stop()
    code, _ = await failure(bench, "remote_pid", {})
    assert code == "tool-unavailable"
    await bench.remote.start()

    async def answers() -> bool:
        return isinstance(await bench.calls.run("remote_pid", {}), ToolCompleted)

    await until(answers, 60)


async def test_a_call_of_a_server_that_never_came_does_not_wait_for_ever(bench: Bench) -> None:
    settings = bench.mesh.settings
    (consumer,) = (
        each for each in consumers((), ("absent_tool",), settings.ack_wait_seconds) if each.stream == "TOOLS"
    )
    await apply(bench.connection.requests, Declared([], [consumer]), update=False)
    assert await failure(bench, "absent_tool", {}) == ("tool-unavailable", "failed")


async def test_a_runner_that_is_killed_leaves_an_unknown_outcome_and_no_second_run(bench: Bench) -> None:
    runner = bench.mesh.processes[0]
    begun = bench.traced("waits.begun")
    asked = await bench.calls.ask("local_waits", {})
    await bench.calls.publish(asked, "local_waits")
    await until(lambda: bench.traced("waits.begun") > begun)
    await runner.kill()
    await runner.start()

    async def ended() -> bool:
        return "1-0" in (await bench.calls.journal(asked)).state.call_results

    await until(ended, 60)
    result = (await bench.calls.journal(asked)).state.call_results["1-0"]
    assert isinstance(result, ToolFailed)
    assert (result.error.code, result.outcome) == ("tool-outcome-unknown", "unknown")
    assert bench.traced("waits.begun") == begun + 1


async def test_the_runners_heartbeat_names_what_it_serves(bench: Bench) -> None:
    async def named() -> bool:
        records = await read_bucket(bench.connection.requests, WORKERS_BUCKET, WorkerRecord)
        return any({"add", "local_shout", "remote_shout"} <= set(record.tools or ()) for record in records)

    await until(named)


async def test_the_heartbeat_says_which_servers_are_away_and_why_and_so_does_the_doctor(bench: Bench) -> None:
    async def told() -> bool:
        [line] = [
            each.detail for each in findings(await read_fleet(bench.connection, ())) if each.check == "mcp_servers"
        ]
        return "absent is away" in line and "there-is-no-such-program is not there" in line and "local" not in line

    await until(told)


async def test_a_runner_that_stops_takes_its_servers_with_it(bench: Bench) -> None:
    answered = await bench.calls.run("local_pid", {})
    assert isinstance(answered, ToolCompleted)
    server = Path(f"/proc/{answered.result['result']}")
    assert server.exists()
    assert await bench.mesh.processes[0].stop() == 0
    assert not server.exists()
