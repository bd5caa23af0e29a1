"""A mesh full of canaries: the secrets, servers that repeat them in the worst places, and the work that is driven."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support import leaking_mcp
from tests.support.canaries import Written, made, whsec
from tests.support.model_server import Exchange, chunk
from tests.support.waiting import until

PLANTED = {
    **{name: made(name) for name in ("provider_variable", "provider_file", "broker_password", "collector")},
    **{name: made(name) for name in ("program_variable", "program_file", "server_key", "server_header", "server_url")},
    **{name: whsec(name) for name in ("hook_variable", "hook_file")},
    **{name: made(name) for name in ("hook_path", "hook_query", "rotated_key")},
    **{name: made(name) for name in ("wrong_key", "wrong_token", "key_in_query", "wrong_link", "body_of_a_key")},
    "given_away": made("given_away"),
}
CALLED = ("files_breaks", "files_fails", "files_odd", "files_dies", "given_own", "web_look")
SAYS = ("refused", "named", "in the stream", "unavailable")
"""What a provider is asked to do with the key."""


@dataclass
class House:
    """What was planted and driven, and all that was written."""

    written: Written = field(default_factory=Written)
    planted: dict[str, str] = field(default_factory=lambda: dict(PLANTED))
    """With those that only a running mesh makes."""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    seen_by: dict[str, list[str]] = field(default_factory=dict)
    """Who was shown a secret, and what: it must have been used to be in danger."""


async def echoing(house: House, exchange: Exchange) -> None:
    """A provider that repeats its caller's key."""
    key = exchange.headers.get("x-api-key") or exchange.headers["authorization"]
    house.seen_by.setdefault("provider", []).append(key)
    asked = json.dumps(exchange.body["messages"])
    error = {"type": "invalid_request_error", "code": "nope", "message": f"you sent {key}: {dict(exchange.headers)}"}
    bare = key.removeprefix("Bearer ")
    if "named" in asked:
        return await exchange.refuse(400, {"error": {"code": bare, "type": bare, "message": "no"}}, x_key=bare)
    if "unavailable" in asked:
        return await exchange.refuse(503, f"<html>{key} {bare}</html>".encode())
    if "in the stream" in asked:
        await exchange.begin()
        await exchange.say(chunk({"content": "Hel"}), {"error": error})
        return await exchange.end()
    return await exchange.refuse(401, {"error": error})


def configured(house_folder: Path, provider: str, server: str, hook: str) -> str:
    """The mesh.toml with every key that names a secret."""
    program = [sys.executable, "-m", leaking_mcp.__name__]
    free = "".join(f'[tools.{name}]\napproval = "never"\n' for name in CALLED)
    return f"""
[providers.one]
kind = "openai"
base_url = "{provider}"
api_key_env = "PROVIDER_VARIABLE"
away_seconds = 0.5
[providers.two]
kind = "anthropic"
base_url = "{provider.removesuffix("/v1")}"
api_key_file = "secrets/provider_file"
away_seconds = 0.5
[auth]
mode = "keys"
[pools.default]
[pools.one]
provider = "one"
model = "m"
[pools.two]
provider = "two"
model = "m"
[tools.files_give]
approval = "always"
{free}[mcp.files]
command = {json.dumps(program)}
cwd = "{Path.cwd()}"
env_from = ["LEAKED_BY_VARIABLE"]
env_file = {{ LEAKED_BY_FILE = "secrets/program_file" }}
[mcp.given]
command = {json.dumps(program)}
cwd = "{Path.cwd()}"
env_file = {{ LEAKED_BY_FILE = "{house_folder}/secrets/given_away" }}
[mcp.web]
url = "{server}?token={PLANTED["server_url"]}"
api_key_file = "secrets/server_key"
headers_env = {{ X-Key = "SERVER_HEADER" }}
[webhooks.variable]
url = "{hook}/{PLANTED["hook_path"]}?key={PLANTED["hook_query"]}"
secret_env = "HOOK_VARIABLE"
allow_private = true
on = ["ended"]
[webhooks.file]
url = "{hook}/{PLANTED["hook_path"]}"
secret_file = "secrets/hook_file"
allow_private = true
on = ["ended", "approval"]
"""


