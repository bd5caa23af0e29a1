"""Secrets in files are replaced while a mesh works: by `meshctl reload`, for all processes or for none."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.http_client import PatientClient
from tests.support.model_server import DONE, Exchange, chunk, model_server
from tests.support.scripted_mcp import scripted_mcp, tool
from tests.support.up import FREE_PORTS, meshctl, up
from tests.support.waiting import until

pytestmark = pytest.mark.acceptance

OLD, NEW = "sk-old-0123456789", "sk-new-0123456789"
AT_ONCE = 3


async def test_a_key_a_secret_and_a_token_are_replaced_under_load_and_no_task_fails(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "key").write_text(OLD)
    (secrets / "token").write_text(OLD)
    good = {OLD}
    refused: list[str] = []

    async def answer(exchange: Exchange) -> None:
        key = exchange.headers["authorization"].removeprefix("Bearer ")
        if key not in good:
            refused.append(key)
            await exchange.refuse(401, {"error": {"code": "invalid_api_key"}})
            return
        await exchange.begin()
        for _ in range(3):
            await exchange.say(chunk({"content": "tok "}))
        await exchange.say(chunk(finish_reason="stop"))
        await exchange.send(DONE)
        await exchange.end()

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(model_server(answer))
        mcp = await stack.enter_async_context(scripted_mcp())
        mcp.tools = [tool("look", annotations={"readOnlyHint": True})]
        file = tmp_path / "mesh.toml"
        file.write_text(
            f"""
            providers.one = {{ kind = "openai", base_url = "{server.base_url}", api_key_file = "secrets/key" }}
            [pools.default]
            provider = "one"
            model = "m"
            [pools.scripted]
            [mcp.web]
            url = "{mcp.url}"
            api_key_file = "secrets/token"
            """
        )
        mesh = await stack.enter_async_context(up(tmp_path / "home", *FREE_PORTS, variables={"MESH_CONFIG": str(file)}))
        client = await stack.enter_async_context(PatientClient(base_url=mesh.ready["ingress_url"], timeout=40))
        statuses: list[str] = []
        stopping = asyncio.Event()

        async def work() -> None:
            while not stopping.is_set():
                answered = await client.post("/v1/tasks", json={"input": "hi"}, headers={"Prefer": "wait=30"})
                statuses.append(answered.json()["status"])

        async def reload(status: int = 0) -> list[dict[str, Any]]:
            ended = await meshctl("reload", environment=mesh.environment)
            assert ended.returncode == status, ended.stdout
            return [json.loads(line) for line in ended.stdout.splitlines()]

        working = [asyncio.create_task(work()) for _ in range(AT_ONCE)]
        await until(lambda: len(statuses) > AT_ONCE)
        # Both hold at the provider, as an operator has it there, until all processes have the new one.
        good.add(NEW)
        (secrets / "key").write_text(f"{NEW}\n")
        (secrets / "token").unlink()
        objected = await reload(status=1)
        assert [line["event"] for line in objected] == ["reload.objection", "reload.refused"]
        assert f"mcp.web.api_key_file: the file {secrets}/token is not there" in objected[0]["reason"]
        (secrets / "token").write_text(NEW)
        [taken] = await reload()
        assert (taken["changed"], taken["secrets_changed"], taken["late"]) == (0, 2, []), "a worker and a runner"
        seen = len(statuses) + AT_ONCE  # Turns that had begun have ended by then.
        await until(lambda: len(statuses) > seen)
        good.remove(OLD)
        await until(lambda: len(statuses) > seen + 2 * AT_ONCE)
        stopping.set()
        await asyncio.gather(*working)
        assert (set(statuses), refused) == ({"completed"}, [])
        before = len(mcp.heads)
        called = {"input": "!call web_look {}", "tools": ["web_look"], "pool": "scripted"}
        answered = await client.post("/v1/tasks", json=called, headers={"Prefer": "wait=30"})
        assert answered.json()["status"] == "completed", answered.json()
        assert {head["authorization"] for head in mcp.heads[before:]} == {f"Bearer {NEW}"}
        [same] = await reload()
        assert same["secrets_changed"] == 0
