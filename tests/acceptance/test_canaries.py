"""Canaries in every secret that there is: all kinds of work are done and fail, and no canary is anywhere afterwards.

Providers, MCP servers, an endpoint and a collector repeat what they were shown, in the worst places. Every process logs
at level debug, and exports spans and metrics. Then everything is searched: logs, streams, buckets, packs, the store's
files, spans, metrics, arguments of processes, answers over HTTP, and what each command of meshctl prints.

Where the line is: what a tool returns and what a model says is data, and stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh.broker.connection import connect
from mesh.configuration.settings import Settings
from tests.support import canaries
from tests.support.broker import Broker
from tests.support.canaries import made
from tests.support.canary_mesh import PLANTED, House, configured, drive, echoing, knock, repeating, variables_of
from tests.support.http_client import PatientClient
from tests.support.listening import listening
from tests.support.model_server import model_server
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.scripted_mcp import scripted_mcp, tool
from tests.support.up import ENVIRONMENT, MESHCTL, Up, meshctl, up
from tests.support.waiting import until
from tests.support.webhook_receiver import webhook_receiver

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

ALLOWED = (
    # What a tool returns is data: it is in the journal, in what is made of that, and with the client.
    ("given_away", r"stream (EVENTS|KV_tasks|DEAD_LETTERS)|packs|wire|http|store .*|meshctl (watch|get|export).*"),
    # The copy of mesh.toml is the operator's own file: what is written into a URL there is there.
    ("link", "http"),
    *((name, r"home mesh\.toml") for name in ("hook_path", "hook_query", "server_url")),
)
HEARD = [f"{name}.>" for name in ("tasks", "turns", "tools", "control", "events", "live", "dead", "timers", "signals")]
HEARD += ["stats.>", "$KV.>", "$O.>"]
"""Not `>`: who asks where nobody serves is told so at once, but not where somebody listens."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("canaries")
    house = House()
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    for name in ("provider_file", "program_file", "server_key", "hook_file", "given_away"):
        (secrets / name).write_text(f"{PLANTED[name]}\n")
    users = f"""authorization {{ users: [
        {{ user: mesh, password: {PLANTED["broker_password"]} }}, {{ user: listener, password: listens }} ] }}"""
    broker = Broker(folder / "nats", extra=users)
    (secrets / "nats_url").write_text(broker.url.replace("//", f"//mesh:{PLANTED['broker_password']}@"))
    async with AsyncExitStack() as stack:
        receiver = await OtlpReceiver(folder).start()
        stack.push_async_callback(receiver.stop)
        await broker.start()
        stack.push_async_callback(broker.stop)
        wire = await tapped(house, broker, stack)
        provider = await stack.enter_async_context(model_server(lambda exchange: echoing(house, exchange)))
        web = await stack.enter_async_context(scripted_mcp())
        told = f"Bearer {PLANTED['server_key']} and {PLANTED['server_header']}"
        web.tools = [tool("look", description="looks")]
        web.results["look"] = {"isError": True, "content": [{"type": "text", "text": told}]}
        hook = await stack.enter_async_context(webhook_receiver())
        # One try each time: what is wrong with it is in the status line.
        hook.answers = [f"404 {PLANTED['hook_file']} {PLANTED['hook_query']}"] * 1_000
        collector = await stack.enter_async_context(listening(repeating))
        file = folder / "mesh.toml"
        file.write_text(configured(folder, provider.base_url, web.url, hook.url.partition("/hook")[0] + "/hook"))
        variables = variables_of(
            file, secrets / "nats_url", receiver.endpoint, f"http://127.0.0.1:{collector}/v1/metrics"
        )
        home = folder / "home"
        async with up(home, variables=variables) as mesh:
            environment = {**ENVIRONMENT, **variables, "MESH_HOME": str(home)}
            recorder = {"response": [lambda response: recorded(house, response)]}
            url = mesh.ready["ingress_url"]
            rights = ["--any-tenant", "--scopes", "submit,read,answer,operate", "--json"]
            key = json.loads((await meshctl("keys", "create", *rights, environment=environment)).stdout)["key"]
            house.planted["api_key"] = key.split("_", 2)[2]
            house.planted["operators_key"] = (home / "operator.key").read_text().strip().split("_", 2)[2]
            environment["MESH_API_KEY"] = key
            shown = {"Authorization": f"Bearer {key}"}
            async with PatientClient(base_url=url, event_hooks=recorder, timeout=40, headers=shown) as client:

                def broken() -> None:
                    web.status = f"401 {told}"

                await drive(house, client, broken)
                (secrets / "provider_file").write_text(PLANTED["rotated_key"])
                await canaries.printed(house.written, MESHCTL, [["reload"]], environment)
                await client.post("/v1/tasks", json={"input": "two: refused", "pool": "two"})
                await until(lambda: any(PLANTED["rotated_key"] in key for key in house.seen_by["provider"]))
                where = mesh.ready["edge_url"]
                async with PatientClient(base_url=where, event_hooks=recorder, timeout=40, headers=shown) as edge:
                    await knock(house, client, edge, key)
                    for record in house.tasks.values():
                        if record["status"] in ("completed", "failed"):
                            await edge.get(f"/v1/tasks/{record['id']}/events")
            canaries.command_lines(house.written, mesh.all_pids)
            await canaries.printed(house.written, MESHCTL, commands(house), environment)
            await figures(house, mesh)
            house.seen_by |= {
                "hook": [each.headers["webhook-signature"] for each in hook.received],
                "server": [json.dumps(head) for head in web.heads],
            }
            async with connect(Settings(nats_url=(secrets / "nats_url").read_text()), "test") as connection:
                await until(lambda: packed(connection))
                await canaries.stored(house.written, connection)
        await wire.close()
        left_behind(house, mesh, broker)
        house.written.add("spans", json.dumps(receiver.spans()), json.dumps(receiver.metrics()))
    yield house


