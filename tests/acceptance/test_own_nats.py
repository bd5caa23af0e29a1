"""A NATS of one's own that is set up in another way: what works, what does not, and the one line that says so."""

from __future__ import annotations

import json
import random
import string
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mesh.broker.connection import connect
from mesh.broker.direct_get import last_from_leader
from mesh.configuration.settings import Settings
from tests.support import children
from tests.support.broker import Broker
from tests.support.http_client import PatientClient
from tests.support.processes import running_mesh
from tests.support.up import ENVIRONMENT, FREE_PORTS, meshctl
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio]

SERVICES = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
SMALL = 128 * 1024
OLD_FORM = "$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<sequence>.<time>.<pending>"


async def doctor(way_in: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The doctor's lines, by check."""
    answer = await meshctl("doctor", environment={**ENVIRONMENT, **way_in})
    return {line["check"]: line for line in map(json.loads, answer.stdout.splitlines())}


async def start_in_vain(service: str, url: str) -> str:
    """The last line that a service says which does not start."""
    ended = await children.run([sys.executable, "-m", service], {**ENVIRONMENT, "MESH_NATS_URL": url})
    assert ended.returncode == 2, ended.stderr
    return ended.stderr.splitlines()[-1]


async def test_with_a_small_max_payload_a_large_request_is_413_and_a_long_answer_is_generated_once(
    tmp_path: Path,
) -> None:
    async with (
        running_mesh(tmp_path, *SERVICES, max_payload=str(SMALL)) as mesh,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        for size in (SMALL // 2 + 1, SMALL, 500 * 1024):
            refused = await client.post("/v1/tasks", json={"input": "x" * size})
            assert (refused.status_code, refused.json()["code"]) == (413, "payload-too-large"), size
        answer = await client.post("/v1/tasks", json={"input": "!say 30000"}, headers={"Prefer": "wait=60"})
        record = answer.json()
        assert record["status"] == "completed", record
        assert record["incomplete"] == "max_output_tokens"
        assert SMALL // 4 < len(record["output"]) < SMALL
        large = "y" * (SMALL // 2 - 1024)
        answer = await client.post("/v1/tasks", json={"input": large}, headers={"Prefer": "wait=60"})
        assert answer.json()["status"] == "completed", answer.text
        assert mesh.logs_of("broker.small_payload")
        assert not mesh.logs_of("step.failed")
        lines = await doctor(mesh.broker.way_in)
    assert lines["max_payload"]["status"] == "warn"
    assert "131,072" in lines["max_payload"]["detail"]


async def test_with_a_small_max_payload_a_task_that_does_not_compress_is_packed_and_served(tmp_path: Path) -> None:
    text = "".join(random.Random(7).choices(string.ascii_letters + string.digits, k=SMALL // 2 - 1024))
    async with (
        running_mesh(tmp_path, *SERVICES, max_payload=str(SMALL), MESH_PACK_AFTER_HOURS="0.0003") as mesh,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        answer = await client.post("/v1/tasks", json={"input": text}, headers={"Prefer": "wait=60"})
        ended = answer.json()
        assert ended["status"] == "completed", answer.text
        async with connect(mesh.settings, "test") as connection:

            async def is_packed() -> bool:
                return (
                    await last_from_leader(connection.requests, "EVENTS", f"events.default.{ended['id']}.log") is None
                )

            await until(is_packed)
        record = (await client.get(f"/v1/tasks/{ended['id']}")).json()
        assert record["output"] == ended["output"]
        events = await client.get(f"{mesh.edge_url}/v1/tasks/{ended['id']}/events")
        assert text in events.text


async def test_a_max_payload_that_is_too_small_for_anything_stops_the_start(tmp_path: Path) -> None:
    async with Broker(tmp_path / "nats", max_payload="32KB") as broker:
        says = "the broker's max_payload is 32,768 bytes: at least 65,536 are needed"
        assert await start_in_vain("steward", broker.url) == f"steward: {says}"
        assert (await doctor(broker.way_in))["max_payload"]["status"] == "fail"


async def test_the_newer_form_of_acknowledgements_is_understood(tmp_path: Path) -> None:
    flag = "feature_flags { js_ack_fc_v2: true }"
    async with (
        running_mesh(tmp_path, *SERVICES, broker_extra=flag) as mesh,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        async with connect(mesh.settings, "test") as connection:
            # An unknown flag is no error, and the older form would be no test.
            stream = connection.client.jetstream()
            await stream.add_stream(name="PROBE", subjects=["probe"])
            await stream.publish("probe", b"")
            [message] = await (await stream.pull_subscribe("probe", "probe")).fetch(1)
            assert message.reply.count(".") > OLD_FORM.count("."), message.reply
            await stream.delete_stream("PROBE")
        script = '!call calculator {"expression": "6 * 7"}\n!say 3'
        answer = await client.post(
            "/v1/tasks", json={"input": script, "tools": ["calculator"]}, headers={"Prefer": "wait=60"}
        )
        assert answer.json()["status"] == "completed", answer.text
        cancelled = await client.post("/v1/tasks", json={"input": "!hang 60"})
        task = cancelled.json()["id"]
        assert (await client.post(f"/v1/tasks/{task}/cancel")).status_code == 202
        assert mesh.tracebacks() == []


async def test_a_stream_of_somebody_else_on_our_subjects_is_named(tmp_path: Path) -> None:
    async with Broker(tmp_path / "nats") as broker:
        async with connect(Settings(nats_url=broker.url), "test") as connection:
            await connection.requests.api("STREAM.CREATE.ORDERS", {"name": "ORDERS", "subjects": ["tasks.>"]})
            await connection.requests.api("STREAM.CREATE.EVENTS", {"name": "EVENTS", "subjects": ["shop.>"]})
        named = "stream ORDERS of somebody else takes tasks.>, which TASKS needs"
        for service in ("ingress", "inference_worker"):
            assert (await start_in_vain(service, broker.url)).startswith(f"{service}: {named}")
        for command in (["up", *FREE_PORTS], ["streams", "plan"], ["streams", "apply"]):
            environment = {**ENVIRONMENT, "MESH_NATS_URL": broker.url, "MESH_HOME": str(tmp_path / "home")}
            answer = await meshctl(*command, environment=environment)
            assert answer.returncode == 2
            assert answer.stderr.splitlines()[-1].startswith(f"meshctl: {named}")
        line = (await doctor(broker.way_in))["subjects"]
    assert line["status"] == "fail"
    assert named in line["detail"]
    assert "stream EVENTS is somebody else's: it takes shop.>" in line["detail"]


async def test_a_missing_right_is_named_at_once(tmp_path: Path) -> None:
    users = (
        "no_auth_user: all\n"
        "authorization { users: [{ user: all, password: x }, { user: me, password: x, permissions: {"
        ' publish: { deny: ["tasks.>", "$KV.workers.>"] } } }] }'
    )
    async with running_mesh(tmp_path, broker_extra=users) as mesh:
        url = mesh.broker.url.replace("//", "//me:x@")
        lines = await doctor({"MESH_NATS_URL": url})
        assert lines["rights"]["status"] == "fail"
        assert lines["rights"]["detail"] == ("the broker's user may not publish to tasks.*.*.*, $KV.workers.>")
        await mesh.start("ingress", MESH_NATS_URL=url)
        async with PatientClient(base_url=mesh.ingress_url) as client:
            refused = await client.post("/v1/tasks", json={"input": "hello"})
        assert refused.status_code == 503
        assert "may not publish to tasks.default.normal.default" in refused.json()["detail"]
        assert "may not publish to tasks." in json.dumps(mesh.logs_of("broker.error"))
