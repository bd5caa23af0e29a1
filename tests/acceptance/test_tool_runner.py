"""The tool runner, as a process: calls that a journal asks for, calls that fail, messages that are no calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import jsonschema_rs
import pytest
import pytest_asyncio

from contracts import subjects
from contracts.codec import decode, encode
from contracts.journal.events import StepClaimed, ToolCompleted, ToolFailed, TurnCompleted
from contracts.journal.parts import Parent, Timings, ToolCall, Usage
from contracts.messages.work import ToolWork, TurnWork
from contracts.streams import BUILT_IN_TOOLS
from mesh.broker.connection import Connection, connect
from mesh.broker.direct_get import read_page
from mesh.journal.journal import Journal
from mesh.task.state import CallResult
from mesh.tools.toolbox import Toolbox
from tests.support.calls import Calls
from tests.support.checker import read_stored
from tests.support.processes import Mesh, running_mesh
from tests.support.tasks import begin_journal, turn_work
from tests.support.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]


@dataclass
class Runner:
    """A tool runner alone; the journals that ask for its calls are written here."""

    mesh: Mesh
    connection: Connection

    async def ask(self, *arguments: dict[str, Any]) -> Journal:
        """A journal whose first turn asks for calls of `add`."""
        journal = await begin_journal(self.connection.requests, turn_work())
        calls = [ToolCall(f"1-{index}", "add", each) for index, each in enumerate(arguments)]
        await journal.append(
            lambda stamp: TurnCompleted(
                *stamp, turn=1, text="", calls=calls, finish_reason="tool_calls", usage=Usage(), timings=Timings()
            ),
            lambda _: True,
        )
        return journal

    async def call(self, journal: Journal, call: str, arguments: dict[str, Any]) -> None:
        """Put a call into TOOLS."""
        work = ToolWork(task=journal.state.task, tenant="default", turn=1, call=call, tool="add", arguments=arguments)
        await self.publish(encode(work))

    async def publish(self, payload: bytes) -> None:
        """Put anything into TOOLS."""
        await self.connection.requests.publish(subjects.tools("add"), payload)

    async def until_idle(self) -> None:
        """Wait until nothing is left in TOOLS."""

        async def empty() -> bool:
            info = await self.connection.requests.api("STREAM.INFO.TOOLS")
            return bool(info["state"]["messages"] == 0)

        await until(empty)

    async def result(self, journal: Journal, call: str = "1-0") -> CallResult | None:
        """What the journal says of a call."""
        return (await Journal.load(self.connection.requests, "default", journal.state.task)).state.call_results.get(
            call
        )

    async def dead_letters(self) -> list[dict[str, Any]]:
        """All of them."""
        return (await read_stored(self.connection.requests)).dead_letters


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runner(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runner]:
    """A broker and a tool runner."""
    async with (
        running_mesh(tmp_path_factory.mktemp("runner"), "tool_runner") as mesh,
        connect(mesh.settings, "test") as connection,
    ):
        yield Runner(mesh, connection)
        assert mesh.tracebacks() == []


async def test_a_call_that_a_journal_asks_for_is_run_and_its_result_recorded_once(runner: Runner) -> None:
    journal = await runner.ask({"a": 1, "b": 2})
    for _ in range(2):
        await runner.call(journal, "1-0", {"a": 1, "b": 2})
    await runner.until_idle()
    result = await runner.result(journal)
    assert isinstance(result, ToolCompleted)
    assert (result.turn, result.call, result.tool, result.result) == (1, "1-0", "add", 3)
    assert result.timings is not None
    stored = await read_stored(runner.connection.requests)
    types = [event.event["type"] for event in stored.journals[journal.state.task]]
    assert types[-3:] == ["turn.completed", "step.claimed", "tool.completed"]
    claim = decode(stored.journals[journal.state.task][-2].data, StepClaimed)
    assert (claim.step, claim.call, claim.tool, claim.turn) == ("1-0", "1-0", "add", 1)
    assert stored.ack_pending == 0


async def test_calls_of_one_turn_are_run_beside_each_other(runner: Runner) -> None:
    arguments: list[dict[str, Any]] = [{"a": number, "b": 0.5} for number in range(20)]
    journal = await runner.ask(*arguments)
    await asyncio.gather(*(runner.call(journal, f"1-{index}", each) for index, each in enumerate(arguments)))
    await runner.until_idle()
    state = (await Journal.load(runner.connection.requests, "default", journal.state.task)).state
    results = {call: getattr(result, "result", None) for call, result in state.call_results.items()}
    assert results == {f"1-{number}": number + 0.5 for number in range(20)}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({}, "tool-arguments-invalid"),
        ({"a": 1}, "tool-arguments-invalid"),
        ({"a": 1, "b": "2"}, "tool-arguments-invalid"),
        ({"a": 1, "b": None}, "tool-arguments-invalid"),
        ({"a": 1, "b": 2, "c": 3}, "tool-arguments-invalid"),
        ({"a": 1e308, "b": 1e308}, "tool-refused"),
    ],
)
async def test_a_call_that_can_not_be_run_fails_and_the_runner_goes_on(
    runner: Runner, arguments: dict[str, Any], code: str
) -> None:
    journal = await runner.ask(arguments)
    await runner.call(journal, "1-0", arguments)
    await runner.until_idle()
    result = await runner.result(journal)
    assert isinstance(result, ToolFailed)
    assert (result.error.code, result.outcome) == (code, "failed")


async def test_a_call_that_nobody_asked_for_becomes_a_dead_letter(runner: Runner) -> None:
    journal = await runner.ask({"a": 1, "b": 2})
    before = await runner.dead_letters()
    await runner.call(journal, "1-1", {"a": 1, "b": 2})
    await runner.until_idle()
    assert await runner.result(journal, "1-1") is None
    (letter,) = (await runner.dead_letters())[len(before) :]
    assert (letter["stream"], letter["subject"]) == ("TOOLS", "tools.add")
    assert letter["errors"][0]["code"] == "call-unknown"
    assert json.loads(letter["message"])["call"] == "1-1"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not json",
        b"\xff",
        b"[" * 5000,
        b'{"kind":"tool"}',
        encode(ToolWork(task="0" * 26, tenant="default", turn=1, call="1-0", tool="sub", arguments={})),
        encode(turn_work()),
    ],
    ids=["empty", "not JSON", "not UTF-8", "deep", "incomplete", "another tool's", "a turn"],
)
async def test_a_malformed_call_becomes_a_dead_letter_and_the_runner_goes_on(runner: Runner, payload: bytes) -> None:
    before = await runner.dead_letters()
    await runner.publish(payload)
    journal = await runner.ask({"a": 20, "b": 22})
    await runner.call(journal, "1-0", {"a": 20, "b": 22})
    await runner.until_idle()
    (letter,) = (await runner.dead_letters())[len(before) :]
    assert letter["errors"][0]["code"] == "malformed-message"
    result = await runner.result(journal)
    assert isinstance(result, ToolCompleted)
    assert result.result == 42


# What the journal says, whatever the message says


async def test_the_journals_arguments_are_run_and_not_the_messages(runner: Runner) -> None:
    journal = await runner.ask({"a": 1, "b": 2})
    await runner.call(journal, "1-0", {"a": 1000, "b": 1000})
    await runner.until_idle()
    result = await runner.result(journal)
    assert isinstance(result, ToolCompleted)
    assert result.result == 3


async def test_a_call_that_waits_for_its_approval_is_not_run_whoever_asks(runner: Runner) -> None:
    calls = Calls(runner.connection)
    journal = await calls.ask("add", {"a": 1, "b": 2}, approval=True)
    await calls.publish(journal, "add")
    await runner.until_idle()
    state = (await calls.journal(journal)).state
    assert state.call_results == {}
    assert ("1-0", 0) not in state.claims


# The tools that come along


async def test_the_tools_that_come_along_are_declared(runner: Runner) -> None:
    toolbox = Toolbox(runner.connection.requests, runner.mesh.settings.configuration.tools)
    declared = await toolbox.declarations(BUILT_IN_TOOLS)
    assert set(declared) == set(BUILT_IN_TOOLS)
    assert not any(tool.destructive for tool in declared.values())
    for tool in declared.values():
        jsonschema_rs.validator_for(tool.parameters)


@pytest.mark.parametrize(
    ("tool", "arguments", "result"),
    [
        ("calculator", {"expression": "2 ** 10 / (3 + 1)"}, 256),
        ("calculator", {"expression": "9 ** 9 ** 9"}, "tool-refused"),
        ("calculator", {"expression": "().__class__"}, "tool-refused"),
        ("current_time", {"zone": "Mars/Olympus"}, "tool-refused"),
        ("http_get", {"url": "http://127.0.0.1/"}, "http-forbidden"),
        ("spawn_task", {"input": "x", "pool": "nowhere"}, "tool-refused"),
        ("spawn_task", {"input": "x", "tools": ["add"]}, "tool-refused"),
        ("spawn_task", {}, "tool-arguments-invalid"),
    ],
)
async def test_the_tools_that_come_along(runner: Runner, tool: str, arguments: dict[str, Any], result: object) -> None:
    ended = await Calls(runner.connection).run(tool, arguments)
    assert (ended.error.code if isinstance(ended, ToolFailed) else getattr(ended, "result", None)) == result


async def test_a_spawned_task_is_in_its_queue_with_its_parent_and_the_call_goes_on(runner: Runner) -> None:
    calls = Calls(runner.connection)
    journal = await calls.ask("spawn_task", {"input": "hello"})
    for _ in range(2):
        await calls.publish(journal, "spawn_task")
    await runner.until_idle()
    state = (await calls.journal(journal)).state
    child = state.children["1-0"].child
    assert state.call_results == {}
    waiting = (await read_page(runner.connection.requests, "TASKS", "tasks.>", 0)).messages
    (work,) = (decode(message.payload, TurnWork) for message in waiting)
    assert (work.task, work.parent) == (child, Parent(journal.state.task, "1-0", 1))
