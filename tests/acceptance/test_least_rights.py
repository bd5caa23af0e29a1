"""A mesh on a broker that enforces the rendered lists: all of it works, and what is missing shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest

from contracts import guests
from mesh.broker.connection import connect
from mesh.broker.direct_get import last_from_leader
from tests.support.broker import Broker
from tests.support.commands import meshctl
from tests.support.http_client import PatientClient
from tests.support.patience import stretched
from tests.support.processes import Mesh, enforced_mesh, serving
from tests.support.waiting import until
from tests.support.webhook_receiver import SECRET, webhook_receiver

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio]

SERVICES = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
OTHER_TASK = "01j00000000000000000000000"
HEARD = "live.events.*.*.*"


async def test_a_day_of_all_kinds_of_work_and_of_an_operator_is_refused_nothing(tmp_path: Path) -> None:
    """What the broker refuses anybody fails the test at its end."""
    file = tmp_path / "mesh.toml"
    async with webhook_receiver() as receiver:
        file.write_text(
            '[pools.default]\n[critic]\ncodes = ["provider-error"]\n'
            f'[webhooks.ops]\nurl = "{receiver.url}"\nallow_private = true\n'
            'secret_env = "HOOK_SECRET"\non = ["ended"]\n'
        )
        variables = {
            "MESH_CONFIG": str(file),
            "HOOK_SECRET": SECRET,
            "MESH_MAX_TRIES": "1",
            "MESH_PACK_AFTER_HOURS": "0.0003",
            "MESH_DELTA_RETENTION_HOURS": "0.0001",
        }
        sender = guests.signals("default")
        async with (
            enforced_mesh(tmp_path, SERVICES, [sender], **variables) as mesh,
            PatientClient(base_url=mesh.ingress_url) as client,
            connect(mesh.settings, "test") as connection,
        ):
            await _work(mesh, client)
            # A signal from outside, by who may do nothing else.
            rule = (
                "--name",
                "order",
                "--signal",
                "stock.>",
                "--task",
                '{"input": "!say 1", "metadata": {"from": "rule"}}',
            )
            await meshctl(mesh, "triggers", "add", *rule)
            await meshctl(
                mesh, "triggers", "add", "--name", "often", "--schedule", "@every 1h", "--task", '{"input": "x"}'
            )
            outside = await nats.connect(mesh.broker.url_of(sender.user))
            await outside.request("signals.default.stock.zero", b"{}", timeout=stretched(5))
            await outside.close()

            async def is_started() -> bool:
                return bool((await client.get("/v1/tasks?metadata.from=rule&status=completed")).json()["tasks"])

            await until(is_started)
            await meshctl(mesh, "triggers", "remove", "often")
            # What ended is told, and packed, and read from there.
            ended = (await client.get("/v1/tasks?metadata.kept=1")).json()["tasks"][0]["id"]

            async def is_packed() -> bool:
                log = f"events.default.{ended}.log"
                return await last_from_leader(connection.requests, "EVENTS", log) is None

            await until(is_packed)
            assert (await client.get(f"/v1/tasks/{ended}")).json()["status"] == "completed"
            await until(lambda: bool(receiver.received))
            await _operate(mesh, ended, tmp_path)
            assert not mesh.logs_of("broker.error"), mesh.logs_of("broker.error")
            assert not mesh.logs_of("broker.rights_missing")
            assert mesh.tracebacks() == []


@pytest.mark.parametrize("domain", [None, "hub"])
async def test_the_lists_hold_for_the_newer_form_of_acknowledgements_and_at_a_server_of_a_domain(
    tmp_path: Path, domain: str | None
) -> None:
    """A server of the domain takes it out of a subject before it looks at rights: its lists are the plain ones."""
    async with Broker(
        tmp_path / "broker", extra="feature_flags { js_ack_fc_v2: true }", domain=domain, enforces=True
    ) as broker:
        mesh = Mesh(tmp_path, broker, {"MESH_NATS_DOMAIN": domain} if domain else {})
        async with serving(mesh, *SERVICES), PatientClient(base_url=mesh.ingress_url) as client:
            script = '!call calculator {"expression": "6 * 7"}\n!say 3'
            request = {"input": script, "tools": ["calculator"]}
            answer = await client.post("/v1/tasks", json=request, headers={"Prefer": "wait=60"})
            assert answer.json()["status"] == "completed", answer.text
            for url in (mesh.ingress_url, mesh.edge_url):
                status, checks = await readiness(url)
                assert status == 200, checks
            lines = {line["check"]: line for line in await meshctl(mesh, "doctor")}
            assert "rights" not in lines, lines["rights"]
            assert mesh.tracebacks() == []


async def _work(mesh: Mesh, client: PatientClient) -> None:
    """Tasks of each kind, and what people do with them."""

    async def post(**request: Any) -> str:
        answer = await client.post("/v1/tasks", json=request)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def until_status(task: str, *wanted: str) -> dict[str, Any]:
        async def holds() -> bool:
            return (await client.get(f"/v1/tasks/{task}")).json()["status"] in wanted

        await until(holds)
        return dict((await client.get(f"/v1/tasks/{task}")).json())

    streamed = await post(input="!say 30", metadata={"kept": "1"})
    frames = (await client.get(f"{mesh.edge_url}/v1/tasks/{streamed}/events", timeout=stretched(30))).text
    assert "event: task.completed" in frames
    link = (await client.post(f"/v1/tasks/{streamed}/links")).json()["url"]
    assert "event: task.completed" in (await client.get(link, timeout=stretched(30))).text
    large = '!call add {"a": 1, "b": 2}\n!call current_time {}\n!then\n!say 2'
    await until_status(await post(input=large, tools=["add", "current_time"]), "completed")
    sends = '!call send_signal {"name": "a.b", "payload": {}}\n!then\nok'
    approved = await post(input=sends, tools=["send_signal"], approval="always")
    await until_status(approved, "waiting")
    await meshctl(mesh, "approve", approved)
    await until_status(approved, "completed")
    asked = await post(input="!ask Which?\n!then\nok", tools=["ask_user"])
    await until_status(asked, "waiting")
    await meshctl(mesh, "why", asked)
    await meshctl(mesh, "say", asked, "this one")
    await until_status(asked, "completed")
    child = '!call spawn_task {"input": "!say 2"}\n!then\n!say 1'
    await until_status(await post(input=child, tools=["spawn_task"]), "completed")
    hanging = await post(input="!hang 600", deadline_seconds=3000)
    await meshctl(mesh, "cancel", hanging)
    await until_status(hanging, "cancelled")
    gave_up = await post(input="!fail server_error 1000")
    await until_status(gave_up, "dead_lettered")
    await meshctl(mesh, "dead-letters", "list")
    await meshctl(mesh, "dead-letters", "replay", gave_up, "--input", "!say 2")
    await until_status(gave_up, "completed")
    assert (await client.get("/v1/pools")).status_code == 200
    assert (await client.get("/v1/pools/default/load")).status_code == 200
    assert (await client.get("/v1/tools")).status_code == 200


async def _operate(mesh: Mesh, task: str, tmp_path: Path) -> None:
    """What an operator does."""
    lines = {line["check"]: line for line in await meshctl(mesh, "doctor")}
    assert "rights" not in lines, lines["rights"]
    assert lines["streams"]["status"] == "ok", lines["streams"]
    for arguments in (
        ("streams", "plan"),
        ("streams", "apply"),
        ("workers",),
        ("lanes",),
        ("providers",),
        ("tools",),
        ("storage",),
        ("list",),
        ("repair",),
        ("export", task),
        ("triggers", "list"),
        ("keys", "create", "--tenant", "default", "--scopes", "read"),
        ("keys", "list"),
        ("keys", "rotate-links"),
        ("reload",),
        ("permissions", "ingress", "--format", "json"),
    ):
        await meshctl(mesh, *arguments)
    # A task that this mesh has not, as another's.
    text = json.dumps((await meshctl(mesh, "export", task))[0]).replace(task, OTHER_TASK)
    file = tmp_path / "exported.jsonl"
    file.write_text(text + "\n")
    await meshctl(mesh, "import", str(file))
    [exported] = await meshctl(mesh, "export", OTHER_TASK)
    assert exported["task"] == OTHER_TASK
    key = (await meshctl(mesh, "keys", "list"))[0]["id"]
    rotated = await meshctl(mesh, "keys", "rotate", key)
    await meshctl(mesh, "keys", "revoke", rotated[0]["id"])
    await meshctl(mesh, "triggers", "test", "--name", "order", "--payload", "{}")
    told = await meshctl(mesh, "workers")
    worker = next(line["worker"] for line in told if line.get("service") == "inference_worker")
    await meshctl(mesh, "drain", worker)


async def readiness(url: str) -> tuple[int, list[dict[str, Any]]]:
    """The status and the checks of a service."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{url}/health/ready")
        return answer.status_code, answer.json()["checks"]


