"""What MCP servers do to a connection: they forget sessions, change and break their tools, write without end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.mcp_connection import running
from tests.support.processes import ROOT
from tests.support.scripted_mcp import CHANGED, scripted_mcp, tool
from tests.support.waiting import until
from tool_runner.mcp_servers import process
from tool_runner.tools.tool import ToolBroke

pytestmark = pytest.mark.integration

UNUSED: Any = None


def program(tools: list[Any], **script: Any) -> dict[str, Any]:
    """The configuration of a scripted program."""
    command = [sys.executable, "-m", "tests.support.scripted_mcp", json.dumps({"tools": tools, **script})]
    return {"command": command, "env": {"PYTHONPATH": str(ROOT)}}


async def test_a_session_that_is_gone_is_begun_anew_at_once_and_an_idempotent_call_repeated() -> None:
    async with scripted_mcp() as web, running(url=web.url) as server:
        await until(lambda: server.away is None)
        with capture_logs() as logs:
            web.forget()
            assert await server.call("look", {}, UNUSED, idempotent=True) == "look done"
        assert web.begun == 2
        events = [entry["event"] for entry in logs]
        assert ("mcp.session_gone" in events, "mcp.unavailable" in events) == (True, False)


async def test_a_session_whose_end_the_look_at_its_tools_finds_is_begun_anew_at_once() -> None:
    async with scripted_mcp() as web, running(url=web.url) as server:
        await until(lambda: server.away is None and web.listeners == 1)
        with capture_logs() as logs:
            web.forget()
            await web.say(CHANGED)
            await until(lambda: web.begun == 2)
            await until(lambda: server.away is None)
        events = [entry["event"] for entry in logs]
        assert ("mcp.session_gone" in events, "mcp.unavailable" in events) == (True, False)


async def test_a_call_that_must_not_run_twice_is_not_repeated_in_a_new_session() -> None:
    async with scripted_mcp() as web, running(url=web.url) as server:
        await until(lambda: server.away is None)
        web.forget()
        with pytest.raises(ToolBroke) as broke:
            await server.call("look", {}, UNUSED, idempotent=False)
        assert broke.value.code == "tool-unavailable"
        await until(lambda: web.begun == 2)
        assert await server.call("look", {}, UNUSED, idempotent=False) == "look done"
        assert web.methods.count("tools/call") == 2  # The first, and this one.


BROKEN: dict[str, Any] = {
    "no schema": {"name": "a"},
    "a schema that is a text": {"name": "a", "inputSchema": "object"},
    "a schema of no object": {"name": "a", "inputSchema": {"type": "string"}},
    "no name": {"inputSchema": {"type": "object"}},
    "a name that is a number": {"name": 7, "inputSchema": {"type": "object"}},
    "no object": "look",
    "null": None,
    "annotations that are a list": tool("a", annotations=[]),
    "an unknown support of tasks": tool("a", execution={"taskSupport": "sometimes"}),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_one_broken_tool_is_skipped_and_said_and_the_others_work(broken: Any) -> None:
    with capture_logs() as logs:
        async with scripted_mcp() as web:
            web.tools = [tool("first"), broken, tool("last")]
            async with running(url=web.url) as server:
                await until(lambda: server.away is None)
                assert list(server.tools) == ["first", "last"]
                assert await server.call("last", {}, UNUSED, idempotent=True) == "last done"
    assert [entry["event"] for entry in logs].count("mcp.tool_skipped") == 1


async def test_of_a_page_of_very_many_tools_the_first_are_read() -> None:
    with capture_logs() as logs:
        async with scripted_mcp() as web:
            web.tools = [tool("first"), *[1] * 500_000]
            async with running(url=web.url) as server:
                await until(lambda: server.away is None)
                assert list(server.tools) == ["first"]
    assert any("no more than 1000 are read" in entry.get("error", "") for entry in logs)
    assert len(logs) < 40


async def test_a_tool_whose_execution_needs_a_task_is_not_offered() -> None:
    with capture_logs() as logs:
        async with scripted_mcp() as web:
            web.tools = [tool(support, execution={"taskSupport": support}) for support in ("required", "optional")]
            async with running(url=web.url) as server:
                await until(lambda: server.away is None)
                assert list(server.tools) == ["optional"]
    [skipped] = [entry for entry in logs if entry["event"] == "mcp.tool_skipped"]
    assert (skipped["tool"], "needs a task" in skipped["error"]) == ("required", True)


async def test_a_change_of_the_tools_is_heard_over_http() -> None:
    async with scripted_mcp() as web, running(url=web.url) as server:
        await until(lambda: server.away is None and web.listeners == 1)
        web.tools = [tool("look"), tool("new")]
        await web.say(CHANGED)
        await until(lambda: list(server.tools) == ["look", "new"], 20)


async def test_a_change_of_the_tools_is_heard_of_a_program() -> None:
    async with running(**program([tool("change")])) as server:
        await until(lambda: server.away is None)
        await server.call("change", {}, UNUSED, idempotent=False)
        await until(lambda: list(server.tools) == ["change", "new"], 20)


@pytest.mark.parametrize("status", ["401 Unauthorized", "405 Method Not Allowed", "500 Internal Server Error"])
async def test_the_log_says_which_status_an_http_server_answers(status: str) -> None:
    async with scripted_mcp() as web:
        web.status = status
        with capture_logs() as logs:
            async with running(url=web.url) as server:
                await until(lambda: server.away not in (None, "it is being started"))
        assert f"HTTP {status[:3]}" in (server.away or "")
        said = [entry["error"] for entry in logs if entry["event"] == "mcp.unavailable"]
        assert said
        assert f"HTTP {status[:3]}" in said[0]


async def test_a_call_says_which_status_it_got() -> None:
    async with scripted_mcp() as web, running(url=web.url) as server:
        await until(lambda: server.away is None)
        web.status = "503 Service Unavailable"
        with pytest.raises(ToolBroke, match="HTTP 503"):
            await server.call("look", {}, UNUSED, idempotent=True)


async def test_the_log_says_which_file_is_not_there(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"command": ["no-such-program"]}, "command: no-such-program is not there"),
        ({"command": [f"{tmp_path}/none"]}, f"command: {tmp_path}/none is not there"),
        ({"command": [str(plain)]}, f"command: {plain} can't be executed"),
        ({"command": ["ls"], "cwd": f"{tmp_path}/away"}, f"cwd: there is no folder {tmp_path}/away"),
    ]
    for configuration, reason in cases:
        async with running(**configuration) as server:
            await until(lambda server=server: server.away != "it is being started")  # type: ignore[misc]
            assert server.away == reason


async def test_headers_of_the_configuration_are_sent_with_each_request() -> None:
    configured = {"headers": {"X-Team": "blue"}, "headers_env": {"X-Api-Key": "KEY_OF_IT"}}
    async with scripted_mcp() as web, running({"KEY_OF_IT": "secret"}, url=web.url, **configured) as server:
        await until(lambda: server.away is None)
    assert {(head.get("x-team"), head.get("x-api-key")) for head in web.heads} == {("blue", "secret")}


async def test_a_program_runs_in_its_folder_with_its_own_environment_alone(tmp_path: Path) -> None:
    code = "import os, json; open('seen', 'w').write(json.dumps(dict(os.environ))); input()"
    environment = {"HOME": "/h", "KEY": "secret", "PASSED": "p", "LANG": "C"}
    configured = {"command": [sys.executable, "-c", code], "env": {"OWN": "o"}, "env_from": ["PASSED"]}
    async with running(environment, **configured, cwd=str(tmp_path)):
        seen = tmp_path / "seen"
        await until(lambda: seen.exists() and seen.read_text().endswith("}"))
    got = json.loads(seen.read_text())
    assert {name: got.get(name) for name in ("HOME", "OWN", "PASSED")} == {"HOME": "/h", "OWN": "o", "PASSED": "p"}
    assert not {"KEY", "MESH_NATS_URL"} & set(got)


def memory_kib(name: str) -> int:
    """A line of this process's status."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def memory_peak_from_here() -> int:
    """What is taken now, in KiB, which `VmHWM` begins with anew: tests before this one may have taken more."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_kib("VmRSS")


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
async def test_a_line_without_end_ends_its_connection_and_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MESSAGE_BYTES_MAX", 4 * 1024 * 1024)
    before = memory_peak_from_here()
    with capture_logs() as logs:
        async with running(**program([tool("flood"), tool("look")])) as server:
            await until(lambda: server.away is None)
            with pytest.raises(ToolBroke) as broke:
                await server.call("flood", {}, UNUSED, idempotent=False)
            assert broke.value.code == "tool-unavailable"
            assert await server.call("look", {}, UNUSED, idempotent=True) == "look done"
    [said] = [entry["error"] for entry in logs if entry["event"] == "mcp.unavailable"]
    assert "a line of more than 4194304 bytes" in said
    assert memory_kib("VmHWM") - before < 64 * 1024


async def test_an_answer_over_http_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tool_runner.mcp_servers.http.MESSAGE_BYTES_MAX", 100_000)
    async with scripted_mcp() as web, running(url=web.url) as server:
        await until(lambda: server.away is None)
        web.results["look"] = {"content": [{"type": "text", "text": "x" * 200_000}]}
        with pytest.raises(ToolBroke, match="more than 100000 bytes"):
            await server.call("look", {}, UNUSED, idempotent=True)
        web.results.clear()
        assert await server.call("look", {}, UNUSED, idempotent=True) == "look done"
