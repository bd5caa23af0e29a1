"""An upgrade from the release before: its processes beside this version's, with every kind of work in flight.

Whichever is upgraded first, the steward or the workers: every task ends as it should, and none is stranded.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from contracts import VERSION
from contracts.records.status import ENDED
from mesh.background import first_of
from mesh.broker.connection import Connection, connect
from tests.support import children
from tests.support.broker import Broker, free_port
from tests.support.checker import Recorded, check, read_stored
from tests.support.clients import Viewer
from tests.support.http_client import PatientClient
from tests.support.listening import listening
from tests.support.processes import Mesh
from tests.support.releases import release
from tests.support.waiting import until, until_no_work_is_left
from tests.support.webhook_receiver import SECRET, WebhookReceiver, webhook_receiver

pytestmark = pytest.mark.acceptance

PREVIOUS = "0.1.0"
SERVICES = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
ORDERS = {
    "the steward first": ("steward", "ingress", "stream_edge", "inference_worker", "tool_runner"),
    "the workers first": ("inference_worker", "tool_runner", "stream_edge", "ingress", "steward"),
}
"""The order in which services are replaced. docs/upgrading.md recommends the first."""
BESIDE = 12
"""Tasks that are submitted while both versions run."""
RULE = {"name": "reorder", "on": {"signal": "stock.zero"}, "task": {"input": "!say 1"}}


@dataclass
class Page:
    """A page that comes byte by byte, and ends once somebody says so."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked.set()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n")
        while not self.answer.is_set():
            writer.write(b".")  # Whoever reads waits for the next byte for some seconds only.
            await writer.drain()
            await first_of(self.answer, seconds=1)


@dataclass
class Upgrade:
    """A mesh that is being upgraded. `client` speaks to the ingress that serves."""

    mesh: Mesh
    connection: Connection
    old: dict[str, str]
    page: Page
    receiver: WebhookReceiver
    client: PatientClient
    recorded: Recorded = field(default_factory=Recorded)
    viewer: Viewer | None = None

    async def submit(self, script: str, **request: Any) -> str:
        answer = await self.client.post("/v1/tasks", json={"input": script, **request})
        assert answer.status_code == 202, answer.text
        task = str(answer.json()["id"])
        self.recorded.accepted.add(task)
        return task

    async def task(self, task: str) -> dict[str, Any]:
        record: dict[str, Any] = (await self.client.get(f"/v1/tasks/{task}")).json()
        return record

    async def until(self, task: str, holds: Any, seconds: float = 60) -> dict[str, Any]:
        """Wait until a task's record is as asked; the record."""
        record: dict[str, Any] = {}

        async def reached() -> bool:
            nonlocal record
            record = await self.task(task)
            return bool(holds(record))

        try:
            await until(reached, seconds)
        except TimeoutError:
            raise AssertionError(f"not reached: {record}") from None
        return record

    async def meshctl(
        self, *arguments: str, variables: dict[str, str] | None = None, statuses: tuple[int, ...] = (0,)
    ) -> list[dict[str, Any]]:
        environment = {**self.mesh.environment, "MESH_INGRESS_URL": str(self.client.base_url), **(variables or {})}
        ended = await children.run([sys.executable, "-m", "meshctl", *arguments], environment)
        assert ended.returncode in statuses, (arguments, ended.stdout[-2000:], ended.stderr[-2000:])
        return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]

    async def replace(self, service: str) -> None:
        """Start this version's process of a service, and then stop the other's."""
        [before] = [each for each in self.mesh.processes if each.service == service and each.is_running]
        variables = {}
        if service == "ingress":
            address = f"127.0.0.1:{free_port()}"
            variables["MESH_INGRESS_ADDRESS"] = address
        if service == "stream_edge":
            variables["MESH_EDGE_ADDRESS"] = f"127.0.0.1:{free_port()}"
        after = await self.mesh.start(service, **variables)
        if service == "ingress":
            await self.client.aclose()
            self.client = PatientClient(base_url=f"http://{after.address}")
        if service == "stream_edge" and self.viewer is not None:
            self.viewer.address = after.address  # It comes back to whoever is there by then.
        assert await before.stop() == 0


@asynccontextmanager
async def previous_mesh(folder: Path, old: dict[str, str]) -> AsyncIterator[Upgrade]:
    """All services of the release before, on streams as it makes them."""
    page, broker = Page(), Broker(folder / "broker")
    async with listening(page.serve) as port, webhook_receiver() as receiver:
        file = folder / "mesh.toml"
        file.write_text(
            f'[tools.http_get]\nallowed_hosts = ["127.0.0.1:{port}"]\nallow_private = true\n'
            "timeout_seconds = 600\n"
            f'[webhooks.ops]\nurl = "{receiver.url}"\nallow_private = true\nsecret_env = "HOOK"\non = ["ended"]\n'
        )
        await broker.start()
        mesh = Mesh(
            folder,
            broker,
            {"MESH_CONFIG": str(file), "HOOK": SECRET, "MESH_ACK_WAIT_SECONDS": "5", "MESH_DRAIN_SECONDS": "2"},
        )
        mesh.environment["PAGE"] = f"http://127.0.0.1:{port}/"
        try:
            applied = await children.run(
                [sys.executable, "-m", "meshctl", "streams", "apply"], {**mesh.environment, **old}
            )
            assert applied.returncode == 0, applied.stderr
            for service in SERVICES:
                await mesh.start(service, **old)
            async with connect(mesh.settings, "test") as connection:
                client = PatientClient(base_url=mesh.ingress_url)
                upgrade = Upgrade(mesh, connection, old, page, receiver, client)
                try:
                    yield upgrade
                finally:
                    await upgrade.client.aclose()
        finally:
            page.answer.set()
            await asyncio.gather(*(process.stop() for process in mesh.processes if process.is_running))
            await broker.stop()


