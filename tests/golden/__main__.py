"""`python -m tests.golden FOLDER`: record the golden journals of this version. Real processes, half a minute."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.msg import Msg

from contracts import headers, subjects
from contracts.codec import encode
from contracts.triggers import rules
from contracts.triggers.rules import TriggerRule
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import read_page
from mesh.journal.journal import Journal
from mesh.rules import trigger_bucket
from tests.golden.reading import due_in, message_of, record_in, told
from tests.golden.scenarios import RECORDINGS, Recording
from tests.support.checker import StoredEvent, read_stored
from tests.support.degradation import (
    PROVIDERS,
    House,
    at_most,
    full,
    hangs_in_mid_turn,
    in_turn,
    silent,
)
from tests.support.http_client import PatientClient
from tests.support.model_server import Exchange, model_server, openai
from tests.support.processes import Mesh, Process, running_mesh
from tests.support.waiting import until

SERVICES = ("ingress", "tool_runner", "steward", "inference_worker")
PUBLISHED = ("tasks.>", "turns.>", "tools.>", "control.>", "timers.at.>")
POOLS = """
[pools.strict]
provider = "main"
model = "breaks"
[pools.small]
provider = "main"
model = "full"
fallbacks = [{ provider = "backup", model = "large" }]
[pools.slow]
provider = "main"
model = "silent"
fallbacks = [{ provider = "backup", model = "large" }]
on_slow = "hedge"
slow_seconds = 0.2
[pools.compacting]
provider = "main"
model = "narrow"
on_context = "compact"
"""
RULE = msgspec.convert(
    {
        "tenant": "default",
        "name": "reorder",
        "on": {"signal": "stock.zero"},
        "sends": ["orders.*"],
        "task": {"input": "Buy {{payload.sku}}", "tools": ["send_signal"]},
    },
    TriggerRule,
)


async def _refuses(exchange: Exchange) -> None:
    await exchange.refuse(401, {"error": {"message": "no such key"}})


class Recorder:
    """A mesh that is recorded."""

    def __init__(self, mesh: Mesh, connection: Connection, client: PatientClient) -> None:
        self._mesh = mesh
        self._connection = connection
        self._client = client
        self.messages: list[dict[str, Any]] = []

    async def listen(self) -> None:
        """Take down whatever is published for tasks."""
        for subject in PUBLISHED:
            await self._connection.client.subscribe(subject, cb=self._take_down)
        await self._connection.client.flush()

    async def _take_down(self, message: Msg) -> None:
        kept = {name: value for name, value in (message.headers or {}).items() if name != headers.TRACEPARENT}
        self.messages.append({"subject": message.subject, "headers": kept, "payload": json.loads(message.data)})

    async def record(self, recording: Recording) -> str:
        """Run a task as far as it is to come; its id."""
        for service in recording.without:
            for process in self._of(service):
                await process.stop()
        task = await (self._signalled(recording.signal) if recording.signal else self._submitted(recording))
        if recording.kill_at:
            await self._until(task, recording.kill_at)
            [worker] = self._of("inference_worker")
            await worker.kill()
            await self._mesh.start("inference_worker")
        for part in recording.parts:
            await self._until(task, part.once)
            if part.path == "cancel":
                (await self._client.post(f"/v1/tasks/{task}/cancel")).raise_for_status()
            elif part.path == "replay":
                (await self._client.post(f"/v1/dead-letters/{task}/replay", json=part.body)).raise_for_status()
            elif part.path:
                (await self._client.post(f"/v1/tasks/{task}/inputs", json=part.body)).raise_for_status()
        await self._until(task, recording.status)
        return task

    def _of(self, service: str) -> list[Process]:
        return [each for each in self._mesh.processes if each.service == service and each.is_running]

    async def _submitted(self, recording: Recording) -> str:
        response = await self._client.post("/v1/tasks", json={"input": recording.script, **recording.request})
        response.raise_for_status()
        return str(response.json()["id"])

    async def _signalled(self, payload: dict[str, Any]) -> str:
        await trigger_bucket.add(self._connection.requests, RULE, replace=False)
        ack = await self._connection.requests.publish("signals.default.stock.zero", encode(payload))
        return rules.task_id(RULE, ack.seq)

    async def _until(self, task: str, once: dict[str, int] | str) -> None:
        async def reached() -> bool:
            page = await read_page(self._connection.requests, "EVENTS", subjects.journal("default", task), 0)
            if isinstance(once, str):
                journal = await Journal.load(self._connection.requests, "default", task)
                return bool(page.messages) and journal.state.status == once
            counts = Counter(json.loads(message.payload)["type"] for message in page.messages)
            return all(counts[kind] >= count for kind, count in once.items())

        try:
            await until(reached, 30)
        except TimeoutError:
            raise RuntimeError(f"task {task} did not come to {once}") from None


def _listed(journal: list[StoredEvent]) -> list[tuple[int, dict[str, Any]]]:
    return [(event.sequence, event.event) for event in journal]


def _document(name: str, recorded: list[str], journals: dict[str, list[StoredEvent]], messages: list[Any]) -> str:
    """A file: an event, a milestone, a message on each line."""
    tasks = []
    for task in recorded:
        state, milestones = told("default", task, _listed(journals[task]))
        tasks.append(
            {
                "record": record_in(state),
                "due": [message_of(each) for each in due_in(state)],
                "milestones": milestones,
                "events": [[sequence, event] for sequence, event in _listed(journals[task])],
            }
        )
    own = [each for each in messages if each["payload"]["task"] in recorded]
    lines = [f'{{"name": {json.dumps(name)},\n"tasks": [']
    for number, each in enumerate(tasks):
        lines.append("{" + f'"record": {_compact(each["record"])},')
        for key in ("due", "milestones", "events"):
            lines.append(f'"{key}": [{_listing(each[key])}]' + ("," if key != "events" else ""))
        lines.append("}" + ("," if number < len(tasks) - 1 else ""))
    lines.append(f'],\n"messages": [{_listing(own)}]}}')
    return "\n".join(lines) + "\n"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _listing(values: Any) -> str:
    return "\n" + ",\n".join(_compact(value) for value in values) + "\n" if values else ""


async def record(folder: Path) -> None:
    """Run every recording, and write its file."""
    house = House(
        breaks=in_turn(hangs_in_mid_turn, openai),
        full=full,
        large=openai,
        silent=silent,
        narrow=at_most(500),
        no_key=_refuses,
    )
    with tempfile.TemporaryDirectory() as scratch:
        async with model_server(house.behave) as house.server:
            file = Path(scratch) / "mesh.toml"
            url = house.server.base_url
            file.write_text(PROVIDERS.format(openai=url, anthropic=url.removesuffix("/v1")) + POOLS)
            variables = {"MESH_CONFIG": str(file), "MESH_ACK_WAIT_SECONDS": "1"}
            async with (
                running_mesh(Path(scratch), *SERVICES, **variables) as mesh,
                connect(mesh.settings, "test") as connection,
                PatientClient(base_url=mesh.ingress_url, timeout=30) as client,
            ):
                recorder = Recorder(mesh, connection, client)
                await recorder.listen()
                alone = [each for each in RECORDINGS if each.kill_at or each.without]
                together = [each for each in RECORDINGS if each not in alone]
                names: dict[str, str] = {}
                for each, task in zip(together, await asyncio.gather(*map(recorder.record, together)), strict=True):
                    names[each.name] = task
                for each in alone:
                    names[each.name] = await recorder.record(each)
                journals = (await read_stored(connection.requests)).journals
    _write(folder, names, journals, recorder.messages)


def _write(
    folder: Path, names: dict[str, str], journals: dict[str, list[StoredEvent]], messages: list[dict[str, Any]]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, task in names.items():
        children = [
            each for each, journal in journals.items() if (journal[0].event.get("parent") or {}).get("task") == task
        ]
        text = _document(name, [task, *children], journals, messages)
        (folder / f"{name}.json").write_text(text.replace(f"@{socket.gethostname()}", "@a.example"), encoding="utf-8")


def main() -> None:
    """Record into the folder that is named."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to: libs/contracts/spec/vectors/journals/<version>")
    asyncio.run(record(parser.parse_args().folder))


if __name__ == "__main__":
    main()
