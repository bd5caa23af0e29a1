"""Servers whose tools change while they are connected, and listeners that servers refuse, drop and forget."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest
from structlog.testing import capture_logs

from contracts.retries import RetryPolicy
from tests.support.mcp_connection import running
from tests.support.patience import within
from tests.support.processes import ROOT
from tests.support.scripted_mcp import CHANGED, LISTEN, MODERN, Listening, ScriptedMcp, scripted_mcp, tool
from tests.support.waiting import until
from tool_runner.mcp_servers import changes, session
from tool_runner.mcp_servers.session import McpServer
from tool_runner.tools.tool import ToolBroke

pytestmark = pytest.mark.integration

UNUSED: Any = None
REFUSALS: list[Listening] = [
    "405 Method Not Allowed",
    "404 Not Found",
    "500 Internal Server Error",
    "no method",
    "grants nothing",
    "closes",
    "breaks",
    "hangs up",
    "packs",
]


class Delays(RetryPolicy, frozen=True, kw_only=True):
    """Waits for nothing, and keeps in `asked` after how many failures it was asked."""

    asked: list[int]

    def delay_seconds(self, tries: int, random_fraction: float, retry_after_seconds: float | None = None) -> float:
        self.asked.append(tries)
        return 0.0


@pytest.fixture(autouse=True)
def delays(monkeypatch: pytest.MonkeyPatch) -> Delays:
    """Nothing is heard by the usual look at the list, and who is refused asks again at once."""
    monkeypatch.setattr(session, "CHECK_SECONDS", 1e6)
    policy = Delays(1, 0.0, 0.0, asked=[])
    monkeypatch.setattr(changes, "LISTEN_POLICY", policy)
    return policy


async def listening(web: ScriptedMcp, server: McpServer) -> None:
    """Wait until the server is connected, and is heard: the list that follows that has been read."""
    await until(lambda: server.away is None and web.listeners == 1 and web.methods.count("tools/list") >= 2)


async def hears_of(web: ScriptedMcp, server: McpServer, name: str) -> None:
    """A change that is told is heard."""
    web.tools = [*web.tools, tool(name)]
    await web.say(CHANGED)
    await until(lambda: name in server.tools)


@pytest.mark.parametrize("version", ["2025-11-25", MODERN])
async def test_a_tool_that_comes_while_connected_is_offered(version: str) -> None:
    async with scripted_mcp(version) as web, running(url=web.url) as server:
        await listening(web, server)
        await hears_of(web, server, "new")
        assert await server.call("new", {}, UNUSED, idempotent=True) == "new done"
        web.tools = [tool("new")]
        await web.say(CHANGED)
        await until(lambda: list(server.tools) == ["new"])


async def test_a_change_between_the_list_and_the_listening_is_not_missed() -> None:
    async with scripted_mcp(MODERN) as web:

        async def change() -> None:
            web.before_list = None
            web.tools = [*web.tools, tool("new")]

        web.before_list = change
        async with running(url=web.url) as server:
            await until(lambda: list(server.tools) == ["look"])
            await until(lambda: list(server.tools) == ["look", "new"])


async def test_a_change_that_is_told_while_a_connection_is_made_is_not_missed() -> None:
    script = json.dumps({"tools": [tool("look")], "changes_early": True})
    command = [sys.executable, "-m", "tests.support.scripted_mcp", script]
    async with running(command=command, env={"PYTHONPATH": str(ROOT)}) as server:
        await until(lambda: list(server.tools) == ["look", "new"])


@pytest.mark.parametrize("version", ["2025-11-25", MODERN])
async def test_a_stream_that_breaks_is_opened_again_and_what_changed_meanwhile_is_heard(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "STEADY_SECONDS", 0.0)
    async with scripted_mcp(version) as web, running(url=web.url) as server:
        await listening(web, server)
        web.tools = [*web.tools, tool("unheard")]
        web.drop_listeners()
        await until(lambda: "unheard" in server.tools)
        await until(lambda: web.listeners == 1)
        await hears_of(web, server, "heard")
        assert server.away is None


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_server_that_refuses_is_used_as_ever_and_asked_again_ever_less(
    refusal: Listening, delays: Delays
) -> None:
    with capture_logs() as logs:
        async with scripted_mcp(MODERN) as web:
            web.to_listening = refusal
            async with running(url=web.url) as server:
                await until(lambda: len(delays.asked) >= 5)
                assert delays.asked[:5] == [1, 2, 3, 4, 5]
                assert await server.call("look", {}, UNUSED, idempotent=False) == "look done"
                web.to_listening = "streams"
                await until(lambda: web.listeners == 1)
                await hears_of(web, server, "new")
                assert web.methods.count("server/discover") == 1
    events = [entry["event"] for entry in logs]
    assert (events.count("mcp.changes_unheard"), events.count("mcp.unavailable")) == (1, 0)


async def test_delays_begin_anew_behind_a_stream_that_has_lasted(
    delays: Delays, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted_mcp(MODERN) as web:
        web.to_listening = "405 Method Not Allowed"
        async with running(url=web.url) as server:
            await until(lambda: len(delays.asked) >= 3)
            web.to_listening = "streams"
            await until(lambda: web.listeners == 1)
            await hears_of(web, server, "new")
            monkeypatch.setattr(changes, "STEADY_SECONDS", 0.0)
            web.drop_listeners()
            await until(lambda: delays.asked[-1] == 1)


async def test_a_call_goes_on_while_nobody_can_be_asked_to_listen_to() -> None:
    async with scripted_mcp(MODERN) as web, running(url=web.url) as server:
        await listening(web, server)
        called, may_answer = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            called.set()
            await may_answer.wait()

        web.before_result = wait
        call = asyncio.create_task(server.call("look", {}, UNUSED, idempotent=False))
        async with within(20):
            await called.wait()
        web.to_listening = "hangs up"
        web.drop_listeners()
        await until(lambda: web.methods.count(LISTEN) >= 4)
        may_answer.set()
        async with within(20):
            assert await call == "look done"


async def test_a_refusal_to_be_listened_to_is_not_told_as_the_reason_of_something_else() -> None:
    async with scripted_mcp(MODERN) as web, running(url=web.url) as server:
        web.to_listening = "405 Method Not Allowed"
        await until(lambda: server.away is None)

        async def hang_up() -> None:
            asked = web.methods.count(LISTEN)
            await until(lambda: web.methods.count(LISTEN) >= asked + 2)
            raise ConnectionError

        web.before_result = hang_up
        with pytest.raises(ToolBroke) as broke:
            await server.call("look", {}, UNUSED, idempotent=False)
        await until(lambda: server.away is not None)
        assert "405" not in f"{broke.value} {server.away}"


@pytest.mark.parametrize("version", ["2025-11-25", MODERN])
async def test_nothing_listens_once_a_connection_has_ended(version: str) -> None:
    async with scripted_mcp(version) as web:
        before = asyncio.all_tasks()
        async with running(url=web.url) as server:
            await listening(web, server)
        await until(lambda: web.listeners == 0)
        # The server's own tasks end with its connections.
        await until(lambda: asyncio.all_tasks() <= before)


async def test_nothing_listens_once_a_connection_has_ended_that_is_not_acknowledged() -> None:
    async with scripted_mcp(MODERN) as web:
        web.to_listening = "is silent"
        before = asyncio.all_tasks()
        async with running(url=web.url) as server:
            await until(lambda: server.away is None and LISTEN in web.methods)
        await until(lambda: asyncio.all_tasks() <= before)


async def test_who_is_never_acknowledged_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "ACKNOWLEDGED_SECONDS_MAX", 0.1)
    async with scripted_mcp(MODERN) as web:
        web.to_listening = "is silent"
        async with running(url=web.url) as server:
            await until(lambda: web.methods.count(LISTEN) >= 2)
            monkeypatch.setattr(changes, "ACKNOWLEDGED_SECONDS_MAX", 1e6)
            web.to_listening = "streams"
            await until(lambda: web.listeners == 1)
            await hears_of(web, server, "new")