@pytest.fixture
def old() -> dict[str, str]:
    """The variables of a process of the release before."""
    return release(PREVIOUS)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
async def test_every_task_of_the_release_before_ends(
    tmp_path: Path, old: dict[str, str], order: tuple[str, ...]
) -> None:
    async with previous_mesh(tmp_path, old) as upgrade:
        assert await _versions(upgrade) == {PREVIOUS}
        approves = await upgrade.submit('!call add {"a": 1, "b": 2}', tools=["add"], approval="always")
        asks = await upgrade.submit("!ask Which?")
        parent = await upgrade.submit('!call spawn_task {"input": "!ask How much?"}', tools=["spawn_task"])
        gave_up = await upgrade.submit("!fail server_error 9")
        later = await upgrade.submit("!fail rate_limit 1 15\n!say 1")
        waits_until = await upgrade.submit("!ask Too late?", deadline_seconds=20)
        url = upgrade.mesh.environment["PAGE"]
        calls = await upgrade.submit(f"!call http_get {json.dumps({'url': url})}", tools=["http_get"])
        streams = await upgrade.submit("!rate 4\n!say 80")
        viewer = upgrade.viewer = Viewer(str(upgrade.mesh.settings.edge_address), streams)
        following = asyncio.create_task(viewer.follow(seconds=120))
        rule = tmp_path / "rule.json"
        rule.write_text(json.dumps(RULE))
        await upgrade.meshctl("triggers", "add", str(rule), variables=old)
        await upgrade.until(approves, lambda record: record.get("approvals"))
        await upgrade.until(asks, lambda record: record.get("questions"))
        await upgrade.until(gave_up, lambda record: record["status"] == "dead_lettered")
        await upgrade.until(parent, lambda record: record["status"] == "waiting")
        await upgrade.until(later, lambda record: record["status"] == "running")
        await upgrade.page.asked.wait()
        await until(lambda: any("output.delta" in frame for frame in viewer.history.frames))

        for service in order:
            await upgrade.replace(service)
            if service == "tool_runner":
                upgrade.page.answer.set()  # To the new one, which has taken the call over.
            for number in range(BESIDE // len(order) + 1):
                tools = {"tools": ["add"]} if number % 2 else {}
                await upgrade.submit('!call add {"a": 1, "b": 2}\n!then\n!say 2' if tools else "!say 3", **tools)
            await upgrade.connection.requests.publish("signals.default.stock.zero", b"{}")
        assert await _versions(upgrade) == {VERSION}

        await upgrade.client.post(
            f"/v1/tasks/{approves}/inputs", json={"kind": "approval", "call": "1-0", "decision": "approved"}
        )
        await upgrade.client.post(f"/v1/tasks/{asks}/inputs", json={"kind": "message", "text": "this one"})
        replayed = await upgrade.client.post(
            f"/v1/dead-letters/{gave_up}/replay", json={"edits": {"input": "!say 2"}, "reason": "tried"}
        )
        assert replayed.status_code == 202, replayed.text
        child = await _child_of(upgrade, parent)
        upgrade.recorded.accepted.add(child)
        await upgrade.client.post(f"/v1/tasks/{child}/inputs", json={"kind": "message", "text": "so much"})

        for task in sorted(upgrade.recorded.accepted):
            record = await upgrade.until(task, lambda record: record["status"] in ENDED, 90)
            assert record["status"] == ("expired" if task == waits_until else "completed"), record
        [result] = [event for event in await _events(upgrade, calls) if event["type"].startswith("tool.")]
        assert result["type"] == "tool.completed", json.dumps(result)
        await following
        upgrade.recorded.histories.append(viewer.history)

        stored = await read_stored(upgrade.connection.requests)
        triggered = [each for each in stored.journals if each not in upgrade.recorded.accepted]
        assert len(triggered) == len(order), "each signal started one task"

        async def settled() -> bool:
            records = [await upgrade.task(each) for each in triggered]
            return all(record["status"] == "completed" for record in records)

        await until(settled)
        upgrade.recorded.accepted.update(triggered)
        await until_no_work_is_left(upgrade.connection)
        stored = await read_stored(upgrade.connection.requests)
        assert check(upgrade.recorded, stored) == []
        await until(
            lambda: {each.body["data"]["task"] for each in upgrade.receiver.received} >= upgrade.recorded.accepted
        )
        letters = (await upgrade.client.get("/v1/dead-letters")).json()["dead_letters"]
        assert [letter["task"] for letter in letters if letter["task"] != gave_up] == []
        assert upgrade.mesh.tracebacks() == []
        left = [line for line in await upgrade.meshctl("streams", "apply", statuses=(0, 3)) if "reason" in line]
        assert {tuple(line["fields"]) for line in left} <= {("max_waiting",)}, "what waits for workers to be stopped"


async def _versions(upgrade: Upgrade) -> set[str]:
    told = await upgrade.meshctl("workers")
    running = {str(process.pid) for process in upgrade.mesh.processes if process.is_running}
    return {each["version"] for each in told if str(each["pid"]) in running}


async def _child_of(upgrade: Upgrade, parent: str) -> str:
    events = await _events(upgrade, parent)
    [started] = [event for event in events if event["type"] == "subtask.started"]
    return str(started["child"])


async def _events(upgrade: Upgrade, task: str) -> list[dict[str, Any]]:
    stored = await read_stored(upgrade.connection.requests)
    return [each.event for each in stored.journals[task]]