def url_of(mesh: Mesh, service: str) -> str:
    """Where an HTTP service answers."""
    return mesh.ingress_url if service == "ingress" else mesh.edge_url


@pytest.mark.parametrize(
    ("service", "subject", "verb"),
    [
        ("ingress", HEARD, "subscribe"),
        ("stream_edge", HEARD, "subscribe"),
        ("ingress", "control.approval.*", "publish"),
    ],
)
async def test_an_http_service_is_not_ready_without_a_right_that_it_needs_and_is_once_it_has_it(
    tmp_path: Path, service: str, subject: str, verb: str
) -> None:
    broker = Broker(tmp_path / "broker", enforces=True, may_refuse=True)
    broker.take_away({service: {subject}})
    async with broker:
        mesh = Mesh(tmp_path, broker, {})
        async with serving(mesh, service):
            status, checks = await readiness(url_of(mesh, service))
            assert status == 503, checks
            assert {"name": "rights", "ok": False, "detail": f"the broker's user may not {verb} to {subject}"} in checks
            [line] = mesh.logs_of("broker.rights_missing")
            assert subject in str(line["missing"])
            broker.take_away({})

            async def is_ready() -> bool:
                return (await readiness(url_of(mesh, service)))[0] == 200

            await until(is_ready)
            assert mesh.logs_of("broker.rights_complete")


