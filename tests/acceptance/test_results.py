"""Large results over real processes: one tenant fills its share, a runner dies between the parts of one."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from contracts import result_objects
from contracts.identifiers import new_id
from contracts.journal.events import ToolCompleted, ToolFailed
from contracts.records.tools import RESULT_BYTES_MAX, RESULTS_BUCKET
from contracts.result_objects import ResultName
from contracts.streams import RESULTS
from mesh import faults
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import subjects_of
from steward.result_sweep import ResultSweep, Swept
from tests.chaos.points import Point, give_order, order_is_open
from tests.support import children
from tests.support.calls import Calls
from tests.support.limits import limit
from tests.support.processes import ROOT, running_mesh
from tests.support.toolchains import nats_cli
from tests.support.waiting import until
from tool_runner.result_store import ResultStore

pytestmark = pytest.mark.acceptance

CONFIGURATION = f"""
[mcp.local]
command = ["{sys.executable}", "-m", "tests.support.mcp_server", "stdio"]
env = {{ TRACE_FILE = "/dev/null", PYTHONPATH = "{ROOT}" }}

[results]
tenant_share = 0.25
"""
MEGABYTE = {"text": "a" * 100, "times": 10_000}
CHUNKS = 2
"""Of such a result; the message that tells of it comes after them."""


def configured(folder: Path) -> str:
    """A configuration with a tool whose results may be large."""
    file = folder / "mesh.toml"
    file.write_text(CONFIGURATION)
    return str(file)


async def chunks_there(connection: Connection) -> dict[str, int]:
    """The subjects of chunks, and how many lie on each."""
    return await subjects_of(connection.requests, RESULTS.name, f"$O.{RESULTS_BUCKET}.C.>")


async def test_a_tenant_that_fills_its_share_fails_alone_and_any_client_reads_what_there_is(tmp_path: Path) -> None:
    async with (
        running_mesh(tmp_path, MESH_CONFIG=configured(tmp_path)) as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        await limit(connection.requests, RESULTS.name, max_bytes=10_000_000)
        await mesh.start("tool_runner")
        acme, default = Calls(connection, "acme"), Calls(connection)
        first = await acme.run("local_shout", MEGABYTE)
        assert isinstance(first, ToolCompleted)
        assert first.object is not None
        assert isinstance(await acme.run("local_shout", MEGABYTE), ToolCompleted)
        refused = await acme.run("local_shout", MEGABYTE)
        assert isinstance(refused, ToolFailed)
        assert refused.error.code == "result-quota"
        assert "tenant acme" in refused.error.message
        [said] = mesh.logs_of("result.over_quota")
        assert (said["tenant"], said["limit_bytes"], said["level"]) == ("acme", 2_500_000, "error")
        for _ in range(2):
            result = await default.run("local_shout", MEGABYTE)
            assert isinstance(result, ToolCompleted)
            assert result.object is not None
        small = await acme.run("local_shout", {"text": "a"})
        assert isinstance(small, ToolCompleted), "what fits an event needs no room there"

        read = await (await connection.client.jetstream().object_store(RESULTS_BUCKET)).get(first.object.name)
        file = tmp_path / "read"
        command = [str(nats_cli()), "object", "get", RESULTS_BUCKET, first.object.name, "--force", "--no-progress"]
        variables = {**os.environ, **mesh.broker.cli_variables(tmp_path / "home")}
        got = children.run_blocking([*command, "--output", str(file)], variables, seconds=30)
        assert got.returncode == 0, got.stderr
        assert file.read_bytes() == read.data
        assert len(file.read_bytes()) == first.object.size > 1_000_000


async def test_a_runner_that_dies_between_chunks_and_their_message_leaves_a_half_that_is_swept(tmp_path: Path) -> None:
    folder = tmp_path / "points"
    folder.mkdir()
    async with (
        running_mesh(tmp_path, MESH_CONFIG=configured(tmp_path), MESH_ACK_WAIT_SECONDS="1") as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        give_order(folder, "die", Point("kill", "tool_runner", "before-publish:$O.results", CHUNKS + 1), 0)
        doomed = await mesh.start("tool_runner", **{faults.POINTS_VARIABLE: str(folder)})
        calls = Calls(connection)
        asked = await calls.ask("local_shout", MEGABYTE)
        await calls.publish(asked, "local_shout")
        await until(lambda: not doomed.is_running)
        assert not order_is_open(folder)
        assert [*(await chunks_there(connection)).values()] == [CHUNKS]
        # Another claim of the call has stored its result meanwhile.
        whole = ResultName("default", asked.state.task, "1-0", new_id())
        await ResultStore(connection.requests, 1.0).store(whole, b"x" * RESULT_BYTES_MAX)
        assert len(await chunks_there(connection)) == 2
        assert await ResultSweep(connection.requests, timedelta()).round() == Swept(halves=1)
        [subject] = await chunks_there(connection)
        assert result_objects.parse_chunks(subject) == (whole, RESULT_BYTES_MAX)
