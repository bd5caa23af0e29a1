"""Messages, decisions and continued tasks over HTTP: what the ingress stores for the steward, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio

from contracts import headers
from contracts.codec import encode
from contracts.errors import HTTP_STATUS_BY_CODE
from contracts.identifiers import derived_id, new_id
from contracts.journal.events import ApprovalRequested, ApprovalResolved, InputReceived, InputRequested, Stamp
from contracts.messages.control import decode_control
from contracts.records.tools import ToolDeclaration
from contracts.tasks import BODY_BYTES_MAX
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import last_sequence, read_page
from mesh.journal.journal import Journal
from tests.support import children
from tests.support.clients import Viewer
from tests.support.http_client import PatientClient
from tests.support.processes import running_mesh
from tests.support.tasks import begin_journal, end_task, turn_work
from tests.support.terminal import Terminal
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Stored(NamedTuple):
    """A command in CONTROL."""

    subject: str
    message: dict[str, Any]
    headers: dict[str, str]


@dataclass
class Bench:
    """An ingress alone, and its broker: nobody carries commands out, so that they can be looked at."""

    connection: Connection
    client: httpx.AsyncClient

    async def waiting(self, tenant: str = "default") -> Journal:
        """A task with an approval that is open (1-0), one that is denied (1-1), and a question (1-2)."""
        journal = await begin_journal(self.connection.requests, turn_work(tenant=tenant))
        expires_at = datetime.now(UTC) + timedelta(hours=1)

        def asked(stamp: Stamp) -> ApprovalRequested:
            return ApprovalRequested(
                *stamp,
                call=f"1-{len(journal.state.approvals)}",
                tool="shell",
                arguments={"command": "ls"},
                expires_at=expires_at,
            )

        for _ in range(2):
            await journal.append(asked, lambda _: True)
        await journal.append(
            lambda stamp: ApprovalResolved(*stamp, call="1-1", decision="denied", by="Ada"), lambda _: True
        )
        await journal.append(
            lambda stamp: InputRequested(*stamp, question="Which quarter?", call="1-2", expires_at=expires_at),
            lambda _: True,
        )
        return journal

    async def ended(self) -> str:
        """A task that is over."""
        journal = await begin_journal(self.connection.requests, turn_work())
        await end_task(journal)
        return journal.state.task

    async def post(self, task: str, body: object, **more: str) -> httpx.Response:
        """`POST /v1/tasks/{id}/inputs`"""
        return await self.client.post(f"/v1/tasks/{task}/inputs", json=body, headers=more)

    async def commands(self, after: int) -> list[Stored]:
        """What CONTROL has behind a sequence; each is what a steward takes."""
        page = await read_page(self.connection.requests, "CONTROL", "control.>", after)
        for stored in page.messages:
            decode_control(stored.payload, stored.subject)
        return [Stored(each.subject, json.loads(each.payload), dict(each.headers)) for each in page.messages]

    async def last(self, stream: str = "CONTROL") -> int:
        """The last sequence that a stream has given out."""
        return await last_sequence(self.connection.requests, stream)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One ingress for all cases."""
    async with (
        running_mesh(tmp_path_factory.mktemp("inputs"), "ingress") as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        yield Bench(connection, client)
        assert mesh.tracebacks() == []


def assert_problem(response: httpx.Response, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (HTTP_STATUS_BY_CODE[code], code), response.text


async def test_a_record_shows_what_waits_for_a_person(bench: Bench) -> None:
    task = (await bench.waiting()).state.task
    record = (await bench.client.get(f"/v1/tasks/{task}")).json()
    assert record["status"] == "waiting"
    assert [(each["call"], each["tool"], each["arguments"]) for each in record["approvals"]] == [
        ("1-0", "shell", {"command": "ls"})
    ]
    assert [(each["call"], each["question"]) for each in record["questions"]] == [("1-2", "Which quarter?")]
    assert record["links"]["inputs"] == f"/v1/tasks/{task}/inputs"


async def test_a_decision_is_stored_once_for_the_steward(bench: Bench) -> None:
    task = (await bench.waiting("acme")).state.task
    before = await bench.last()
    body = {"kind": "approval", "call": "1-0", "decision": "approved", "reason": "go on"}
    tenant_and_trace = {"Mesh-Tenant": "acme", "traceparent": TRACEPARENT}
    for _ in range(2):
        answer = await bench.post(task, body, **tenant_and_trace)
        assert answer.status_code == 202, answer.text
        assert (answer.json()["id"], answer.json()["status"]) == (task, "waiting")
        assert answer.json()["links"]["inputs"] == f"/v1/tasks/{task}/inputs"
    [command] = await bench.commands(before)
    assert command.subject == "control.approval.acme"
    assert command.message == {
        "kind": "approval", "task": task, "tenant": "acme", "by": "http",
        "call": "1-0", "decision": "approved", "reason": "go on",
    }  # fmt: skip
    assert command.headers[headers.MESSAGE_ID] == f"{task}.approval.1-0.approved"
    assert command.headers[headers.TRACEPARENT] == TRACEPARENT


async def test_each_message_is_another_unless_a_key_makes_them_one(bench: Bench) -> None:
    task = (await bench.waiting()).state.task
    before = await bench.last()
    body = {"kind": "message", "text": "Q3"}
    for more in ({}, {}, {"Idempotency-Key": "k"}, {"Idempotency-Key": "k"}, {"Idempotency-Key": "l"}):
        assert (await bench.post(task, body, **more)).status_code == 202
    stored = await bench.commands(before)
    assert len(stored) == 4
    assert len({command.headers[headers.MESSAGE_ID] for command in stored}) == 4
    assert {command.subject for command in stored} == {"control.input.default"}
    assert [command.message["command"] for command in stored] == [
        command.headers[headers.MESSAGE_ID] for command in stored
    ]
    assert stored[2].message["command"] == f"{task}.input.{derived_id('input', 'default', 'k')}"
    assert [command.message.get("mode", "append") for command in stored] == ["append"] * 4

    other = await bench.post(task, {"kind": "message", "text": "Q4"}, **{"Idempotency-Key": "k"})
    assert_problem(other, "idempotency-mismatch")
    redirect = await bench.post(task, {"kind": "message", "text": "stop that", "mode": "redirect"})
    assert redirect.status_code == 202
    assert (await bench.commands(before))[-1].message["mode"] == "redirect"


async def test_a_message_that_was_carried_out_is_accepted_again_after_the_end(bench: Bench) -> None:
    journal = await bench.waiting()
    task = journal.state.task
    command = f"{task}.input.{derived_id('input', 'default', 'k')}"
    await journal.append(
        lambda stamp: InputReceived(*stamp, text="Q3", by="http", mode="append", call="1-2", command=command),
        lambda _: True,
    )
    await end_task(journal)
    before = await bench.last()
    again = await bench.post(task, {"kind": "message", "text": "Q3"}, **{"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["status"]) == (202, "completed")
    other = await bench.post(task, {"kind": "message", "text": "Q4"}, **{"Idempotency-Key": "k"})
    assert_problem(other, "idempotency-mismatch")
    assert await bench.last() == before


class Ended(NamedTuple):
    """A command of meshctl that has ended."""

    status: int
    out: str
    errors: str


def environment(bench: Bench) -> dict[str, str]:
    """With what meshctl finds the ingress."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
    return {**others, "MESH_CONFIG": os.devnull, "MESH_INGRESS_URL": str(bench.client.base_url)}


async def meshctl(bench: Bench, *arguments: str, text: str = "") -> Ended:
    """Run a command into pipes."""
    ended = await children.run([sys.executable, "-m", "meshctl", *arguments], environment(bench), text=text)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


async def test_meshctl_approves_denies_and_says(bench: Bench) -> None:
    task = (await bench.waiting()).state.task
    before = await bench.last()
    approved = await meshctl(bench, "approve", task)
    assert (approved.status, json.loads(approved.out)["id"], approved.errors) == (0, task, "")
    for ended in (
        await meshctl(bench, "deny", task, "1-0", "--reason", "not today"),
        await meshctl(bench, "say", task, "Q3"),
        await meshctl(bench, "say", task, "-", "--redirect", "--key", "k", text="stop\nthat"),
    ):
        assert (ended.status, ended.errors) == (0, "")
    assert [
        {name: value for name, value in command.message.items() if name not in ("task", "tenant", "by", "command")}
        for command in await bench.commands(before)
    ] == [
        {"kind": "approval", "call": "1-0", "decision": "approved"},
        {"kind": "approval", "call": "1-0", "decision": "denied", "reason": "not today"},
        {"kind": "input", "text": "Q3"},
        {"kind": "input", "text": "stop\nthat", "mode": "redirect"},
    ]


async def test_meshctl_shows_people_what_waits_and_what_will_be(bench: Bench, tmp_path: Path) -> None:
    task = (await bench.waiting()).state.task
    shown = {}
    for command in (("get", task), ("approve", task), ("say", task, "Q3")):
        terminal = Terminal([sys.executable, "-m", "meshctl", *command], environment(bench), tmp_path)
        assert await terminal.run() == 0
        shown[command[0]] = terminal.output.splitlines()
    [approve] = [line for line in shown["get"] if line.startswith("approve ")]
    assert approve.startswith('approve   1-0 (shell) {"command":"ls"}, until ')
    [asks] = [line for line in shown["get"] if line.startswith("asks ")]
    assert asks.startswith("asks      Which quarter? (1-2, until ")
    assert shown["approve"] == [f"call 1-0 (shell) of {task} will be approved"]
    assert shown["say"] == [f"{task} will be told"]


async def test_meshctl_says_in_one_line_why_not(bench: Bench) -> None:
    task = (await bench.waiting()).state.task
    ended = await bench.ended()
    before = await bench.last()
    for arguments, line in (
        (("approve", ended), f"meshctl: conflict: task {ended} is completed, and waits for no approval"),
        (("approve", task, "1-1"), "meshctl: conflict: call 1-1 is denied already, by Ada"),
        (("deny", task, "1-7"), f"meshctl: not-found: task {task} asks for no approval of a call 1-7"),
        (("say", ended, "hello"), f"meshctl: conflict: task {ended} is completed: nobody listens any more"),
        (("--tenant", "acme", "say", task, "hello"), f"meshctl: not-found: there is no task {task}"),
    ):
        refused = await meshctl(bench, *arguments)
        assert refused == (1, "", f"{line}\n")
    assert (await meshctl(bench, "say", task)).status == 2
    assert (await meshctl(bench, "submit", "hello", "--approval", "sometimes")).status == 2
    assert await bench.last() == before


async def test_meshctl_submits_with_tools_approval_turns_and_a_task_to_continue(bench: Bench) -> None:
    ended = await bench.ended()
    flags = ("--tool", "shell", "--tool", "add", "--approval", "always", "--max-turns", "3", "--continues", ended)
    submitted = await meshctl(bench, "submit", "and now?", "--unknown-tools", "allow", *flags)
    assert (submitted.status, submitted.errors) == (0, "")
    page = await read_page(bench.connection.requests, "TASKS", "tasks.>", await bench.last("TASKS") - 1)
    assert json.loads(page.messages[-1].payload)["request"] == {
        "input": "and now?", "tools": ["shell", "add"], "approval": "always", "max_turns": 3, "continues": ended,
    }  # fmt: skip


BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"approve",
    "a list": b"[]",
    "no kind": b'{"text":"a"}',
    "an unknown kind": b'{"kind":"cancel"}',
    "kind a number": b'{"kind":1,"text":"a"}',
    "a message without text": b'{"kind":"message"}',
    "a message of no text": b'{"kind":"message","text":""}',
    "a message too long": encode({"kind": "message", "text": "a" * 100_001}),
    "a message in an unknown mode": b'{"kind":"message","text":"a","mode":"replace"}',
    "a message with a misspelt field": b'{"kind":"message","text":"a","modes":"append"}',
    "a message with a decision": b'{"kind":"message","text":"a","decision":"approved"}',
    "bad UTF-8": b'{"kind":"message","text":"\xff"}',
    "a lone surrogate": b'{"kind":"message","text":"\\ud800"}',
    "an approval without a call": b'{"kind":"approval","decision":"approved"}',
    "an approval without a decision": b'{"kind":"approval","call":"1-0"}',
    "an approval by the clock": b'{"kind":"approval","call":"1-0","decision":"expired"}',
    "an approval of no call": b'{"kind":"approval","call":"*","decision":"approved"}',
    "an approval of a call and a line break": b'{"kind":"approval","call":"1-0\\n","decision":"approved"}',
    "an approval with a text": b'{"kind":"approval","call":"1-0","decision":"approved","text":"a"}',
    "a reason too long": encode({"kind": "approval", "call": "1-0", "decision": "denied", "reason": "a" * 2001}),
    "by somebody else": b'{"kind":"approval","call":"1-0","decision":"approved","by":"Ada"}',
    "5,000 lists": b"[" * 5_000 + b"]" * 5_000,
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_bad_input_is_refused_and_leaves_nothing(bench: Bench, body: bytes) -> None:
    task = (await bench.waiting()).state.task
    before = await bench.last()
    inputs = f"/v1/tasks/{task}/inputs"
    response = await bench.client.post(inputs, content=body, headers={"Content-Type": "application/json"})
    assert_problem(response, "invalid-request")
    assert await bench.last() == before


async def test_an_input_that_is_not_json_or_too_large_is_refused(bench: Bench) -> None:
    task = (await bench.waiting()).state.task
    inputs = f"/v1/tasks/{task}/inputs"
    plain = await bench.client.post(inputs, content=b'{"kind":"message","text":"a"}')
    assert_problem(plain, "unsupported-media-type")
    assert_problem(await bench.post(task, {"kind": "message", "text": "a" * BODY_BYTES_MAX}), "payload-too-large")
    keyed = await bench.post(task, {"kind": "message", "text": "a"}, **{"Idempotency-Key": "k" * 256})
    assert_problem(keyed, "invalid-request")
    assert_problem(await bench.client.get(inputs), "method-not-allowed")


async def test_what_comes_too_late_or_for_no_call_is_refused(bench: Bench) -> None:
    waiting = (await bench.waiting()).state.task
    foreign = (await bench.waiting("acme")).state.task
    ended = await bench.ended()
    before = await bench.last()
    message = {"kind": "message", "text": "hello"}

    def approval(call: str, decision: str = "approved") -> dict[str, str]:
        return {"kind": "approval", "call": call, "decision": decision}

    for task, body, code in (
        (waiting, approval("1-7"), "not-found"),
        (waiting, approval("1-2"), "not-found"),
        (waiting, approval("1-1"), "conflict"),
        (waiting, approval("1-1", "denied"), "conflict"),
        (ended, approval("1-0"), "conflict"),
        (ended, message, "conflict"),
        (new_id(), message, "not-found"),
        (foreign, message, "not-found"),
        (foreign, approval("1-0"), "not-found"),
        ("nonsense", message, "not-found"),
    ):
        assert_problem(await bench.post(task, body), code)
    assert await bench.last() == before


async def test_only_an_ended_task_of_the_tenant_can_be_continued(bench: Bench) -> None:
    waiting = (await bench.waiting()).state.task
    ended = await bench.ended()
    before = await bench.last("TASKS")

    async def post(continues: str, **more: str) -> httpx.Response:
        return await bench.client.post("/v1/tasks", json={"input": "and now?", "continues": continues}, headers=more)

    assert_problem(await post(waiting), "conflict")
    assert_problem(await post(new_id()), "not-found")
    assert_problem(await post(ended, **{"Mesh-Tenant": "acme"}), "not-found")
    assert await bench.last("TASKS") == before
    accepted = await post(ended)
    assert accepted.status_code == 202, accepted.text
    assert accepted.json()["links"]["inputs"] == f"/v1/tasks/{accepted.json()['id']}/inputs"


async def test_a_task_that_was_accepted_stays_so_when_the_one_it_continues_is_gone(bench: Bench) -> None:
    ended = await bench.ended()
    body = {"input": "and now?", "continues": ended}
    keyed = {"Idempotency-Key": new_id()}
    first = await bench.client.post("/v1/tasks", json=body, headers=keyed)
    await bench.connection.requests.api("STREAM.PURGE.EVENTS", {"filter": f"events.default.{ended}.*"})
    again = await bench.client.post("/v1/tasks", json=body, headers=keyed)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["id"] == first.json()["id"]


async def test_a_task_may_ask_for_tools_approval_and_turns(bench: Bench) -> None:
    wanted = {"tools": ["shell", "no_such_tool"], "approval": "always", "max_turns": 3}
    accepted = await bench.client.post("/v1/tasks", json={"input": "hello", "unknown_tools": "allow", **wanted})
    assert accepted.status_code == 202
    page = await read_page(bench.connection.requests, "TASKS", "tasks.>", await bench.last("TASKS") - 1)
    request = json.loads(page.messages[-1].payload)["request"]
    assert {name: request[name] for name in wanted} == wanted


async def test_a_task_waits_for_two_answers_over_http_goes_on_and_is_continued(tmp_path: Path) -> None:
    """The README's walk: an approval and a question beside it, answered by HTTP and by meshctl, while one watches."""
    services = ("ingress", "stream_edge", "inference_worker", "tool_runner", "steward")
    async with (
        running_mesh(tmp_path, *services) as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        walk = Bench(connection, client)
        add = ToolDeclaration(name="add", description="Adds two numbers.", parameters={"type": "object"})
        await connection.requests.publish("$KV.tools.add", encode(add))
        script = '!call add {"a": 6, "b": 7}\n!ask Which quarter?'
        body = {"input": script, "tools": ["add"], "approval": "always"}
        task = (await client.post("/v1/tasks", json=body)).json()["id"]
        viewer = Viewer(str(mesh.settings.edge_address), task)
        watching = asyncio.create_task(viewer.follow())

        async def record() -> dict[str, Any]:
            told: dict[str, Any] = (await client.get(f"/v1/tasks/{task}")).json()
            return told

        async def both_wait() -> bool:
            told = await record()
            return bool(told.get("approvals") and told.get("questions"))

        await until(both_wait)
        asked = await record()
        assert [each["call"] for each in asked["approvals"]] == ["1-0"]
        assert asked["questions"][0]["question"] == "Which quarter?"
        approval = {"kind": "approval", "call": "1-0", "decision": "approved"}
        assert (await walk.post(task, approval)).status_code == 202
        assert (await meshctl(walk, "say", task, "The third")).status == 0
        await watching
        types = [frame.type for frame in viewer.history.frames]
        assert {"approval.resolved", "input.received", "tool.completed"} <= set(types)
        assert types[-1] == "task.completed"
        told = await record()
        assert "The third" in told["output"]
        assert not told.get("approvals")
        assert not told.get("questions")

        assert_problem(await walk.post(task, approval), "conflict")
        assert_problem(await walk.post(task, {"kind": "message", "text": "late"}), "conflict")
        more = {"input": "And the fourth?", "continues": task}
        continued = await client.post("/v1/tasks", json=more, headers={"Prefer": "wait=20"})
        assert (continued.status_code, continued.json()["status"]) == (200, "completed")
        assert mesh.tracebacks() == []
