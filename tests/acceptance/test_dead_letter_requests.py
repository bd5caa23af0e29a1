"""Dead letters over HTTP: what the ingress lists and shows, what it stores for the steward, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from contracts import headers
from contracts.codec import encode
from contracts.errors import HTTP_STATUS_BY_CODE
from contracts.identifiers import new_id
from contracts.journal.events import TaskReplayed
from contracts.journal.parts import StepGen
from contracts.messages.control import CancelCommand, Edits, ReplayCommand, decode_control, replay_message_id
from contracts.records.tools import ToolDeclaration
from contracts.tasks import BODY_BYTES_MAX
from mesh.broker import key_value
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import Stored, last_sequence, read_page
from mesh.journal.journal import Journal
from tests.support.http_client import PatientClient
from tests.support.letters import Letters
from tests.support.processes import running_mesh
from tests.support.tasks import begin_journal, end_task, turn_work

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

PARAMETERS = {
    "type": "object",
    "properties": {"cell": {"type": "string"}},
    "required": ["cell"],
    "additionalProperties": False,
}


@dataclass
class Bench:
    """An ingress alone, and its broker: nobody carries commands out, so that they can be looked at."""

    connection: Connection
    client: httpx.AsyncClient
    letters: Letters

    async def listed(self, tenant: str, **query: str | int) -> list[dict[str, Any]]:
        """All pages of a list, each as large as `limit` says."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            more = {"cursor": cursor} if cursor else {}
            answer = await self.client.get(
                "/v1/dead-letters", params={**query, **more}, headers={headers.HTTP_TENANT: tenant}
            )
            assert answer.status_code == 200, answer.text
            page = answer.json()
            assert len(page["dead_letters"]) <= int(query.get("limit", 50))
            found += page["dead_letters"]
            cursor = page["cursor"]
            if cursor is None:
                return found

    async def replay(self, task: str, body: object = None, **more: str) -> httpx.Response:
        """`POST /v1/dead-letters/{id}/replay`; without a body if there is none."""
        content = None if body is None else body if isinstance(body, bytes) else encode(body)
        typed = {"Content-Type": "application/json"} if content is not None else {}
        return await self.client.post(f"/v1/dead-letters/{task}/replay", content=content, headers={**typed, **more})

    async def commands(self, after: int) -> list[Stored]:
        """What CONTROL has behind a sequence."""
        return (await read_page(self.connection.requests, "CONTROL", "control.>", after)).messages

    async def last(self, stream: str = "CONTROL") -> int:
        """The last sequence that a stream has given out."""
        return await last_sequence(self.connection.requests, stream)

    async def take(self, message: Stored) -> ReplayCommand:
        """Take a replay from CONTROL, as a steward does that has carried it out."""
        command = decode_control(message.payload, message.subject)
        assert isinstance(command, ReplayCommand)
        await self.connection.requests.api("STREAM.MSG.DELETE.CONTROL", {"seq": message.sequence})
        return command

    async def carry_out(self, journal: Journal, message: Stored) -> None:
        """What a steward does with a replay, but for publishing what goes on."""
        command = await self.take(message)
        await journal.append(
            lambda stamp: TaskReplayed(*stamp, steps=command.steps, by=command.by, edits=command.edits), lambda _: True
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One ingress for all cases."""
    async with (
        running_mesh(tmp_path_factory.mktemp("letters"), "ingress") as mesh,
        connect(mesh.settings, "test") as connection,
        PatientClient(base_url=mesh.ingress_url) as client,
    ):
        declared = ToolDeclaration(name="sheet", description="Reads a cell.", parameters=PARAMETERS)
        await key_value.put_json(connection.requests, "tools", "sheet", declared)
        yield Bench(connection, client, Letters(connection))
        assert mesh.tracebacks() == []


def assert_problem(response: httpx.Response, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (HTTP_STATUS_BY_CODE[code], code), response.text


# The list


async def test_open_dead_letters_are_listed_from_the_newest_in_pages_of_any_size(bench: Bench) -> None:
    tenant = "pages"
    tasks = [(await bench.letters.of_turn(tenant)).state.task for _ in range(5)]
    await bench.letters.of_rubbish(tenant)
    tasks.append((await bench.letters.of_calls("sheet", {"cell": "A1"}, {"cell": "A2"}, tenant=tenant)).state.task)
    for limit in (1, 2, 100):
        found = await bench.listed(tenant, limit=limit)
        assert [each.get("task") for each in found] == [tasks[5], tasks[5], None, *reversed(tasks[:5])]
    newest = found[0]
    assert (newest["step"], newest["gen"], newest["tool"], newest["error"]["code"]) == ("1-1", 0, "sheet", "tool-error")
    assert all(each["open"] for each in found)
    assert not [each for each in found if "message" in each or "request" in each]


async def test_the_list_is_filtered_by_tool_code_and_time(bench: Bench) -> None:
    tenant = "filters"
    turn = (await bench.letters.of_turn(tenant)).state.task
    call = (await bench.letters.of_calls("sheet", {"cell": "A1"}, tenant=tenant, code="tool-timeout")).state.task
    await bench.letters.of_rubbish(tenant)
    [_, letter, first] = await bench.listed(tenant)

    async def tasks(**query: str) -> list[str | None]:
        return [each.get("task") for each in await bench.listed(tenant, **query)]

    assert await tasks(tool="sheet") == [call]
    assert await tasks(tool="other") == []
    assert await tasks(code="provider-overloaded") == [turn]
    assert await tasks(code="malformed-message") == [None]
    assert await tasks(since=letter["time"]) == [None, call]
    assert await tasks(until=letter["time"]) == [turn]
    assert await tasks(since=first["time"], until=letter["time"], tool="sheet") == []


async def test_what_is_repaired_is_listed_only_among_all(bench: Bench) -> None:
    tenant = "repaired"
    journal = await bench.letters.of_turn(tenant)
    await journal.append(
        lambda stamp: TaskReplayed(*stamp, steps=[StepGen("1", 0)], by="test"),
        lambda _: True,
    )
    record = await bench.client.get(f"/v1/tasks/{journal.state.task}", headers={headers.HTTP_TENANT: tenant})
    kept = encode({name: value for name, value in record.json().items() if name != "links"})
    await key_value.put(bench.connection.requests, "tasks", f"{tenant}.{journal.state.task}", kept)
    assert await bench.listed(tenant) == []
    assert [each["open"] for each in await bench.listed(tenant, all="true")] == [False]


async def test_a_record_that_can_not_be_read_hides_no_other(bench: Bench) -> None:
    tenant = "unreadable"
    task = (await bench.letters.of_turn(tenant)).state.task
    for payload in (b"rubbish", b"{}", b""):
        await bench.connection.requests.publish(f"dead.{tenant}.{new_id()}", payload)
    [stored] = (await read_page(bench.connection.requests, "DEAD_LETTERS", f"dead.{tenant}.{task}", 0)).messages
    await bench.connection.requests.publish(f"dead.{tenant}.{new_id()}", stored.payload)
    assert [each["task"] for each in await bench.listed(tenant)] == [task]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "cursor=x", "tool=A.B", "tool=", "code=a%20b", "all=yes", "since=now", "until=2026-01-31"],
)
async def test_a_bad_list_query_is_refused(bench: Bench, query: str) -> None:
    assert_problem(await bench.client.get(f"/v1/dead-letters?{query}"), "invalid-request")


# One task


async def test_the_dead_letters_of_a_task_are_shown_in_full(bench: Bench) -> None:
    journal = await bench.letters.of_calls("sheet", {"cell": "A1"}, {"cell": "A2"})
    task = journal.state.task
    await journal.append(lambda stamp: TaskReplayed(*stamp, steps=[StepGen("1-0", 0)], by="test"), lambda _: True)
    answer = await bench.client.get(f"/v1/dead-letters/{task}")
    assert answer.status_code == 200
    shown = answer.json()
    assert (shown["id"], shown["status"], shown["more"]) == (task, "dead_lettered", False)
    assert shown["open"] == [{"step": "1-1", "gen": 0, "code": "tool-error"}]
    assert [(each["step"], each["open"]) for each in shown["records"]] == [("1-1", True), ("1-0", False)]
    record = shown["records"][0]
    assert record["errors"] == [{"code": "tool-error", "message": "it broke", "detail": "in its own words"}]
    assert json.loads(record["message"])["arguments"] == {"cell": "A2"}
    assert record["request"]["input"] == "hello"
    assert record["journal_to"] > record["journal_from"]


async def test_a_task_that_is_well_has_none(bench: Bench) -> None:
    journal = await begin_journal(bench.connection.requests, turn_work())
    shown = (await bench.client.get(f"/v1/dead-letters/{journal.state.task}")).json()
    assert (shown["status"], shown["open"], shown["records"]) == ("running", [], [])


async def test_another_tenant_sees_nothing(bench: Bench) -> None:
    journal = await bench.letters.of_turn("owner")
    await bench.letters.of_rubbish("owner")
    [rubbish, letter] = await bench.listed("owner")
    task, number = journal.state.task, rubbish["record_sequence"]
    before = await bench.last()
    other = {headers.HTTP_TENANT: "other"}
    assert await bench.listed("other") == []
    for name in (task, new_id(), "no-task"):
        assert_problem(await bench.client.get(f"/v1/dead-letters/{name}", headers=other), "not-found")
        assert_problem(await bench.client.delete(f"/v1/dead-letters/{name}", headers=other), "not-found")
        assert_problem(await bench.replay(name, {}, **other), "not-found")
    for wrong in (number, letter["record_sequence"], 10**18 - 1, 0, "x", "-1"):
        path = f"/v1/dead-letters/malformed/{wrong}"
        assert_problem(await bench.client.get(path, headers=other), "not-found")
        assert_problem(await bench.client.delete(path, headers=other), "not-found")
    assert await bench.last() == before
    assert len(await bench.listed("owner")) == 2


# Messages that were no work


async def test_a_malformed_message_is_shown_and_deleted_once(bench: Bench) -> None:
    tenant = "rubbish"
    await bench.letters.of_turn(tenant)
    await bench.letters.of_rubbish(tenant)
    [rubbish, letter] = await bench.listed(tenant)
    path, own = f"/v1/dead-letters/malformed/{rubbish['record_sequence']}", {headers.HTTP_TENANT: tenant}
    shown = (await bench.client.get(path, headers=own)).json()
    assert (shown["message"], shown["errors"][0]["code"], shown["open"]) == ("rubbish", "malformed-message", True)
    # That of a step is its task's, and not to be deleted so.
    wrong = f"/v1/dead-letters/malformed/{letter['record_sequence']}"
    assert_problem(await bench.client.delete(wrong, headers=own), "not-found")
    deleted = await bench.client.delete(path, headers=own)
    assert (deleted.status_code, deleted.json()) == (200, shown)
    assert_problem(await bench.client.delete(path, headers=own), "not-found")
    assert await bench.listed(tenant, all="true") == [letter]


# A replay


async def test_a_replay_is_stored_for_the_steward_once(bench: Bench) -> None:
    journal = await bench.letters.of_calls("sheet", {"cell": "A1"}, {"cell": "A2"})
    task = journal.state.task
    after = await bench.last()
    body = {"edits": {"arguments": {"1-1": {"cell": "B2"}}, "instructions": "Be brief."}, "reason": "a wrong cell"}
    for _ in range(2):
        answer = await bench.replay(task, body)
        assert answer.status_code == 202, answer.text
        accepted = answer.json()
        assert accepted["steps"] == [{"step": "1-0", "gen": 1}, {"step": "1-1", "gen": 1}]
        assert accepted["links"]["self"] == f"/v1/tasks/{task}"
    [message] = await bench.commands(after)
    command = decode_control(message.payload, message.subject)
    steps = [StepGen("1-0", 0), StepGen("1-1", 0)]
    assert command == ReplayCommand(
        task=task,
        tenant="default",
        by="http",
        steps=steps,
        edits=Edits(arguments={"1-1": {"cell": "B2"}}, instructions="Be brief."),
        reason="a wrong cell",
    )
    assert message.headers[headers.MESSAGE_ID] == replay_message_id(task, steps)
    # Other edits of the same dead letters can't both count.
    assert_problem(await bench.replay(task, {"edits": {"model": "other"}}), "conflict")
    assert len(await bench.commands(after)) == 1


async def test_a_replay_that_is_carried_out_is_the_same_as_once_if_it_names_its_dead_letters(bench: Bench) -> None:
    journal = await bench.letters.of_turn()
    task, after = journal.state.task, await bench.last()
    named = {"steps": [{"step": "1", "gen": 0}], "edits": {"input": "hello again"}}
    assert (await bench.replay(task, named)).status_code == 202
    [message] = await bench.commands(after)
    await bench.carry_out(journal, message)
    again = await bench.replay(task, named)
    assert (again.status_code, again.json()["steps"]) == (202, [{"step": "1", "gen": 1}])
    assert_problem(await bench.replay(task, {**named, "edits": {"input": "something else"}}), "conflict")
    assert_problem(await bench.replay(task, {"steps": named["steps"]}), "conflict")
    assert_problem(await bench.replay(task, {**named, "dry_run": True}), "conflict")
    assert_problem(await bench.replay(task), "conflict")
    await end_task(journal)
    assert (await bench.replay(task, named)).status_code == 202
    assert await bench.commands(after) == []


async def test_a_replay_after_one_that_the_steward_refused_is_not_taken_for_it(bench: Bench) -> None:
    journal = await bench.letters.of_turn()
    task, after = journal.state.task, await bench.last()
    assert (await bench.replay(task, {"edits": {"input": "refused"}})).status_code == 202
    [refused] = await bench.commands(after)
    await bench.take(refused)
    assert (await bench.replay(task, {"edits": {"input": "better"}})).status_code == 202
    [message] = await bench.commands(after)
    command = decode_control(message.payload, message.subject)
    assert isinstance(command, ReplayCommand)
    assert command.edits == Edits(input="better")


async def test_a_replay_may_name_some_of_the_dead_letters_and_needs_no_body(bench: Bench) -> None:
    journal = await bench.letters.of_calls("sheet", {"cell": "A1"}, {"cell": "A2"})
    answer = await bench.replay(journal.state.task, {"steps": [{"step": "1-1", "gen": 0}]})
    assert answer.json()["steps"] == [{"step": "1-1", "gen": 1}]
    bare = await bench.replay((await bench.letters.of_turn()).state.task)
    assert (bare.status_code, bare.json()["steps"]) == (202, [{"step": "1", "gen": 1}])


async def test_a_dry_run_says_what_would_change_and_changes_nothing(bench: Bench) -> None:
    journal = await bench.letters.of_calls("sheet", {"cell": "A1"}, {"cell": "A2"})
    task = journal.state.task
    before = [await bench.last(stream) for stream in ("CONTROL", "EVENTS", "TURNS", "TOOLS", "KV_tasks")]
    edits = {"arguments": {"1-1": {"cell": "B2"}}, "instructions": "Be brief."}
    answer = await bench.replay(task, {"edits": edits, "dry_run": True})
    assert answer.status_code == 200
    plan = answer.json()
    assert plan["steps"] == [{"step": "1-0", "gen": 1}, {"step": "1-1", "gen": 1}]
    assert plan["request"] == {
        "before": {"input": "hello"},
        "after": {"input": "hello", "instructions": "Be brief."},
    }
    assert plan["arguments"] == {
        "1-0": {"tool": "sheet", "before": {"cell": "A1"}, "after": {"cell": "A1"}},
        "1-1": {"tool": "sheet", "before": {"cell": "A2"}, "after": {"cell": "B2"}},
    }
    assert [await bench.last(stream) for stream in ("CONTROL", "EVENTS", "TURNS", "TOOLS", "KV_tasks")] == before


async def test_what_has_no_open_dead_letter_is_not_replayed(bench: Bench) -> None:
    running = await begin_journal(bench.connection.requests, turn_work())
    ended = await bench.letters.of_turn()
    await end_task(ended)
    before = await bench.last()
    assert_problem(await bench.replay(running.state.task, {}), "conflict")
    assert_problem(await bench.replay(ended.state.task, {}), "conflict")
    waiting = (await bench.letters.of_turn()).state.task
    for steps in (
        [{"step": "1", "gen": 1}],
        [{"step": "2", "gen": 0}],
        [{"step": "1", "gen": 0}, {"step": "1-0", "gen": 0}],
    ):
        assert_problem(await bench.replay(waiting, {"steps": steps}), "conflict")
    assert_problem(await bench.replay(new_id(), {}), "not-found")
    assert await bench.last() == before


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"[" * 5000,
        b'{"edits": {"input": "\xff"}}',
        {"edit": {}},
        {"edits": {"inputs": "x"}},
        {"edits": {"input": ""}},
        {"edits": {"input": []}},
        {"edits": {"input": [{"role": "nobody", "content": "x"}]}},
        {"edits": {"instructions": ""}},
        {"edits": {"model": 5}},
        {"edits": {"pool": "nowhere"}},
        {"edits": {"pool": "A B"}},
        {"edits": {"arguments": {"1-0": "text"}}},
        {"edits": {"arguments": {"1-0": {"cell": 5}}}},
        {"edits": {"arguments": {"1-0": {}}}},
        {"edits": {"arguments": {"1-0": {"cell": "A1", "row": 1}}}},
        {"edits": {"arguments": {"1-1": {"cell": "A1"}}}},
        {"edits": {"arguments": {"one": {"cell": "A1"}}}},
        {"steps": []},
        {"steps": ["1-0"]},
        {"steps": [{"step": "1-0"}]},
        {"steps": [{"step": "1-0", "gen": -1}]},
        {"reason": "x" * 2_001},
        {"dry_run": "yes"},
    ],
    ids=lambda body: str(body)[:60],
)
async def test_a_bad_replay_is_refused_and_changes_nothing(bench: Bench, body: object) -> None:
    task = (await bench.letters.of_calls("sheet", {"cell": "A1"})).state.task
    before = [await bench.last(stream) for stream in ("CONTROL", "EVENTS")]
    assert_problem(await bench.replay(task, body), "invalid-request")
    assert [await bench.last(stream) for stream in ("CONTROL", "EVENTS")] == before


async def test_arguments_of_a_tool_that_nobody_declares_are_not_judged(bench: Bench) -> None:
    task = (await bench.letters.of_calls("elsewhere", {"cell": "A1"})).state.task
    assert (await bench.replay(task, {"edits": {"arguments": {"1-0": {"any": 1}}}})).status_code == 202


async def test_an_edit_that_does_not_fit_is_refused(bench: Bench) -> None:
    task = (await bench.letters.of_turn(instructions="i" * 300_000)).state.task
    before = await bench.last()
    assert_problem(await bench.replay(task, {"edits": {"input": "x" * BODY_BYTES_MAX}}), "payload-too-large")
    # With what the task asks for already it would be too much.
    assert_problem(await bench.replay(task, {"edits": {"input": "x" * 300_000}}), "payload-too-large")
    wrong = await bench.client.post(
        f"/v1/dead-letters/{task}/replay", content=b"{}", headers={"Content-Type": "text/plain"}
    )
    assert_problem(wrong, "unsupported-media-type")
    assert await bench.last() == before
    assert (await bench.replay(task, {"edits": {"input": "x" * 200_000}})).status_code == 202


# Giving up


async def test_a_task_is_given_up_by_a_cancel(bench: Bench) -> None:
    task = (await bench.letters.of_turn()).state.task
    after = await bench.last()
    for _ in range(2):
        answer = await bench.client.delete(f"/v1/dead-letters/{task}")
        assert (answer.status_code, answer.json()["status"]) == (202, "dead_lettered")
    [message] = await bench.commands(after)
    command = decode_control(message.payload, message.subject)
    assert isinstance(command, CancelCommand)
    assert "dead letters were dropped" in str(command.reason)


async def test_only_what_gave_up_is_given_up(bench: Bench) -> None:
    running = await begin_journal(bench.connection.requests, turn_work())
    ended = await bench.letters.of_turn()
    await end_task(ended)
    before = await bench.last()
    assert_problem(await bench.client.delete(f"/v1/dead-letters/{running.state.task}"), "conflict")
    answer = await bench.client.delete(f"/v1/dead-letters/{ended.state.task}")
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    assert await bench.last() == before
    shown = (await bench.client.get(f"/v1/dead-letters/{ended.state.task}")).json()
    assert (shown["open"], [each["open"] for each in shown["records"]]) == ([], [False])
