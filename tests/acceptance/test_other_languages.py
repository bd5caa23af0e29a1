"""Tools in other languages: the runners of examples/, as processes beside that of the mesh, in one task."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from contracts import subjects
from contracts.codec import decode, encode
from contracts.identifiers import new_id
from contracts.journal.events import StepClaimed, ToolCompleted, ToolFailed
from contracts.messages.control import ApprovalCommand
from contracts.messages.work import ToolWork
from contracts.records.tools import ToolDeclaration
from contracts.streams import TOOLS_BUCKET
from mesh.broker import key_value
from mesh.broker.connection import connect
from tests.support.checker import Recorded, check, read_stored
from tests.support.other_languages import ANSWERS, COMMANDS, GUESTS, LEASE_SECONDS, TEXT, TOOLS, Tools, broken_schemas
from tests.support.processes import enforced_mesh
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tools(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tools]:
    """A mesh with runners in Python, Go and TypeScript, each with least rights. It is judged at the end."""
    for command in COMMANDS.values():
        await asyncio.to_thread(command)
    folder = tmp_path_factory.mktemp("foreign")
    lease = {"MESH_ACK_WAIT_SECONDS": str(LEASE_SECONDS)}
    async with (
        enforced_mesh(folder, ["steward", "inference_worker", "tool_runner"], [*GUESTS.values()], **lease) as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        files = folder / "files"
        files.mkdir()
        (files / "notes.txt").write_text(TEXT)
        running = Tools(mesh, connection, files, Recorded(), {})
        try:
            await until(running.add_is_declared)
            for language in COMMANDS:
                await running.start(language)
            yield running
            stored = await read_stored(connection.requests)
            assert check(running.recorded, stored) == []
            assert broken_schemas(stored) == []
            assert mesh.tracebacks() == []
        finally:
            statuses = [await foreign.stop() for foreign in running.foreign.values()]
    assert statuses == [0] * len(statuses)


async def test_their_tools_are_declared(tools: Tools) -> None:
    for name, idempotent in (("word_count", True), ("append_line", False), ("longest_line", True)):
        entry = await key_value.get(tools.connection.requests, TOOLS_BUCKET.name, name)
        assert entry is not None
        assert entry.value is not None
        declared = decode(entry.value, ToolDeclaration)
        assert (declared.name, declared.idempotent) == (name, idempotent)
        assert "file" in declared.parameters["properties"]


async def test_one_turn_calls_tools_in_three_languages(tools: Tools) -> None:
    script = (
        '!call add {"a": 40, "b": 2}\n!call word_count {"file": "notes.txt"}\n!call longest_line {"file": "notes.txt"}'
    )
    task = await tools.submit(script, "add", "word_count", "longest_line")
    state = await tools.until_ended(task)
    assert state.status == "completed"
    results = {call: getattr(result, "result", result) for call, result in state.call_results.items()}
    assert results == {"1-0": 42, "1-1": ANSWERS["go"], "1-2": ANSWERS["typescript"]}
    workers = {call: state.claims[call, 0].worker for call in results}
    assert workers["1-0"].startswith("tool_runner-")
    assert workers["1-1"].startswith(f"go-tools-{tools.foreign['go'].pid}@")
    assert workers["1-2"].startswith(f"typescript-tools-{tools.foreign['typescript'].pid}@")
    assert max(state.turns) == 2, "the turn after the last result is published once, by whoever recorded it"
    stored = await read_stored(tools.connection.requests)
    assert check(tools.recorded, stored) == []


async def test_runners_of_three_languages_write_to_one_journal_at_once(tools: Tools) -> None:
    """Each append is fenced by all before it: who was slower reads, folds, and decides again."""
    calls = [("add", {"a": 40, "b": 2}), ("word_count", {"file": "notes.txt"}), ("longest_line", {"file": "notes.txt"})]
    asked = calls * 6
    script = "\n".join(f"!call {name} {json.dumps(arguments)}" for name, arguments in asked)
    task = await tools.submit(script, *(name for name, _ in calls))
    state = await tools.until_ended(task)
    answers = {"add": 42, "word_count": ANSWERS["go"], "longest_line": ANSWERS["typescript"]}
    for index, (name, _) in enumerate(asked):
        result = state.call_results[f"1-{index}"]
        assert isinstance(result, ToolCompleted)
        assert result.result == answers[name]
        assert state.claim_counts[f"1-{index}", 0] == 1
    assert max(state.turns) == 2


async def test_a_broker_that_dies_and_comes_back_costs_no_call(tools: Tools) -> None:
    await tools.mesh.broker.kill()
    await tools.mesh.broker.start()
    script = '!call word_count {"file": "notes.txt"}\n!call longest_line {"file": "notes.txt"}'
    task = await tools.submit(script, "word_count", "longest_line")
    state = await tools.until_ended(task)
    results = [getattr(state.call_results[call], "result", None) for call in ("1-0", "1-1")]
    assert results == [ANSWERS["go"], ANSWERS["typescript"]]


@pytest.mark.parametrize("language", COMMANDS)
async def test_a_runner_that_is_killed_in_mid_call_is_followed_by_another(tools: Tools, language: str) -> None:
    """The tool reads a pipe that nobody has written to yet: so it is in the middle of its call."""
    pipe = tools.folder / f"{language}.txt"
    os.mkfifo(pipe)
    first = tools.foreign[language]
    task = await tools.submit(f'!call {TOOLS[language]} {{"file": "{pipe.name}"}}', TOOLS[language])
    await tools.until(task, lambda state: ("1-0", 0) in state.claims)
    await first.kill()
    second = await tools.start(language)
    await tools.until(task, lambda state: state.claim_counts["1-0", 0] == 2)
    await asyncio.to_thread(pipe.write_text, TEXT)
    state = await tools.until_ended(task)
    result = state.call_results["1-0"]
    assert isinstance(result, ToolCompleted)
    assert result.result == ANSWERS[language]
    assert f"-{second.pid}@" in state.claims["1-0", 0].worker
    assert state.status == "completed"


async def test_a_call_that_must_not_run_twice_is_run_once_and_its_outcome_is_unknown(tools: Tools) -> None:
    """A person agrees to it first; its runner then dies in the middle."""
    pipe = tools.folder / "log.txt"
    os.mkfifo(pipe)
    script = '!call append_line {"file": "log.txt", "line": "hello"}'
    task = await tools.submit(script, "append_line")
    await tools.until(task, lambda state: bool(state.open_approvals))
    command = ApprovalCommand(task=task, tenant="default", by="somebody", call="1-0", decision="approved")
    await tools.connection.requests.publish(subjects.control("approval", "default"), encode(command))
    await tools.until(task, lambda state: ("1-0", 0) in state.claims)
    await tools.foreign["go"].kill()
    await tools.start("go")
    state = await tools.until_ended(task)
    result = state.call_results["1-0"]
    assert isinstance(result, ToolFailed)
    assert (result.error.code, result.outcome) == ("tool-outcome-unknown", "unknown")
    assert state.status == "completed", "the model is told, and goes on"


@pytest.mark.parametrize("language", COMMANDS)
@pytest.mark.parametrize("file", ["none.txt", "../notes.txt"])
async def test_a_call_that_can_not_be_run_fails_and_the_task_goes_on(tools: Tools, language: str, file: str) -> None:
    task = await tools.submit(f'!call {TOOLS[language]} {{"file": "{file}"}}', TOOLS[language])
    state = await tools.until_ended(task)
    result = state.call_results["1-0"]
    assert isinstance(result, ToolFailed)
    assert result.error.code == ("tool-refused" if file == "none.txt" else "tool-arguments-invalid")
    assert result.outcome == "failed"
    assert state.status == "completed"


@pytest.mark.parametrize("language", COMMANDS)
@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff", b'{"kind":"tool"}', b"[" * 5000],
    ids=["empty", "not UTF-8", "incomplete", "deep"],
)
async def test_what_is_no_call_becomes_a_dead_letter(tools: Tools, language: str, payload: bytes) -> None:
    (letter,) = await dead_letters_of(tools, language, payload)
    assert letter["errors"][0]["code"] == "malformed-message"


@pytest.mark.parametrize("language", COMMANDS)
async def test_a_call_of_another_version_is_left_to_another(tools: Tools, language: str) -> None:
    requests, tool = tools.connection.requests, TOOLS[language]
    before = (await read_stored(requests)).dead_letters
    call = {"kind": "tool", "task": new_id(), "tenant": "default", "tool": tool, "call": "1-0", "turn": "the first"}
    sequence = (await requests.publish(subjects.tools(tool), encode(call))).seq

    async def came_back() -> bool:
        return int((await requests.api(f"CONSUMER.INFO.TOOLS.tool-{tool}"))["num_redelivered"]) > 0

    await until(came_back)
    assert (await read_stored(requests)).dead_letters == before
    assert await requests.delete_message("TOOLS", sequence), "it is still there"


@pytest.mark.parametrize("language", COMMANDS)
async def test_a_call_that_nobody_asked_for_becomes_a_dead_letter(tools: Tools, language: str) -> None:
    task = await tools.submit("hello")
    journal = await tools.until_ended(task)
    assert journal.status == "completed"
    open_task = await tools.submit('!call append_line {"file": "open.txt", "line": "a"}', "append_line")
    await tools.until(open_task, lambda state: bool(state.open_approvals))
    work = ToolWork(
        task=open_task, tenant="default", turn=1, call="1-5", tool=TOOLS[language], arguments={"file": "notes.txt"}
    )
    (letter,) = await dead_letters_of(tools, language, encode(work))
    assert letter["errors"][0]["code"] == "call-unknown"
    command = ApprovalCommand(task=open_task, tenant="default", by="somebody", call="1-0", decision="denied")
    await tools.connection.requests.publish(subjects.control("approval", "default"), encode(command))
    await tools.until_ended(open_task)


@pytest.mark.parametrize("language", COMMANDS)
async def test_a_call_of_a_task_that_has_ended_is_only_acked(tools: Tools, language: str) -> None:
    task = await tools.submit("hello")
    state = await tools.until_ended(task)
    work = ToolWork(task=task, tenant="default", turn=1, call="1-0", tool=TOOLS[language], arguments={})
    assert await dead_letters_of(tools, language, encode(work)) == []
    assert (await tools.state(task)).revision == state.revision


async def dead_letters_of(tools: Tools, language: str, payload: bytes) -> list[dict[str, Any]]:
    """The dead letters that come of a message in TOOLS, once it is answered."""
    before = len((await read_stored(tools.connection.requests)).dead_letters)
    await tools.connection.requests.publish(subjects.tools(TOOLS[language]), payload)

    async def answered() -> bool:
        info = await tools.connection.requests.api("STREAM.INFO.TOOLS")
        return bool(info["state"]["messages"] == 0)

    await until(answered)
    return (await read_stored(tools.connection.requests)).dead_letters[before:]


async def test_claims_of_other_languages_read_like_those_of_the_mesh(tools: Tools) -> None:
    stored = await read_stored(tools.connection.requests)
    claims = [
        decode(event.data, StepClaimed)
        for journal in stored.journals.values()
        for event in journal
        if event.event["type"] == "step.claimed" and event.event.get("tool") in TOOLS.values()
    ]
    assert claims
    for claim in claims:
        assert claim.step == claim.call
        assert claim.attempt is None