async def test_a_right_that_is_taken_away_while_a_service_runs_shows_though_the_broker_tells_no_lists(
    tmp_path: Path,
) -> None:
    """By what is refused: a stream is asked for, and stands still."""
    broker = Broker(tmp_path / "broker", enforces=True, may_refuse=True)
    broker.take_away({"stream_edge": {HEARD, "$SYS.REQ.USER.INFO"}})
    async with broker:
        mesh = Mesh(tmp_path, broker, {})
        async with serving(mesh, "ingress", "stream_edge"):
            assert (await readiness(mesh.edge_url))[0] == 200
            async with httpx.AsyncClient() as client:
                task = (await client.post(f"{mesh.ingress_url}/v1/tasks", json={"input": "!say 3"})).json()["id"]
                async with client.stream("GET", f"{mesh.edge_url}/v1/tasks/{task}/events"):

                    async def is_told() -> bool:
                        status, checks = await readiness(mesh.edge_url)
                        detail = f"the broker's user may not subscribe to {HEARD}"
                        return status == 503 and {"name": "rights", "ok": False, "detail": detail} in checks

                    await until(is_told)


async def test_a_worker_says_which_right_it_lacks_in_its_record(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "broker", enforces=True, may_refuse=True)
    broker.take_away({"inference_worker": {"hold.*.*"}})
    async with broker:
        mesh = Mesh(tmp_path, broker, {})
        async with serving(mesh, "inference_worker"):

            async def is_told() -> bool:
                [worker] = [line for line in await meshctl(mesh, "workers") if line.get("service")]
                return any("hold.*.*" in str(check) for check in worker.get("checks", ()))

            await until(is_told)