def left_behind(house: House, mesh: Up, broker: Broker) -> None:
    """Take what is in files, once all has ended."""
    house.written.add("printed", json.dumps(mesh.ready), mesh.rest, mesh.log.read_bytes())
    canaries.files(house.written, "home", mesh.home, but=[mesh.home / "operator.key"])
    canaries.files(house.written, "store", broker.store)
    house.written.add("broker's log", broker.log.read_bytes())


async def tapped(house: House, broker: Broker, stack: AsyncExitStack) -> Client:
    """Somebody who hears all that goes over the broker, also what is stored nowhere."""

    async def heard(message: Msg) -> None:
        house.written.add("wire", message.subject, json.dumps(message.headers or {}), message.data)

    client = Client()
    await client.connect(broker.url, user="listener", password="listens")
    for subject in HEARD:
        await client.subscribe(subject, cb=heard, pending_msgs_limit=-1, pending_bytes_limit=-1)
    return client


async def recorded(house: House, response: httpx.Response) -> None:
    """Keep what was answered over HTTP."""
    await response.aread()
    house.written.add("http", str(response.headers), response.content)


async def figures(house: House, mesh: Up) -> None:
    """Fetch what every process tells its operators."""
    lines = [json.loads(line) for path in (mesh.home / "logs").glob("*.log") for line in read_lines(path)]
    addresses = {line["ops"] for line in lines if line.get("event") == "service.ready"}
    assert len(addresses) >= 5
    async with httpx.AsyncClient() as client:
        for address in sorted(addresses):
            for path in ("metrics", "health/ready", "health/live"):
                house.written.add("operators", (await client.get(f"http://{address}/{path}")).content)


def read_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith("{")]


async def packed(connection: Any) -> bool:
    return int((await connection.requests.api("STREAM.INFO.ARCHIVE"))["state"]["messages"]) > 0


def commands(house: House) -> list[list[str]]:
    """Every command that looks at a mesh, at a configuration or at a task."""
    ids = [record["id"] for record in house.tasks.values()]
    dead = house.tasks["one: refused"]["id"]
    return [
        ["doctor"],
        ["config", "show", "--all"],
        ["config", "show", "--running"],
        ["config", "check"],
        ["workers"],
        ["lanes"],
        ["providers"],
        ["tools"],
        ["list"],
        ["list", "--counts"],
        ["get", ids[-1]],
        ["watch", ids[-1]],
        ["why", dead],
        ["dead-letters", "list", "--all"],
        ["dead-letters", "show", dead],
        ["storage"],
        ["streams", "plan"],
        ["triggers", "list"],
        ["repair", "--dry-run", "--all"],
        ["export", ids[-1]],
        ["reload"],
        ["keys", "list"],
        ["permissions"],
        ["--help"],
        ["up", "--help"],
    ]


async def test_no_canary_is_anywhere(house: House) -> None:
    assert house.written.leaks(house.planted, ALLOWED) == []


async def test_every_secret_was_used(house: House) -> None:
    providers, servers = " ".join(house.seen_by["provider"]), " ".join(house.seen_by["server"])
    assert all(PLANTED[name] in providers for name in ("provider_variable", "provider_file", "rotated_key"))
    assert all(PLANTED[name] in servers for name in ("server_key", "server_header"))
    assert house.seen_by["hook"]


async def test_what_a_tool_returns_is_data_and_stays_as_it_is(house: House) -> None:
    assert house.written.has("packs", PLANTED["given_away"])
    assert house.written.has("http", PLANTED["given_away"])


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("stream EVENTS", "task.dead_lettered"),
        ("stream DEAD_LETTERS", "provider-unauthorized"),
        ("stream DEAD_LETTERS", "webhook-refused"),
        ("stream KV_tasks", '"status"'),
        ("stream KV_tools", "files_give"),
        ("packs", "task.completed"),
        ("wire", "live.events."),
        ("http", "[key]"),
        ("http", "[secret]"),
        ("home logs/tool_runner-1.log", "[secret]"),
        ("home logs/.*", "telemetry.export_failed"),
        ("home index/.*", ""),
        ("spans", "invoke_agent|turn"),
        ("operators", "taskmesh_"),
        ("arguments", "leaking_mcp"),
        ("meshctl config show", "secrets/provider_file"),
        ("meshctl doctor", "mcp"),
        ("meshctl dead-letters show", "[key]"),
        ("meshctl reload", "secrets_changed"),
        ("meshctl keys list", "answer"),
        ("stream KV_keys", "hash"),
        ("home logs/.*", '"unauthorized"'),
        ("printed", "mesh.ready"),
        ("broker's log", "JetStream"),
        ("store .*", "events."),
    ],
)
async def test_the_search_reads_what_is_there(house: House, place: str, text: str) -> None:
    assert any(house.written.has(place, each) for each in text.split("|")), sorted(house.written.places)


async def test_a_canary_is_found_in_any_form() -> None:
    import base64  # noqa: PLC0415 - here alone

    planted = {"it": made("it")}
    for told in (made("it"), made("it").upper(), made("it").encode().hex(), f"%20{made('it')}"):
        assert canaries.found_in(told.encode(), planted) == ["it"]
    for before in ("", "a", "ab", "abc:"):
        assert canaries.found_in(base64.b64encode(f"{before}{made('it')}:x".encode()), planted) == ["it"], before
    assert canaries.found_in(made("other").encode(), planted) == []
