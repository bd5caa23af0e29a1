"""Every kind of work once, at a mesh that `meshctl up` runs: for a broker that is set up in another way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from contracts.codec import encode
from mesh.broker.connection import connect
from mesh.configuration.settings import load_settings
from tests.support.clients import Viewer
from tests.support.http_client import PatientClient
from tests.support.up import Up, meshctl
from tests.support.waiting import until
from tests.support.webhook_receiver import SECRET, WebhookReceiver

VARIABLES = {
    "MESH_MAX_TRIES": "1",
    # Some 20 s: what has ended goes while the mesh runs, and not before it was looked at.
    "MESH_RETENTION_DAYS": "0.00025",
    "HOOK_SECRET": SECRET,
}
"""What `do_all_work` needs of its mesh, beside the file."""
MACHINES = {"disk", "open_files", "sync"}
"""What the doctor says of this machine, and not of the mesh."""
RULE = """\
name = "restock"
[on]
signal = "stock.empty"
[task]
input = "!say 3"
metadata = { by = "{{subject}}" }
"""


def configuration(folder: Path, receiver: WebhookReceiver) -> Path:
    """Its file: a webhook."""
    file = folder / "mesh.toml"
    file.write_text(
        f'[webhooks.ops]\nurl = "{receiver.url}"\nsecret_env = "HOOK_SECRET"\non = ["ended"]\nallow_private = true\n'
    )
    return file


async def do_all_work(mesh: Up, variables: Mapping[str, str], receiver: WebhookReceiver) -> None:
    """A streamed turn, a tool, an approval, a cancel, a dead letter and its replay, a trigger, a webhook, retention.

    And the doctor has nothing to say. `variables`: what the mesh was started with.
    """
    environment = {**mesh.environment, **variables}

    async def told(*arguments: str) -> list[dict[str, Any]]:
        answer = await meshctl(*arguments, environment=environment)
        assert answer.returncode == 0, (arguments, answer.stderr)
        return [json.loads(line) for line in answer.stdout.splitlines()]

    async with PatientClient(base_url=mesh.ready["ingress_url"], timeout=60) as client:

        async def submit(script: str, **fields: object) -> str:
            answer = await client.post("/v1/tasks", json={"input": script, **fields})
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

        async def record(task: str) -> dict[str, Any]:
            answer = await client.get(f"/v1/tasks/{task}")
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            return found

        async def until_it_is(task: str, status: str) -> dict[str, Any]:
            async def is_so() -> bool:
                return bool((await record(task))["status"] == status)

            await until(is_so, 30)
            return await record(task)

        first = await submit('!say 20\n!call add {"a": 2, "b": 3}\n!then\ndone', tools=["add"])
        history = await Viewer(urlsplit(mesh.ready["edge_url"]).netloc, first).follow()
        types = [frame.type for frame in history.frames]
        assert types[-1] == "task.completed", types
        assert {"output.delta", "tool.completed"} <= set(types)

        asked = await submit('!call add {"a": 2, "b": 3}', tools=["add"], approval="always")

        async def is_asked() -> bool:
            return bool((await record(asked)).get("approvals"))

        await until(is_asked, 30)
        await told("approve", asked)
        await until_it_is(asked, "completed")

        hanging = await submit("!hang 600")
        await until_it_is(hanging, "running")
        await told("cancel", hanging)
        await until_it_is(hanging, "cancelled")

        failing = await submit("!fail overloaded 99")

        async def has_given_up() -> bool:
            return bool((await record(failing)).get("dead_letters"))

        await until(has_given_up, 30)
        await told("dead-letters", "replay", failing, "--input", "Hello")
        await until_it_is(failing, "completed")

        rule = mesh.home.with_name("restock.toml")
        rule.write_text(RULE)
        await told("triggers", "add", str(rule))
        async with connect(load_settings(environment), "test") as connection:
            await connection.requests.publish("signals.default.stock.empty", encode({"sku": "widget-7"}))

        async def was_started() -> bool:
            listed = (await client.get("/v1/tasks", params={"metadata.by": "signals.default.stock.empty"})).json()
            return any(task["status"] == "completed" for task in listed["tasks"])

        await until(was_started, 30)
        await until(lambda: len(receiver.ids("task.completed")) >= 3, 30)
        assert all(each.valid for each in receiver.received)

        lines = {line["check"]: line for line in await told("doctor")}
        assert {name: line for name, line in lines.items() if line["status"] != "ok" and name not in MACHINES} == {}
        assert await told("workers")

        async def is_gone() -> bool:
            return (await client.get(f"/v1/tasks/{first}")).status_code == 404

        await until(is_gone, 90)