async def knock(house: House, client: httpx.AsyncClient, edge: httpx.AsyncClient, key: str) -> None:
    """Come with credentials that are none, in all places, and with a link."""
    task = house.tasks["!say 3"]["id"]
    identifier = key.split("_")[1]
    for shown in (
        f"Bearer tm_{identifier}_{PLANTED['wrong_key']}",
        f"Bearer tm_{PLANTED['wrong_key']}",
        f"Bearer eyJhbGciOiJub25lIn0.{PLANTED['wrong_token']}.x",
        f"Basic {PLANTED['wrong_token']}",
    ):
        for side, path in ((client, "/v1/tasks"), (edge, f"/v1/tasks/{task}/events")):
            assert (await side.get(path, headers={"Authorization": shown})).status_code == 401
    for query in (f"key={PLANTED['key_in_query']}", f"access_token={PLANTED['key_in_query']}"):
        for side, path in ((client, "/v1/tasks"), (edge, f"/v1/tasks/{task}/events")):
            assert (await side.get(f"{path}?{query}", headers={"Authorization": ""})).status_code == 401
    refused = await edge.get(f"/v1/tasks/{task}/events?link={PLANTED['wrong_link']}", headers={"Authorization": ""})
    assert refused.status_code == 401, refused.text
    wrong = await client.post("/v1/tasks", json={"input": 7, "secret": PLANTED["body_of_a_key"]})
    assert wrong.status_code == 400, wrong.text
    link = (await client.post(f"/v1/tasks/{task}/links", json={})).json()["url"]
    house.planted["link"] = link.partition("link=")[2]
    followed = await edge.get(f"/v1/tasks/{task}/events?{link.partition('?')[2]}", headers={"Authorization": ""})
    assert "task.completed" in followed.text


async def drive(house: House, client: httpx.AsyncClient, broken: Any) -> None:
    """Every kind of work, its failures among them."""

    async def begin(name: str, **request: Any) -> str:
        posted = await client.post("/v1/tasks", json={"input": name, **request})
        assert posted.status_code == 202, posted.text
        house.tasks[name] = posted.json()
        return str(house.tasks[name]["id"])

    async def over(name: str) -> bool:
        house.tasks[name] = (await client.get(f"/v1/tasks/{house.tasks[name]['id']}")).json()
        return house.tasks[name]["status"] in ("completed", "failed", "cancelled", "dead_lettered")

    tools = ["files_give", *CALLED]

    for pool in ("one", "two"):
        for says in SAYS:
            await begin(f"{pool}: {says}", pool=pool, metadata={"says": says})
    for name in CALLED:
        await begin(f"!call {name} {{}}", tools=tools)
    await begin("!say 3")
    for name in list(house.tasks):
        await until(lambda name=name: over(name), 20)  # type: ignore[misc]  # each waits for its own
    broken()
    await begin("!call web_look {}\n", tools=tools)
    waiting = await begin("!call files_give {}", tools=tools)

    async def asks() -> bool:
        return bool((await client.get(f"/v1/tasks/{waiting}")).json().get("approvals"))

    await until(asks)
    decision = {"kind": "approval", "call": "1-0", "decision": "approved"}
    answered = await client.post(f"/v1/tasks/{waiting}/inputs", json=decision)
    assert answered.status_code < 300, answered.text
    cancelled = await begin("!rate 1\n!say 1000")
    await client.post(f"/v1/tasks/{cancelled}/cancel")
    for path in (
        "/v1/tasks",
        "/v1/tasks/counts",
        "/v1/dead-letters",
        f"/v1/tasks/{cancelled}",
        "/v1/tasks/none",
        "/v1/tools",
        "/health/ready",
        "/v1/pools",
        "/v1/pools/default/load",
    ):
        await client.get(path)

    for name in list(house.tasks):
        await until(lambda name=name: over(name), 30)  # type: ignore[misc]  # each waits for its own
    for letter in (await client.get("/v1/dead-letters")).json()["dead_letters"]:
        await client.get(f"/v1/dead-letters/{letter['task']}")
    replayed = await client.post(f"/v1/dead-letters/{house.tasks['one: refused']['id']}/replay", json={})
    assert replayed.status_code < 300, replayed.text


async def repeating(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A collector that refuses, and repeats what it was shown."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = {name.lower(): value for name, _, value in (line.partition(b": ") for line in head.split(b"\r\n"))}
        await reader.readexactly(int(lines[b"content-length"]))
        writer.write(b"HTTP/1.1 400 Bad\r\ncontent-length: %d\r\n\r\n%b" % (len(head), head))
        await writer.drain()


def variables_of(file: Path, url: Path, endpoint: str, refusing: str) -> dict[str, str]:
    """What the mesh is started with. `refusing` takes no metrics."""
    return {
        "MESH_CONFIG": str(file),
        "MESH_NATS_URL_FILE": str(url),
        "PROVIDER_VARIABLE": PLANTED["provider_variable"],
        "LEAKED_BY_VARIABLE": PLANTED["program_variable"],
        "SERVER_HEADER": PLANTED["server_header"],
        "HOOK_VARIABLE": PLANTED["hook_variable"],
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": refusing,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{PLANTED['collector']}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
        "MESH_OPS_ADDRESS": "127.0.0.1:0",
        "MESH_LOG_LEVEL": "debug",
        "MESH_MAX_TRIES": "2",
        "MESH_PACK_AFTER_HOURS": "0.0003",
    }
